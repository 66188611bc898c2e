// Computes how well c f(a x + b) + d fits samples of a curve, for every cell (a, b) of a grid and the best c and d: pykan's search for
// formulas. kan_kernels/symbolic/affine_fit.py explains it.
#pragma once

#include "namespace.inl"
#include "elementary.inl"
#include "tiling.inl"

namespace KAN_NAMESPACE {
namespace {

using kan::AffineCells;
using kan::Formula;

constexpr int kSamples = 512;  // of a block: its values and samples take 12 KB of the L1 cache
constexpr double kRidge = 1e-4;  // what pykan adds to the denominator

template <Formula F>
[[gnu::always_inline]] inline Real formula(Real z) {
  const Real square = z * z;
  if constexpr (F == Formula::identity) return z;
  if constexpr (F == Formula::power2) return square;
  if constexpr (F == Formula::power3) return square * z;
  if constexpr (F == Formula::power4) return square * square;
  if constexpr (F == Formula::power5) return square * square * z;
  if constexpr (F == Formula::inverse1) return 1.0 / z;
  if constexpr (F == Formula::inverse2) return 1.0 / square;
  if constexpr (F == Formula::inverse3) return 1.0 / (square * z);
  if constexpr (F == Formula::inverse4) return 1.0 / (square * square);
  if constexpr (F == Formula::inverse5) return 1.0 / (square * square * z);
  if constexpr (F == Formula::sqrt) return sqrt_of(z);
  if constexpr (F == Formula::power1_5) return sqrt_of(z) * z;
  if constexpr (F == Formula::inverse_sqrt) return 1.0 / sqrt_of(z);
  if constexpr (F == Formula::exp) return exp_of(z);
  if constexpr (F == Formula::log) return log_of(z);
  if constexpr (F == Formula::abs) return abs_of(z);
  if constexpr (F == Formula::sin) return sin_of(z);
  if constexpr (F == Formula::cos) return cos_of(z);
  if constexpr (F == Formula::tan) return tan_of(z);
  if constexpr (F == Formula::tanh) return tanh_of(z);
  if constexpr (F == Formula::sign) return (z > 0 ? broadcast(1.0) : Real{}) - (z < 0 ? broadcast(1.0) : Real{}) + (z == z ? Real{} : z);
  if constexpr (F == Formula::arcsin) return arcsin_of(z);
  if constexpr (F == Formula::arccos) return arccos_of(z);
  if constexpr (F == Formula::arctan) return arctan_of(z);
  if constexpr (F == Formula::arctanh) return arctanh_of(z);
  if constexpr (F == Formula::gaussian) return exp_of(-square);
}

// The sums of one cell over the samples, of values minus `shift`, the mean of the first block.
struct CellSums {
  double shift, total, square, along;
};

// Writes f(scaled + b) for `count` samples, rounded up to vectors.
using Evaluate = void (*)(const double* scaled, double b, int count, double* values);
template <Formula F>
void evaluate_formula(const double* scaled, double b, int count, double* values) {
  for (int n = 0; n < count; n += Simd<double>::lanes) store(values + n, formula<F>(load(scaled + n) + b));
}
template <int F = 0>
Evaluate evaluation_of(Formula wanted) {
  if constexpr (F + 1 < int(Formula::count))
    if (int(wanted) != F) return evaluation_of<F + 1>(wanted);
  return &evaluate_formula<Formula(F)>;
}

// Returns whether a formula is NaN for low or for high. Ends that are rounded differently than the samples are left to the evaluation.
bool leaves_domain(Formula formula, double low, double high) {
  constexpr double slack = 1e-9;
  switch (formula) {
    case Formula::sqrt: case Formula::power1_5: case Formula::inverse_sqrt: case Formula::log: return low < -slack;
    case Formula::arcsin: case Formula::arccos: case Formula::arctanh: return low < -1 - slack || high > 1 + slack;
    default: return false;
  }
}

void row_of_cells(const AffineCells& p, Evaluate evaluate, int64_t row, double* scaled, double* values, CellSums* sums) {
  constexpr int lanes = Simd<double>::lanes;
  const double one_end = p.a[row] * p.smallest_x, other_end = p.a[row] * p.largest_x;
  const double low = one_end < other_end ? one_end : other_end, high = one_end < other_end ? other_end : one_end;
  for (int64_t first = 0; first < p.N; first += kSamples) {
    const int count = int(smaller(kSamples, p.N - first)), whole = count / lanes * lanes;
    // Stored, such that the product is rounded before b is added, as in PyTorch: a cell whose values are NaN for a sample stays one.
    for (int n = 0; n < count; ++n) scaled[n] = p.a[row] * p.x[first + n];
    for (int n = count; n < whole + lanes; ++n) scaled[n] = scaled[count - 1];
    const double* const target = p.target + first;
    for (int64_t column = 0; column < p.B; ++column) {
      CellSums& sum = sums[column];
      if (first == 0 && leaves_domain(p.formula, low + p.b[column], high + p.b[column])) sum = {__builtin_nan(""), 0, 0, 0};
      else if (first == 0) sum.shift = 0;
      if (sum.shift != sum.shift) continue;  // so is r2
      evaluate(scaled, p.b[column], count, values);
      if (first == 0) {
        Real of_vectors{};
        for (int n = 0; n < whole; n += lanes) of_vectors += load(values + n);
        double of_block = sum_lanes<double>(of_vectors);
        for (int n = whole; n < count; ++n) of_block += values[n];
        sum = {of_block / count, 0, 0, 0};
      }
      const double shift = sum.shift;
      Real total{}, square{}, along{};
      for (int n = 0; n < whole; n += lanes) {
        const Real centred = load(values + n) - shift;
        total += centred;
        square += centred * centred;
        along += centred * load(target + n);
      }
      sum.total += sum_lanes<double>(total);
      sum.square += sum_lanes<double>(square);
      sum.along += sum_lanes<double>(along);
      for (int n = whole; n < count; ++n) {
        const double centred = values[n] - shift;
        sum.total += centred;
        sum.square += centred * centred;
        sum.along += centred * target[n];
      }
    }
  }
  for (int64_t column = 0; column < p.B; ++column) {
    const CellSums& sum = sums[column];
    const double variance = sum.square - sum.total * sum.total / double(p.N) + (sum.shift - sum.shift);
    p.r2[row * p.B + column] = sum.along * sum.along / (variance * p.square_of_target + kRidge);
  }
}

void affine_cells(const AffineCells& p, ParallelFor parallel_for) {
  const Evaluate evaluate = evaluation_of(p.formula);
  run_parallel(parallel_for, p.A, p.B * divide_up(p.N, Simd<double>::lanes) * 20, [&](int64_t begin, int64_t end) {
    Buffer<double> scaled(kSamples + Simd<double>::lanes), values(kSamples + Simd<double>::lanes);
    Buffer<CellSums> sums(p.B);
    for (int64_t row = begin; row < end; ++row) row_of_cells(p, evaluate, row, scaled.data, values.data, sums.data);
  });
}

}  // namespace
}  // namespace KAN_NAMESPACE
