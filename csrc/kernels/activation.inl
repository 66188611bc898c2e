// Evaluates the base activation and its derivatives, one vector at a time.
#pragma once

#include "namespace.inl"
#include "simd.inl"

namespace KAN_NAMESPACE {
namespace {

// Returns exp(-|x|) to about 1 ulp as 2^n e^r, with |r| <= ln(2)/2 and a Taylor polynomial for e^r. NaN stays NaN; results below
// the normal range are 0.
inline V<float> exp_of_minus_abs(V<float> x) {
  const V<float> a = (V<float>)((Index<float>)x | INT32_MIN);
  const V<float> bounded = max_of<float>(broadcast<float>(-87.0f), a);  // keeps NaN
  const V<float> scaled = bounded * 1.44269504088896341f - 0.5f;
  const Index<float> n = __builtin_convertvector(scaled, Index<float>);  // truncating scaled, which is negative, rounds to nearest
  const V<float> nf = __builtin_convertvector(n, V<float>);
  V<float> r = bounded - nf * 0.693145751953125f;  // ln 2 in two parts; the first is exact in 16 bits
  r = r - nf * 1.42860682030941723212e-6f;
  V<float> p = broadcast<float>(1.0f / 5040);
  p = p * r + 1.0f / 720;
  p = p * r + 1.0f / 120;
  p = p * r + 1.0f / 24;
  p = p * r + 1.0f / 6;
  p = p * r + 0.5f;
  p = (r * r) * p + r + 1.0f;
  const V<float> power = (V<float>)((n + 127) << 23);
  const V<float> value = p * power;
  return a < -87.0f ? V<float>{} : value;
}
inline V<double> exp_of_minus_abs(V<double> x) {
  const V<double> a = (V<double>)((Index<double>)x | INT64_MIN);
  const V<double> bounded = max_of<double>(broadcast<double>(-708.0), a);
  // Adding 1.5 * 2^52 leaves the rounded integer in the low bits. Below AVX-512 there is no instruction from double to int64.
  const V<double> shifted = bounded * 1.44269504088896340736 + 6755399441055744.0;
  const V<double> nf = shifted - 6755399441055744.0;
  const Index<double> n = (Index<double>)shifted - (Index<double>)(broadcast<double>(6755399441055744.0));
  V<double> r = bounded - nf * 6.93147180369123816490e-1;
  r = r - nf * 1.90821492927058770002e-10;
  V<double> p = broadcast<double>(1.0 / 6227020800.0);
  p = p * r + 1.0 / 479001600.0;
  p = p * r + 1.0 / 39916800.0;
  p = p * r + 1.0 / 3628800.0;
  p = p * r + 1.0 / 362880.0;
  p = p * r + 1.0 / 40320.0;
  p = p * r + 1.0 / 5040.0;
  p = p * r + 1.0 / 720.0;
  p = p * r + 1.0 / 120.0;
  p = p * r + 1.0 / 24.0;
  p = p * r + 1.0 / 6.0;
  p = p * r + 0.5;
  p = (r * r) * p + r + 1.0;
  const V<double> power = (V<double>)((n + 1023) << 52);
  const V<double> value = p * power;
  return a < -708.0 ? V<double>{} : value;
}

// s = 1 / (1 + exp(-x)) and q = 1 - s, both computed without cancellation.
template <class C>
struct Sigmoid {
  V<C> x, s, q;
  explicit Sigmoid(V<C> x_) : x(x_) {
    const V<C> e = exp_of_minus_abs(x);
    const V<C> larger = reciprocal(C(1) + e);
    const V<C> smaller = e * larger;
    s = x >= 0 ? larger : smaller;
    q = x >= 0 ? smaller : larger;
  }
};

// Computes derivative `order` of the activation. For silu = x s, where s is the sigmoid, derivative n is x s^(n) + n s^(n-1). With
// q = 1 - s and z = q - s, s^(n) = s q Q_n(z), where Q_1 = 1 and Q_{n+1} = z Q_n - (1 - z^2) / 2 Q_n'. The coefficients stay small
// in powers of z, but not in powers of s.
template <class C>
struct BaseActivation {
  Activation kind;
  int order;
  C upper[kMaxDerivative + 1];  // the n coefficients of Q_n, lowest power first
  C lower[kMaxDerivative + 1];  // Q_{n-1}

  BaseActivation(Activation kind_, int order_) : kind(kind_), order(order_) {
    double q[kMaxDerivative + 2] = {1};
    for (int n = 1; n < order; ++n) {
      double next[kMaxDerivative + 2] = {};
      for (int k = 0; k < n; ++k) {
        lower[k] = C(q[k]);
        next[k + 1] += q[k] * (1 + 0.5 * k);
        if (k > 0) next[k - 1] -= q[k] * 0.5 * k;
      }
      for (int k = 0; k <= n; ++k) q[k] = next[k];
    }
    for (int k = 0; k < order; ++k) upper[k] = C(q[k]);
  }

  [[gnu::always_inline]] V<C> operator()(V<C> x) const { return kind == Activation::identity ? of_identity(x) : of_silu(Sigmoid<C>(x)); }

  // Computes derivatives `order` and order + 1.
  [[gnu::always_inline]] void operator()(V<C> x, const BaseActivation& next, V<C>& value, V<C>& slope) const {
    if (kind == Activation::identity) {
      value = of_identity(x);
      slope = next.of_identity(x);
    } else {
      const Sigmoid<C> s(x);
      value = of_silu(s);
      slope = next.of_silu(s);
    }
  }

  // Calls loop(f) with a function f(x) that computes derivative `order`. SiLU itself has a loop of its own, without the branches on
  // kind and order: 2 cycles per input instead of 3 (AVX2, Zen 3).
  template <class Loop>
  [[gnu::always_inline]] void with_value(Loop loop) const {
    if (kind == Activation::silu && order == 0) return loop([](V<C> x) __attribute__((always_inline)) { return x * Sigmoid<C>(x).s; });
    loop([this](V<C> x) __attribute__((always_inline)) { return (*this)(x); });
  }
  // The same for f(x, value, slope), which computes derivatives `order` and order + 1.
  template <class Loop>
  [[gnu::always_inline]] void with_value_and_slope(const BaseActivation& next, Loop loop) const {
    if (kind == Activation::silu && order == 0)
      return loop([](V<C> x, V<C>& value, V<C>& slope) __attribute__((always_inline)) {
        const Sigmoid<C> sigmoid(x);
        value = x * sigmoid.s;
        slope = x * (sigmoid.s * sigmoid.q) + sigmoid.s;
      });
    loop([this, &next](V<C> x, V<C>& value, V<C>& slope) __attribute__((always_inline)) { (*this)(x, next, value, slope); });
  }

 private:
  V<C> of_identity(V<C> x) const { return order == 0 ? x : broadcast<C>(order == 1 ? C(1) : C(0)); }
  [[gnu::always_inline]] V<C> of_silu(const Sigmoid<C>& sigmoid) const {
    const V<C> x = sigmoid.x, s = sigmoid.s, q = sigmoid.q;
    if (order == 0) return x * s;
    const V<C> slope = s * q;
    if (order == 1) return x * slope + s;
    const V<C> z = q - s;
    return slope * (x * horner(upper, order, z) + C(order) * horner(lower, order - 1, z));
  }
  static V<C> horner(const C* coefficients, int count, V<C> z) {
    V<C> value = broadcast<C>(coefficients[count - 1]);
    for (int k = count - 2; k >= 0; --k) value = value * z + coefficients[k];
    return value;
  }
};

}  // namespace
}  // namespace KAN_NAMESPACE
