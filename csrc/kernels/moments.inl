// Computes the sums over the rows of products of two bases, and their gradient. Products of bases K+1 or more apart are 0. The
// computation is in double for every type of the inputs, because variances are small differences of these sums.
#pragma once

#include "namespace.inl"
#include "simd.inl"
#include "row_sort.inl"
#include "contract.inl"
#include "tiling.inl"
#include "packing.inl"
#include "evaluation.inl"

namespace KAN_NAMESPACE {
namespace {

// The layout of a feature's moments, (M+2, K+4), and the positions in it of the moments of a run. Terms 0 .. live-1 of an input are
// its live values. They are followed by the base activation, e = 1 - the sum of the live values, and 1.
struct MomentLayout {
  int64_t M, row;  // row: K + 4
  int live;

  MomentLayout(const Problem& p, int live_) : M(p.G + p.K), row(p.K + 4), live(live_) {}
  int64_t size() const { return (M + 2) * row; }
  // Returns the position of the product of terms k <= c, where k < live + 2, for a run whose first live basis is `first`.
  int64_t at(int64_t first, int k, int c) const {
    const int64_t m = k < live ? first + k : M + k - live;
    return m * row + (c < live ? c - k : c == k ? 0 : row - 3 + c - live);
  }
};

// The terms of an input as vectors, and a matrix with one row per term.
template <int LIVE>
struct RunTerms {
  static constexpr int lanes = Simd<double>::lanes;
  static constexpr int kVectors = LIVE < 0 ? 1 : (LIVE + 3 + lanes - 1) / lanes;
  const int live, size, vectors;
  Buffer<double> terms, matrix;

  explicit RunTerms(int live_)
      : live(LIVE < 0 ? live_ : LIVE), size(live + 3), vectors(LIVE < 0 ? (size + lanes - 1) / lanes : kVectors),
        terms(vectors * lanes), matrix(size * vectors * lanes) {
    __builtin_memset(terms.data, 0, size_t(vectors * lanes) * sizeof(double));
    __builtin_memset(matrix.data, 0, size_t(size * vectors * lanes) * sizeof(double));
  }

  double* row(int k) { return &matrix[k * vectors * lanes]; }

  // Reads the terms of an input: `one` is 1 if `values` holds values and 0 if it holds slopes.
  [[gnu::always_inline]] void read(const Inputs<double>& inputs, const double* values, int position, double one) {
    const double* value = values + inputs.place[position];
    double sum = 0;
    for (int k = 0; k < (LIVE < 0 ? live : LIVE); ++k) sum += terms[k] = value[k * kValueStride];
    terms[live] = values[live * kValueStride + inputs.runs.order[position]];
    terms[live + 1] = one - sum;
    terms[live + 2] = one;
  }
};

// Adds the products of the terms of every input to `moments`.
template <int LIVE>
void add_moments(const Inputs<double>& inputs, const MomentLayout& layout, double* moments) {
  constexpr int lanes = Simd<double>::lanes;
  RunTerms<LIVE> input(inputs.live);
  const int size = input.size;
  const Runs& runs = inputs.runs;
  for (int run = 0; run < runs.count; ++run) {
    if constexpr (LIVE < 0) {
      __builtin_memset(input.matrix.data, 0, size_t(size * input.vectors * lanes) * sizeof(double));
      for (int position = runs.start[run]; position < runs.start[run + 1]; ++position) {
        input.read(inputs, inputs.values, position, 1.0);
        for (int k = 0; k < size - 1; ++k)
          for (int c = 0; c < size; ++c) input.row(k)[c] += input.terms[k] * input.terms[c];
      }
    } else {
      constexpr int vectors = RunTerms<LIVE>::kVectors;
      V<double> sum[LIVE + 2][vectors] = {};
      for (int position = runs.start[run]; position < runs.start[run + 1]; ++position) {
        input.read(inputs, inputs.values, position, 1.0);
        for (int k = 0; k < LIVE + 2; ++k)
          for (int v = 0; v < vectors; ++v) sum[k][v] += broadcast(input.terms[k]) * load(&input.terms[v * lanes]);
      }
      for (int k = 0; k < LIVE + 2; ++k)
        for (int v = 0; v < vectors; ++v) store<double>(input.row(k) + v * lanes, sum[k][v]);
    }
    for (int k = 0; k < size - 1; ++k)
      for (int c = k; c < size; ++c) moments[layout.at(runs.first[run], k, c)] += input.row(k)[c];
  }
}

// Computes result[b], the gradient of the sum of `weight` times the moments: slopes^T W values, where W is the symmetric matrix of
// weights of a run's terms.
template <int LIVE>
void moments_gradient(const Inputs<double>& inputs, const double* slopes, const MomentLayout& layout, const double* weight,
                      double* result) {
  RunTerms<LIVE> value(inputs.live), slope(inputs.live);
  const int size = LIVE < 0 ? value.size : LIVE + 3;
  const Runs& runs = inputs.runs;
  for (int run = 0; run < runs.count; ++run) {
    for (int k = 0; k < size - 1; ++k)
      for (int c = 0; c < size; ++c)
        value.row(k)[c] = weight[layout.at(runs.first[run], c < k ? c : k, c < k ? k : c)] * (c == k ? 2.0 : 1.0);
    for (int position = runs.start[run]; position < runs.start[run + 1]; ++position) {
      value.read(inputs, inputs.values, position, 1.0);
      slope.read(inputs, slopes, position, 0.0);
      double sum = 0;
      for (int k = 0; k < size - 1; ++k) {
        double along = 0;  // vector loads would wait for the terms just stored and take 1.2 times as long
        for (int c = 0; c < size; ++c) along += value.row(k)[c] * value.terms[c];
        sum += slope.terms[k] * along;
      }
      result[runs.order[position]] = sum;
    }
  }
}

// Processes one thread's blocks of rows x chunks of features.
struct MomentsWorker {
  const TiledLayer<double>& layer;
  const MomentLayout layout;
  const int64_t group;
  EvaluationScratch<double> inputs;
  Buffer<double> result;

  MomentsWorker(const TiledLayer<double>& layer_, int64_t block, int64_t chunk)
      : layer(layer_), layout(layer.problem, layer.live), group(layer.group_features(chunk)),
        inputs(layer, block, chunk, group, layer.problem.input_gradient != nullptr, true),
        result(layer.problem.input_gradient != nullptr ? chunk * inputs.room : 0) {}

  // `sums` holds the moments of the part's features, and is null if only the gradient is computed.
  void add_rows(const RowPart& part, int64_t block, double* sums) {
    const Problem& p = layer.problem;
    for (int64_t n0 = part.n0; n0 < part.end; n0 += block) {
      const int64_t rows = smaller(block, part.end - n0);
      inputs.read(n0, rows, part.i0, part.features);
      for (int64_t f0 = 0; f0 < part.features; f0 += group) add_group(part.i0, f0, smaller(group, part.features - f0), sums);
      if (p.input_gradient != nullptr)
        write_transposed(p.storage, result.data, inputs.room, rows, part.features, p.input_gradient, n0, part.i0, p.I);
    }
  }

 private:
  void add_group(int64_t i0, int64_t f0, int64_t features, double* sums) {
    inputs.evaluate(f0, features);
    with_live_rows(layer.live, [&](auto live) {
      constexpr int LIVE = decltype(live)::value;
      for (int64_t f = 0; f < features; ++f) {
        const Problem& p = layer.problem;
        if (p.input_gradient != nullptr) {
          const double *slopes = inputs.input_gradient_inputs(f).values, *weight = p.moment_weight + (i0 + f0 + f) * layout.size();
          moments_gradient<LIVE>(inputs.inputs(f), slopes, layout, weight, &result[(f0 + f) * inputs.room]);
        } else {
          double* own = sums + (f0 + f) * layout.size();
          add_moments<LIVE>(inputs.inputs(f), layout, own);
          // If x is not finite, every basis of the dense formula is NaN, not only those read here.
          for (int64_t k = 0; p.K > 0 && !inputs.is_finite(f0 + f) && k < layout.size(); ++k) own[k] += __builtin_nan("");
        }
      }
    });
  }
};

template <class Add>
void with_moments_worker(const TiledLayer<double>& layer, const RowSplits& splits, ParallelFor parallel_for, const Add& add) {
  splits.run(parallel_for, 4 * (layer.live + 3) * (layer.live + 3), [&] {
    return [&, worker = MomentsWorker(layer, splits.block, splits.chunk)](const RowPart& part) mutable { add(worker, part); };
  });
}

void moments(const Problem& p, ParallelFor parallel_for) {
  TiledLayer<double> layer(p);
  layer.prepare(parallel_for);
  const RowSplits splits(layer);
  const int64_t feature_size = MomentLayout(p, layer.live).size(), all = p.I * feature_size;
  Buffer<double> later((splits.count - 1) * all);  // the sums of every part but the first
  with_moments_worker(layer, splits, parallel_for, [&](auto& worker, const RowPart& part) {
    double* sums = (part.split == 0 ? p.moments : &later[(part.split - 1) * all]) + part.i0 * feature_size;
    __builtin_memset(sums, 0, size_t(part.features * feature_size) * sizeof(double));
    worker.add_rows(part, splits.block, sums);
  });
  for (int64_t split = 1; split < splits.count; ++split) add_to(p.moments, &later[(split - 1) * all], all);
}

void moments_backward(const Problem& p, ParallelFor parallel_for) {
  TiledLayer<double> layer(p);
  layer.prepare(parallel_for);
  const RowSplits splits(layer);
  with_moments_worker(layer, splits, parallel_for,
                      [&](auto& worker, const RowPart& part) { worker.add_rows(part, splits.block, nullptr); });
}

}  // namespace
}  // namespace KAN_NAMESPACE
