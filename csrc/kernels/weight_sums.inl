// Accumulates the gradients of the weights and writes them.
#pragma once

#include "namespace.inl"
#include "simd.inl"
#include "tiling.inl"
#include "edges_in_memory.inl"

namespace KAN_NAMESPACE {
namespace {

// The sums of a feature are rows of outputs: one per coefficient, then one for the weight of the base activation. If the batch is
// split, the sums of the splits are added in order. If there is a single split, its sums are in a buffer of the thread that
// computes them, so that it writes them while they are in its cache.
template <class C>
struct WeightSums {
  const Problem& problem;
  const bool wanted;
  const int64_t spline_rows, rows, row_length, splits;
  const bool spreads_nan;
  Buffer<C> memory;  // (split, I, rows, row_length), if there are several splits
  Buffer<uint8_t> finite;

  WeightSums(const TiledLayer<C>& layer, int64_t splits_)
      : problem(layer.problem),
        wanted(problem.spline_weight_gradient != nullptr || problem.spline_scaler_gradient != nullptr ||
               problem.base_weight_gradient != nullptr),
        spline_rows(layer.spline_rows), rows(spline_rows + 1), row_length(layer.padded_outputs), splits(splits_),
        spreads_nan(layer.live > 0 && layer.tables.degree > 0), memory(wanted && splits > 1 ? splits * problem.I * rows * row_length : 0),
        finite(wanted ? splits * problem.I : 0) {}

  // Returns the size of the buffer that a thread needs for a chunk of `features` features and tiles of `width` outputs.
  int64_t own_size(int64_t features, int64_t width) const { return wanted && splits == 1 ? features * rows * width : 0; }

  // Returns the sums of features i0 .. i0 + features - 1, cleared.
  C* start_chunk(int64_t split, int64_t i0, int64_t features, C* own) {
    if (!wanted) return nullptr;
    C* const sums = splits == 1 ? own : at(split, i0);
    __builtin_memset(sums, 0, size_t(features * rows * row_length) * sizeof(C));
    for (int64_t i = i0; i < i0 + features; ++i) finite[split * problem.I + i] = 1;
    return sums;
  }

  void note_finite(int64_t split, int64_t i, bool is_finite) { finite[split * problem.I + i] &= is_finite; }

  // Writes a chunk, unless there are other splits to add first.
  void finish_chunk(EdgeWriter<C>& writer, int64_t i0, int64_t features, C* sums) const {
    if (wanted && splits == 1) write(writer, i0, features, 0, problem.O, sums, row_length);
  }

  // Writes outputs first_output .. first_output + outputs - 1 of features whose sums are complete. Overwrites the sums.
  void write(EdgeWriter<C>& writer, int64_t i0, int64_t features, int64_t first_output, int64_t outputs, C* sums, int64_t width) const {
    // If x is not finite, every basis of the dense formula is NaN, not only the rows read here.
    for (int64_t f = 0; spreads_nan && f < features; ++f)
      for (int64_t k = 0; finite[i0 + f] == 0 && k < spline_rows * width; ++k) sums[f * rows * width + k] = C(__builtin_nan(""));
    writer.write(i0, features, first_output, outputs, spline_rows, sums, width);
  }

  void add_splits(ParallelFor parallel_for) {
    if (!wanted || splits == 1) return;
    const int64_t chunks = divide_up(problem.I, kFeaturesAtOnce), size = rows * row_length;
    run_parallel(parallel_for, chunks, kFeaturesAtOnce * splits * size / 4, [&](int64_t begin, int64_t end) {
      EdgeWriter<C> writer(problem);
      for (int64_t chunk = begin; chunk < end; ++chunk) {
        const int64_t i0 = chunk * kFeaturesAtOnce, features = smaller(kFeaturesAtOnce, problem.I - i0);
        for (int64_t split = 1; split < splits; ++split) {
          add_to(at(0, i0), at(split, i0), features * size);
          for (int64_t i = i0; i < i0 + features; ++i) finite[i] &= finite[split * problem.I + i];
        }
        write(writer, i0, features, 0, problem.O, at(0, i0), row_length);
      }
    });
  }

 private:
  C* at(int64_t split, int64_t i) { return &memory[(split * problem.I + i) * rows * row_length]; }
};

}  // namespace
}  // namespace KAN_NAMESPACE
