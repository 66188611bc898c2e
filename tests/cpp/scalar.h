// The operators of csrc/problem.h as scalar loops in double, written for readability. kan_kernels/reference/ explains the maths.
#pragma once
#include <cmath>
#include <cstdint>
#include <utility>
#include <vector>

#include "problem.h"

namespace scalar {

using Values = std::vector<double>;

// The operands of a layer, contiguous and with the shapes of kan::Problem; empty if absent. The kernels read them in their storage
// type, which represents every number exactly.
struct Layer {
  int64_t N, I, O, G;
  int K, derivative;
  kan::Activation activation;
  Values x, w, spline_weight, spline_scaler, base_weight, grid, g, edge_weight;

  int64_t M() const { return G + K; }
  double scale(int64_t o, int64_t i) const { return spline_scaler.empty() ? 1 : spline_scaler[o * I + i]; }
  double spline(int64_t o, int64_t i, int64_t m) const { return spline_weight[(o * I + i) * M() + m]; }
  double base(int64_t o, int64_t i) const { return base_weight.empty() ? 0 : base_weight[o * I + i]; }
  double weight(int64_t n, int64_t i) const { return w.empty() ? 1 : w[n * I + i]; }
};

// Sums, and the sums of their terms' magnitudes, which errors are measured against.
struct Sums {
  Values value, size;
  explicit Sums(int64_t count) : value(count), size(count) {}
  void add(int64_t at, double term, double term_size) { value[at] += term, size[at] += term_size; }
  void add(int64_t at, double term) { add(at, term, std::fabs(term)); }
};

// Returns derivative order n of every B-spline at x by the Cox-de Boor recursion, where 0/0 counts as 0.
inline Values bases(const double* knots, int64_t G, int K, int n, double x) {
  Values values(G + 2 * K);
  for (size_t m = 0; m < values.size(); ++m) values[m] = x >= knots[m] && x < knots[m + 1];
  for (int degree = 1; degree <= K; ++degree) {
    const bool differentiates = degree > K - n;
    Values next(values.size() - 1);
    for (size_t m = 0; m < next.size(); ++m) {
      const double rise = knots[m + degree] - knots[m], fall = knots[m + degree + 1] - knots[m + 1];
      const double rising = differentiates ? degree : x - knots[m];
      const double falling = differentiates ? -degree : knots[m + degree + 1] - x;
      next[m] = (rise > 0 ? rising / rise * values[m] : 0) + (fall > 0 ? falling / fall * values[m + 1] : 0);
    }
    values = next;
  }
  if (n > K) values.assign(values.size(), 0);
  return values;
}

// Returns derivative order n of the sigmoid s. With z = 1 - 2 s it is s (1 - s) Q(z), where Q is 1 for n = 1 and
// z Q - (1 - z^2) / 2 Q' for the next order.
inline double sigmoid(int n, double x) {
  const double s = 1 / (1 + std::exp(-x)), z = -std::tanh(x / 2);
  if (n == 0) return s;
  Values q = {1};
  for (int order = 1; order < n; ++order) {
    Values next(q.size() + 1);
    for (size_t p = 0; p < q.size(); ++p) {
      next[p + 1] += q[p] * (1 + 0.5 * double(p));
      if (p > 0) next[p - 1] -= q[p] * 0.5 * double(p);
    }
    q = next;
  }
  double polynomial = 0;
  for (size_t p = q.size(); p-- > 0;) polynomial = polynomial * z + q[p];
  return s / (1 + std::exp(x)) * polynomial;
}

// Returns derivative order n of the base activation at x.
inline double base_activation(kan::Activation activation, int n, double x) {
  if (activation == kan::Activation::identity) return n == 0 ? x : n == 1;
  return x * sigmoid(n, x) + (n > 0 ? n * sigmoid(n - 1, x) : 0);
}

// Returns the terms of an input at a derivative order: its M bases, then the base activation.
inline Values terms_of(const Layer& l, int64_t n, int64_t i, int derivative) {
  const double x = l.x[n * l.I + i];
  Values terms = bases(&l.grid[i * (l.G + 2 * l.K + 1)], l.G, l.K, derivative, x);
  terms.push_back(base_activation(l.activation, derivative, x));
  return terms;
}

// Calls visit(n, i, terms) for every input.
template <class Visit>
void for_inputs(const Layer& l, int derivative, const Visit& visit) {
  for (int64_t n = 0; n < l.N; ++n)
    for (int64_t i = 0; i < l.I; ++i) visit(n, i, terms_of(l, n, i, derivative));
}

// Returns the function of edge (o, i), or its derivative, from the terms of an input. Sets `size` to the sum of the magnitudes of
// the summands.
inline double edge(const Layer& l, int64_t o, int64_t i, const Values& terms, double& size) {
  double sum = l.base(o, i) * terms[l.M()];
  size = std::fabs(sum);
  for (int64_t m = 0; m < l.M(); ++m) {
    const double term = l.scale(o, i) * l.spline(o, i, m) * terms[m];
    sum += term, size += std::fabs(term);
  }
  return sum;
}

// Returns (N, O).
inline Sums forward(const Layer& l) {
  Sums y(l.N * l.O);
  for_inputs(l, l.derivative, [&](int64_t n, int64_t i, const Values& terms) {
    for (int64_t o = 0; o < l.O; ++o) {
      double size;
      const double phi = edge(l, o, i, terms, size);
      y.add(n * l.O + o, l.weight(n, i) * phi, std::fabs(l.weight(n, i)) * size);
    }
  });
  return y;
}

struct Gradients {
  Sums input, spline_weight, spline_scaler, base_weight;  // (N, I), (O, I, M), (O, I), (O, I)
  explicit Gradients(const Layer& l)
      : input(l.N * l.I), spline_weight(l.O * l.I * l.M()), spline_scaler(l.O * l.I), base_weight(l.O * l.I) {}
};

// Returns the gradients of the sum over n, o, i of factor(n, o, i) w[n,i] phi[o,i](x[n,i]). The gradient of the input uses order
// input_derivative, the others order l.derivative.
template <class Factor>
Gradients gradients(const Layer& l, int input_derivative, const Factor& factor) {
  Gradients result(l);
  for_inputs(l, input_derivative, [&](int64_t n, int64_t i, const Values& terms) {
    for (int64_t o = 0; o < l.O; ++o) {
      double size;
      const double slope = edge(l, o, i, terms, size), times = factor(n, o, i) * l.weight(n, i);
      result.input.add(n * l.I + i, times * slope, std::fabs(times) * size);
    }
  });
  for_inputs(l, l.derivative, [&](int64_t n, int64_t i, const Values& terms) {
    for (int64_t o = 0; o < l.O; ++o) {
      const int64_t at = o * l.I + i;
      const double times = factor(n, o, i) * l.weight(n, i);
      for (int64_t m = 0; m < l.M(); ++m) {
        result.spline_weight.add(at * l.M() + m, times * terms[m] * l.scale(o, i));
        result.spline_scaler.add(at, times * terms[m] * l.spline(o, i, m));
      }
      result.base_weight.add(at, times * terms[l.M()]);
    }
  });
  return result;
}

// Returns every edge's function at every input, (N, O, I), with the sizes of its terms.
inline Sums edges(const Layer& l) {
  Sums phi(l.N * l.O * l.I);
  for_inputs(l, 0, [&](int64_t n, int64_t i, const Values& terms) {
    for (int64_t o = 0; o < l.O; ++o) {
      const int64_t at = (n * l.O + o) * l.I + i;
      phi.value[at] = edge(l, o, i, terms, phi.size[at]);
    }
  });
  return phi;
}

// Returns the mean magnitudes, (O, I).
inline Sums edge_l1(const Layer& l, const Sums& phi) {
  Sums norms(l.O * l.I);
  for (int64_t at = 0; at < l.N * l.O * l.I; ++at)
    norms.add(at % (l.O * l.I), std::fabs(phi.value[at]) / double(l.N), phi.size[at] / double(l.N));
  return norms;
}

// Returns the means and the unbiased standard deviations, both (O, I).
inline std::pair<Values, Sums> edge_std(const Layer& l, const Sums& phi) {
  const int64_t edges = l.O * l.I;
  Values mean(edges);
  Sums spread(edges);
  for (int64_t at = 0; at < l.N * edges; ++at) mean[at % edges] += phi.value[at] / double(l.N);
  for (int64_t at = 0; at < l.N * edges; ++at) {
    const double distance = phi.value[at] - mean[at % edges];
    spread.add(at % edges, distance * distance / double(l.N - 1));
  }
  for (int64_t e = 0; e < edges; ++e) spread.value[e] = spread.size[e] = std::sqrt(spread.value[e]);
  return {mean, spread};
}

// Calls visit(place, a, b) for the moments of a feature. Position `place` in (M+2, K+4) holds the sum over the rows of the product
// of terms a and b. The terms are the M bases, the base activation, e = 1 - the sum of the bases, and 1.
template <class Visit>
void for_moments(int64_t M, int K, const Visit& visit) {
  const int64_t row = K + 4, base = M, e = M + 1, one = M + 2;
  for (int64_t m = 0; m < M; ++m) {
    for (int64_t d = 0; d <= K && m + d < M; ++d) visit(m * row + d, m, m + d);
    visit(m * row + K + 1, m, base);
    visit(m * row + K + 2, m, e);
    visit(m * row + K + 3, m, one);
  }
  visit(M * row, base, base);
  visit(M * row + K + 2, base, e);
  visit(M * row + K + 3, base, one);
  visit((M + 1) * row, e, e);
  visit((M + 1) * row + K + 3, e, one);
}

// Returns the terms of `for_moments` if `one` is 1, or their slopes if `one` is 0.
inline Values moment_terms(Values terms, double one) {
  double rest = one;
  for (size_t m = 0; m + 1 < terms.size(); ++m) rest -= terms[m];
  terms.push_back(rest);
  terms.push_back(one);
  return terms;
}

// Returns (I, M+2, K+4).
inline Sums moments(const Layer& l) {
  const int64_t size = (l.M() + 2) * (l.K + 4);
  Sums sums(l.I * size);
  for_inputs(l, 0, [&](int64_t, int64_t i, const Values& terms) {
    const Values t = moment_terms(terms, 1);
    // If the bases sum to one, e is a rounding error. Its size is that of the numbers whose difference it is.
    const auto magnitude = [&](int64_t k) { return k == l.M() + 1 ? 1 : std::fabs(t[k]); };
    for_moments(l.M(), l.K, [&](int64_t place, int64_t a, int64_t b) {
      sums.add(i * size + place, t[a] * t[b], magnitude(a) * magnitude(b));
    });
  });
  return sums;
}

// Returns (N, I), the gradient of the sum of weight (I, M+2, K+4) times the moments.
inline Sums moments_backward(const Layer& l, const Values& weight) {
  const int64_t size = (l.M() + 2) * (l.K + 4);
  Sums gradient(l.N * l.I);
  for_inputs(l, 0, [&](int64_t n, int64_t i, const Values& terms) {
    const Values t = moment_terms(terms, 1), s = moment_terms(terms_of(l, n, i, 1), 0);
    for_moments(l.M(), l.K, [&](int64_t place, int64_t a, int64_t b) {
      const double times = weight[i * size + place];
      gradient.add(n * l.I + i, times * s[a] * t[b]);
      gradient.add(n * l.I + i, times * t[a] * s[b]);
    });
  });
  return gradient;
}

}  // namespace scalar
