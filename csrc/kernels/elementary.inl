// Elementary functions of vectors of doubles, for searches over formulas. NaN, infinities and arguments outside of a domain give what
// the C library's functions give. The errors below are relative to the result, in units in the last place, or to 1 where that is
// stated.
#pragma once

#include "namespace.inl"
#include "simd.inl"

namespace KAN_NAMESPACE {
namespace {

using Real = V<double>;
using Bits = Index<double>;

inline Real sqrt_of(Real x) {
#if KAN_VECTOR_BYTES == 64
  return (Real)_mm512_sqrt_pd((__m512d)x);
#elif KAN_VECTOR_BYTES == 32
  return (Real)_mm256_sqrt_pd((__m256d)x);
#else
  Real result;
  for (int lane = 0; lane < Simd<double>::lanes; ++lane) result[lane] = __builtin_sqrt(x[lane]);
  return result;
#endif
}

inline Real abs_of(Real x) { return (Real)((Bits)x & INT64_MAX); }

// Returns `magnitude`, which is not negative, with the sign of x.
inline Real with_sign_of(Real magnitude, Real x) { return (Real)((Bits)magnitude | ((Bits)x & INT64_MIN)); }

template <int COUNT>
inline Real polynomial(const double (&coefficients)[COUNT], Real x) {
  Real value = broadcast(coefficients[COUNT - 1]);
#pragma GCC unroll 16
  for (int k = COUNT - 2; k >= 0; --k) value = value * x + coefficients[k];
  return value;
}

// Rounds |x| < 2^51 to integers, as doubles and as integers. Adding 1.5 * 2^52 leaves the integer in the low bits.
struct Rounded {
  Real value;
  Bits integer;
  explicit Rounded(Real x) {
    const Real shifted = x + 6755399441055744.0;
    value = shifted - 6755399441055744.0;
    integer = (Bits)shifted - (Bits)broadcast(6755399441055744.0);
  }
};

// 2 ulp. Results below the normal range are 0.
inline Real exp_of(Real x) {
  static constexpr double taylor[] = {1.0,         1.0,          0.5,           1.0 / 6,        1.0 / 24,        1.0 / 120,       1.0 / 720,
                                      1.0 / 5040,  1.0 / 40320,  1.0 / 362880,  1.0 / 3628800,  1.0 / 39916800,  1.0 / 479001600, 1.0 / 6227020800.0};
  constexpr double largest = 709.782712893384;
  const Real bounded = min_of<double>(broadcast(largest), max_of<double>(broadcast(-708.0), x));  // keeps NaN
  const Rounded n(bounded * 1.44269504088896340736);
  Real r = bounded - n.value * 6.93147180369123816490e-1;
  r = r - n.value * 1.90821492927058770002e-10;
  const Real value = polynomial(taylor, r) * (Real)((n.integer + 1022) << 52) * 2.0;  // 2^1024 has no exponent
  return x < -708.0 ? Real{} : x > largest ? broadcast(__builtin_inf()) : value;
}

// 2 ulp.
inline Real log_of(Real x) {
  static constexpr double series[] = {2.0, 2.0 / 3, 2.0 / 5, 2.0 / 7, 2.0 / 9, 2.0 / 11, 2.0 / 13, 2.0 / 15, 2.0 / 17, 2.0 / 19, 2.0 / 21};
  const Bits subnormal = x < 0x1p-1022;
  const Real scaled = subnormal ? x * 0x1p54 : x;
  // x = 2^n m with m in [sqrt(1/2), sqrt(2)), and log(m) = 2 atanh((m - 1) / (m + 1)).
  const Bits bits = (Bits)scaled - (Bits)broadcast(0.70710678118654752);
  const Bits exponent = bits >> 52;
  const Real m = (Real)((Bits)scaled - (exponent << 52));
  const Bits shifted = exponent + (Bits)broadcast(6755399441055744.0);
  const Real n = (Real)shifted - 6755399441055744.0 - (subnormal ? broadcast(54.0) : Real{});
  const Real s = (m - 1.0) / (m + 1.0);
  Real value = n * 6.93147180369123816490e-1 + (s * polynomial(series, s * s) + n * 1.90821492927058770002e-10);
  value = x == 0.0 ? broadcast(-__builtin_inf()) : value;
  value = x < 0.0 ? broadcast(__builtin_nan("")) : value;
  return ((x < __builtin_inf()) | (x < 0.0)) ? value : x;  // infinity and NaN
}

// The sine of x + turns * pi / 2. 2 ulp of 1.
inline Real sine_of(Real x, int turns) {
  constexpr double largest = 1e6;
  const Real magnitude = abs_of(x);
  if (any_lane<double>((Bits)(magnitude > largest))) {  // the parts of pi / 2 below are too short
    Real result;
    for (int lane = 0; lane < Simd<double>::lanes; ++lane) result[lane] = turns == 0 ? __builtin_sin(x[lane]) : __builtin_cos(x[lane]);
    return result;
  }
  static constexpr double sine[] = {1.0, -1.0 / 6, 1.0 / 120, -1.0 / 5040, 1.0 / 362880, -1.0 / 39916800, 1.0 / 6227020800.0, -1.0 / 1307674368000.0};
  static constexpr double cosine[] = {1.0,           -0.5, 1.0 / 24, -1.0 / 720, 1.0 / 40320, -1.0 / 3628800, 1.0 / 479001600, -1.0 / 87178291200.0,
                                      1.0 / 20922789888000.0};
  const Rounded n(x * 0.63661977236758134308);
  // pi / 2 in three parts; products of the first two with n are exact.
  Real r = x - n.value * 1.57079632673412561417;
  r = r - n.value * 6.07710050630396597660e-11;
  r = r - n.value * 2.02226624879595063154e-21;
  const Real square = r * r;
  const Real of_sine = r * polynomial(sine, square), of_cosine = polynomial(cosine, square);
  const Bits quadrant = n.integer + turns;
  const Real value = (quadrant & 1) == 0 ? of_sine : of_cosine;
  return (Real)((Bits)value ^ ((quadrant & 2) << 62));
}

inline Real sin_of(Real x) { return sine_of(x, 0); }
inline Real cos_of(Real x) { return sine_of(x, 1); }
inline Real tan_of(Real x) { return sin_of(x) / cos_of(x); }

// 2 ulp of 1.
inline Real tanh_of(Real x) {
  const Real e = exp_of(-2.0 * abs_of(x));
  return with_sign_of((1.0 - e) / (1.0 + e), x);
}

// 3 ulp.
inline Real arctan_of(Real x) {
  static constexpr double series[] = {1.0,       -1.0 / 3, 1.0 / 5,   -1.0 / 7, 1.0 / 9,   -1.0 / 11, 1.0 / 13,
                                      -1.0 / 15, 1.0 / 17, -1.0 / 19, 1.0 / 21, -1.0 / 23, 1.0 / 25,  -1.0 / 27};
  const Real magnitude = abs_of(x);
  const Bits large = (Bits)(magnitude > 1.0);
  const Real t = large ? 1.0 / magnitude : magnitude;
  // arctan(t) = arctan(c) + arctan((t - c) / (1 + c t)) for c = 0, 1/2 or 1, such that the second argument is at most 1/4.
  const Real c = t < 0.25 ? Real{} : t < 0.75 ? broadcast(0.5) : broadcast(1.0);
  const Real of_c = t < 0.25 ? Real{} : t < 0.75 ? broadcast(0.46364760900080611621) : broadcast(0.78539816339744830962);
  const Real u = (t - c) / (1.0 + c * t);
  Real value = of_c + u * polynomial(series, u * u);
  value = large ? 1.57079632679489661923 - value : value;
  return with_sign_of(value, x);
}

// 4 ulp.
inline Real arcsin_of(Real x) { return arctan_of(x / sqrt_of((1.0 - x) * (1.0 + x))); }
inline Real arccos_of(Real x) { return 2.0 * arctan_of(sqrt_of((1.0 - x) / (1.0 + x))); }

// 2 ulp of 1.
inline Real arctanh_of(Real x) { return 0.5 * log_of((1.0 + x) / (1.0 - x)); }

}  // namespace
}  // namespace KAN_NAMESPACE
