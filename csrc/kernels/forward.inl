// Implements spline_forward over blocks of rows.
#pragma once

#include "namespace.inl"
#include "simd.inl"
#include "contract.inl"
#include "tiling.inl"
#include "packing.inl"
#include "coefficients.inl"
#include "evaluation.inl"
#include "few_outputs.inl"
#include "few_rows.inl"

namespace KAN_NAMESPACE {
namespace {

// Adds the contribution of some features to y (row, output of the tile).
template <class C>
void forward_features(const EvaluationScratch<C>& inputs, int64_t first_feature, int64_t features,
                      const PanelReader<C>& coefficients, const Tile& tile, C* y) {
  with_live_rows(inputs.layer.live, [&](auto live) {
    constexpr int LIVE = decltype(live)::value;
    with_width<widest_tile<LIVE>()>(tile.vectors, [&](auto width) {
      constexpr int R = decltype(width)::value;
      for (int64_t f = 0; f < features; ++f) {
        const CoefTile<C> coef = coefficients.feature(first_feature + f);
        if constexpr (LIVE < 0)
          forward_tile_general(inputs.inputs(f), coef, y, Simd<C>::lanes);
        else if (inputs.sorts)
          forward_tile<C, LIVE, R>(inputs.inputs(f), coef, y, R * Simd<C>::lanes);
        else
          forward_tile_unsorted<C, LIVE, R>(inputs.inputs(f), coef, y, R * Simd<C>::lanes);
      }
    });
  });
}

// The same for a layer of few outputs, where y is (output, row).
template <class C>
void forward_features(const EvaluationScratch<C>& inputs, int64_t first_feature, int64_t features,
                      const FewOutputsReader<C>& reader, const Tile&, C* y) {
  const FewOutputsCoefficients<C>& coefficients = reader.coefficients;
  with_few_outputs_table(inputs.layer.live, coefficients.table_vectors, [&](auto live, auto vectors) {
    for (int64_t f = 0; f < features; ++f)
      few_outputs_forward<C, decltype(live)::value, decltype(vectors)::value>(
          inputs.inputs(f), inputs.padded, coefficients.table(first_feature + f), coefficients.base_weights(first_feature + f),
          inputs.layer.problem.O, y);
  });
}

// Returns the number of rows in the sums of a block.
template <class C>
int64_t sum_rows(const Coefficients<C>&, int64_t rows) {
  return rows;
}
template <class C>
int64_t sum_rows(const FewOutputsCoefficients<C>&, int64_t rows) {
  return divide_up(rows, Simd<C>::lanes) * Simd<C>::lanes;
}

template <class C>
void write_outputs(const Coefficients<C>& coefficients, const C* sums, int64_t n0, int64_t rows) {
  write_tiles(coefficients.layer, sums, n0, rows);
}
template <class C>
void write_outputs(const FewOutputsCoefficients<C>& coefficients, const C* sums, int64_t n0, int64_t rows) {
  const Problem& p = coefficients.problem;
  write_transposed(p.storage, sums, sum_rows(coefficients, rows), rows, p.O, p.y, n0, 0, p.O);
}

// Computes the sums over a range of features for one thread's blocks of rows.
template <class C, class Coefs>
struct ForwardWorker {
  const TiledLayer<C>& layer;
  const Coefs& coefficients;
  const int64_t chunk, group;
  EvaluationScratch<C> inputs;
  typename Coefs::Reader reader;
  Buffer<C> part;

  ForwardWorker(const TiledLayer<C>& layer_, const Coefs& coefficients_, int64_t block, bool sorts)
      : layer(layer_), coefficients(coefficients_), chunk(smaller(layer.problem.I, kChunkFeatures)),
        group(layer.group_features(chunk)), inputs(layer, block, chunk, group, false, sorts), reader(coefficients, chunk),
        part(layer.problem.I > chunk ? block * layer.tile_vectors * Simd<C>::lanes : 0) {}

  void add_features(int64_t n0, int64_t rows, int64_t first_feature, int64_t end_feature, C* sums) {
    for (int64_t i0 = first_feature; i0 < end_feature; i0 += chunk) {
      const int64_t features = smaller(chunk, end_feature - i0);
      inputs.read(n0, rows, i0, features);
      for (int64_t f = 0; f < features; f += group) {
        inputs.evaluate(f, smaller(group, features - f));
        for (int64_t t = 0; t < layer.tiles; ++t) {
          const Tile tile = layer.tile(t);
          const int64_t size = sum_rows(coefficients, rows) * tile.vectors * Simd<C>::lanes;
          C* of_tile = sums + rows * tile.first;
          // With several tiles, a group is the whole chunk, so the sums of a tile are still in L1 when they are added.
          C* y = i0 == first_feature ? of_tile : part.data;
          if (f == 0) {
            __builtin_memset(y, 0, size_t(size) * sizeof(C));
            reader.open(tile, i0, features);
          }
          forward_features(inputs, i0 + f, smaller(group, features - f), reader, tile, y);
          if (y != of_tile && f + group >= features) add_to(of_tile, y, size);
        }
      }
    }
  }
};

// Computes sums over blocks of rows. If there are few blocks, it splits the features as well, depending only on the shape, and adds
// the partial sums in order.
template <class C, class MakeWorker, class Write>
void forward_blocks(const TiledLayer<C>& layer, int64_t block, int64_t work_per_input, ParallelFor parallel_for,
                    const MakeWorker& make_worker, const Write& write) {
  const Problem& p = layer.problem;
  const int64_t blocks = divide_up(p.N, block), block_size = block * layer.padded_outputs;
  const int64_t chunks = divide_up(p.I, kChunkFeatures), splits = smaller(chunks, divide_up(8, at_least_one(blocks)));
  const auto first_feature = [&](int64_t split) { return smaller(split * chunks / splits * kChunkFeatures, p.I); };
  Buffer<C> partial(splits > 1 ? blocks * splits * block_size : 0);

  const int64_t work = smaller(block, p.N) * (p.I / splits) * work_per_input;
  run_parallel(parallel_for, blocks * splits, work, [&](int64_t begin, int64_t end) {
    auto worker = make_worker();
    Buffer<C> own(splits > 1 ? 0 : block_size);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t n0 = task / splits * block, rows = smaller(block, p.N - n0), split = task % splits;
      C* sums = splits > 1 ? &partial[task * block_size] : own.data;
      worker.add_features(n0, rows, first_feature(split), first_feature(split + 1), sums);
      if (splits == 1) write(sums, n0, rows);
    }
  });
  run_parallel(parallel_for, splits > 1 ? blocks : 0, block * splits * layer.vectors, [&](int64_t begin, int64_t end) {
    for (int64_t b = begin; b < end; ++b) {
      C* sums = &partial[b * splits * block_size];
      for (int64_t s = 1; s < splits; ++s) add_to(sums, sums + s * block_size, block_size);
      write(sums, b * block, smaller(block, p.N - b * block));
    }
  });
}

template <class C, class Coefs>
void forward_with(const TiledLayer<C>& layer, const Coefs& coefficients, int64_t block, bool sorts, ParallelFor parallel_for) {
  forward_blocks(
      layer, block, layer.work_per_input(), parallel_for,
      [&] { return ForwardWorker<C, Coefs>(layer, coefficients, block, sorts); },
      [&](const C* sums, int64_t n0, int64_t rows) { write_outputs(coefficients, sums, n0, rows); });
}

template <class C>
void forward(const Problem& p, ParallelFor parallel_for) {
  TiledLayer<C> layer(p);
  if (p.N <= kFewRows) return few_rows_forward(layer, parallel_for);
  layer.prepare(parallel_for);
  // A single block needs no panels of the whole layer: at 512 -> 512, two blocks of 128 rows take 1.2 times as long as one of 256.
  const int64_t block = layer.block_rows(p.N <= 256 ? 32 : 16);
  if (layer.few_outputs_table_vectors() > 0)
    return forward_with(layer, FewOutputsCoefficients<C>(layer, true, parallel_for), block, false, parallel_for);
  forward_with(layer, Coefficients<C>(layer, p.N > block, parallel_for), block, layer.worth_sorting(block), parallel_for);
}

}  // namespace
}  // namespace KAN_NAMESPACE
