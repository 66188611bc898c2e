// Prepares the coefficients for the inner loops: multiplied by their scaler and packed for a tile of outputs, one row per
// coefficient.
#pragma once

#include "namespace.inl"
#include "simd.inl"
#include "contract.inl"
#include "tiling.inl"
#include "packing.inl"
#include "edges_in_memory.inl"

namespace KAN_NAMESPACE {
namespace {

// Packs panels. A panel holds, for every feature, M rows and the row of the base activation, each as wide as the tile. Entries
// beyond the last output are 0.
template <class C>
struct Packer {
  static constexpr int lanes = Simd<C>::lanes;
  const TiledLayer<C>& layer;
  const int64_t rows;  // rows per feature
  const bool scales;
  EdgeReader<C> reader;
  Buffer<C> scale;

  explicit Packer(const TiledLayer<C>& layer_)
      : layer(layer_), rows(layer.spline_rows + 1), scales(layer.problem.spline_scaler.data != nullptr), reader(layer.problem),
        scale(scales ? kFeaturesAtOnce * lanes : 0) {}

  void pack(const Tile& tile, int64_t first_feature, int64_t features, C* to) {
    const int64_t width = tile.vectors * lanes;
    // Every store to a column of the tile goes to a different cache line. At 512 -> 512, half of the time is spent waiting for
    // these lines unless a sequential pass brings them into the cache first.
    __builtin_memset(to, 0, size_t(features * rows * width) * sizeof(C));
    for (int64_t f = 0; f < features; f += reader.features_at_once) {
      const int64_t some = smaller(reader.features_at_once, features - f);
      for (int64_t column = 0; column < width; column += lanes) {
        const bool is_last = column + lanes >= width;
        const NextBlock<C> next = reader.next_block(tile.first + (is_last ? 0 : column + lanes), first_feature + f + (is_last ? some : 0), some);
        pack_some(tile.first + column, first_feature + f, some, next, to + f * rows * width + column, width);
      }
    }
  }

 private:
  void pack_some(int64_t o0, int64_t i0, int64_t features, const NextBlock<C>& next_block, C* to, int64_t width) {
    const Problem& p = layer.problem;
    const int64_t outputs = smaller(lanes, p.O - o0);
    C* const base = to + layer.spline_rows * width;
    if (p.base_weight.data != nullptr)
      read_transposed(p.storage, p.base_weight, o0, outputs, lanes, i0, features, base, rows * width);
    else
      for (int64_t f = 0; f < features; ++f) store<C>(base + f * rows * width, V<C>{});
    if (layer.spline_rows == 0) return;
    if (scales) read_transposed(p.storage, p.spline_scaler, o0, outputs, lanes, i0, features, scale.data, lanes);
    reader.open(o0, i0, features);
    const Index<C> exists = first_lanes<C>(outputs);
    with_record_width<C>(reader.M, [&](auto record) {
      const typename EdgeReader<C>::Edges edges = reader.edges;
      const NextBlock<C> next = next_block;
      const int64_t M = reader.M;
      for (int64_t f = 0; f < features; ++f) {
        next.template prefetch_part<false>(f);
        const V<C> factor = scales ? load(&scale[f * lanes]) : broadcast(C(1));
        C* const feature = to + f * rows * width;
        read_edges<C, decltype(record)::value>(edges.of_output, f * edges.stride, M, [&](int64_t m, V<C> row) __attribute__((always_inline)) {
          store<C>(feature + m * width, (V<C>)((Index<C>)(row * factor) & exists));
        });
      }
    });
  }
};

template <class C>
struct PanelReader;

// The panels of a whole layer, (tile, feature, row, tile width), packed once. Empty if there is only one block of rows: every
// thread then packs a panel just before it reads it.
template <class C>
struct Coefficients {
  using Reader = PanelReader<C>;
  const TiledLayer<C>& layer;
  const int64_t rows;
  Buffer<C> packed;

  Coefficients(const TiledLayer<C>& layer_, bool at_once, ParallelFor parallel_for) : layer(layer_), rows(layer.spline_rows + 1) {
    if (!at_once) return;
    const int64_t I = layer.problem.I, chunks = divide_up(I, kFeaturesAtOnce);
    packed.allocate(I * rows * layer.padded_outputs);
    run_parallel(parallel_for, layer.tiles * chunks, 2 * kFeaturesAtOnce * rows * layer.tile_vectors, [&](int64_t begin, int64_t end) {
      Packer<C> packer(layer);
      for (int64_t task = begin; task < end; ++task) {
        const Tile tile = layer.tile(task / chunks);
        const int64_t i0 = task % chunks * kFeaturesAtOnce;
        packer.pack(tile, i0, smaller(kFeaturesAtOnce, I - i0), panel(tile, i0));
      }
    });
  }

  // Returns the panel of the tile, starting at feature i.
  C* panel(const Tile& tile, int64_t i) const {
    return packed.data + rows * (layer.problem.I * tile.first + i * tile.vectors * Simd<C>::lanes);
  }
};

// Gives a thread access to the panel of one tile and some features.
template <class C>
struct PanelReader {
  const Coefficients<C>& coefficients;
  Packer<C> packer;
  Buffer<C> own;
  const C* panel = nullptr;
  int64_t first_feature = 0, width = 0;

  // `features` is the largest number of features opened at a time, or 0 if the reader is never opened.
  PanelReader(const Coefficients<C>& coefficients_, int64_t features)
      : coefficients(coefficients_), packer(coefficients.layer),
        own(coefficients.packed.data != nullptr ? 0
                                                : features * coefficients.rows * coefficients.layer.tile_vectors * Simd<C>::lanes) {}

  void open(const Tile& tile, int64_t first_feature_, int64_t features) {
    first_feature = first_feature_;
    width = tile.vectors * Simd<C>::lanes;
    if (coefficients.packed.data != nullptr) {
      panel = coefficients.panel(tile, first_feature);
    } else {
      packer.pack(tile, first_feature, features, own.data);
      panel = own.data;
    }
  }

  CoefTile<C> feature(int64_t i) const {
    const C* start = panel + (i - first_feature) * coefficients.rows * width;
    return {start, width, start + coefficients.layer.spline_rows * width};
  }
};

}  // namespace
}  // namespace KAN_NAMESPACE
