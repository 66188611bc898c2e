// Computes the gradients of a layer's outputs, or of the magnitudes of its edges, over chunks of features: with respect to the
// inputs, to the weights, or both from one evaluation.
#pragma once

#include "namespace.inl"
#include "simd.inl"
#include "contract.inl"
#include "tiling.inl"
#include "packing.inl"
#include "edges_in_memory.inl"
#include "coefficients.inl"
#include "evaluation.inl"
#include "few_outputs.inl"
#include "few_rows.inl"
#include "edges.inl"
#include "weight_sums.inl"

namespace KAN_NAMESPACE {
namespace {

// The rows of g that a block needs, tile by tile. If g already has that layout, it is read in place.
template <class C>
struct GradientTiles {
  const TiledLayer<C>& layer;
  const bool in_place;
  Buffer<C> packed;
  int64_t first_row = 0, rows = 0;

  GradientTiles(const TiledLayer<C>& layer_, int64_t block)
      : layer(layer_),
        in_place(is_stored_as<C>(layer.problem.storage) && layer.problem.g.stride[1] == 1 && layer.tiles == 1 &&
                 layer.problem.O == layer.padded_outputs),
        packed(in_place ? 0 : block * layer.padded_outputs) {}

  void read(int64_t first_row_, int64_t rows_) {
    first_row = first_row_;
    rows = rows_;
    const Problem& p = layer.problem;
    for (int64_t t = 0; t < layer.tiles && !in_place; ++t) {
      const Tile tile = layer.tile(t);
      const int64_t width = tile.vectors * Simd<C>::lanes;
      pack_rows(p.storage, p.g, first_row, rows, tile.first, smaller(width, p.O - tile.first), &packed[rows * tile.first], width);
    }
  }

  const C* data(const Tile& tile) const {
    return in_place ? static_cast<const C*>(layer.problem.g.data) + first_row * stride(tile) : &packed[rows * tile.first];
  }
  int64_t stride(const Tile& tile) const { return in_place ? layer.problem.g.stride[0] : tile.vectors * Simd<C>::lanes; }
};

// Adds the sum of the lanes of products[b] to result[b]. `rows` is a multiple of the number of lanes.
template <class C>
void add_products(const C* products, int rows, C* result) {
  constexpr int lanes = Simd<C>::lanes;
  for (int b = 0; b < rows; b += lanes) {
    V<C> block[lanes];
#pragma GCC unroll 16
    for (int l = 0; l < lanes; ++l) block[l] = load(products + (b + l) * lanes);
    store<C>(result + b, load(result + b) + sum_each<C>(block));
  }
}

// Adds the gradient of the inputs for one feature and tile to result[b].
template <class C, int LIVE, int R>
void add_input_gradient(EvaluationScratch<C>& evaluated, int64_t f, const CoefTile<C>& coef, const C* g, int64_t g_stride,
                        C* products, C* result) {
  const Inputs<C> inputs = evaluated.input_gradient_inputs(f);
  if constexpr (LIVE < 0)
    backward_input_tile_general(inputs, coef, g, g_stride, products);
  else
    backward_input_tile<C, LIVE, R>(inputs, coef, g, g_stride, products);
  add_products(products, evaluated.padded, result);
}

// The number of inputs of a run whose terms are summed at once. It is smaller for signs: if the function of an edge keeps its sign,
// the rounding errors of its terms have one sign as well and add up.
constexpr int kSummedAtOnce = kLargestBlock, kSignsAtOnce = 16;

enum class Way { none, tiles, few_outputs };

// Decides how each requested gradient is computed. The gradients of the edges' magnitudes use signs in place of g; if both are
// requested, they must be computed the same way.
struct GradientPlan {
  Way input = Way::none, coef = Way::none;
  bool of_edges;

  template <class C>
  GradientPlan(const TiledLayer<C>& layer, bool wants_coef) : of_edges(layer.problem.edge_weight.data != nullptr) {
    const Problem& p = layer.problem;
    const bool fits = layer.few_outputs_table_vectors() > 0, few_products = (p.G + p.K + 1) * p.O <= kFewOutputsMostProducts;
    const auto way = [](bool has_few_outputs) { return has_few_outputs ? Way::few_outputs : Way::tiles; };
    if (p.input_gradient != nullptr) input = way(fits && (few_products || !of_edges || !wants_coef));
    if (wants_coef) coef = way(fits && few_products);
  }
  bool in_tiles() const { return input == Way::tiles || coef == Way::tiles; }
  bool few_outputs() const { return input == Way::few_outputs || coef == Way::few_outputs; }
  // Return whether the coefficients are read.
  bool reads_tiles() const { return input == Way::tiles || (of_edges && coef == Way::tiles); }
  bool reads_few_outputs() const { return input == Way::few_outputs || (of_edges && coef == Way::few_outputs); }
};

// Processes one thread's blocks of rows x chunks of features.
template <class C>
struct GradientWorker {
  const TiledLayer<C>& layer;
  const GradientPlan plan;
  const FewOutputsCoefficients<C>& few_outputs_coefficients;
  WeightSums<C>& sums;
  const int64_t chunk, group;
  // True if there is a single block of rows; the sums of a tile are then written while they are in L1.
  const bool by_tile;
  EvaluationScratch<C> inputs;
  GradientTiles<C> g;
  DenseBases<C> bases;
  Buffer<C> g_of_outputs;  // (O, block), for few outputs
  Buffer<C> edge_weight;   // (features, padded_outputs), divided by N
  Buffer<C> signs;         // signs times edge_weight for a feature and a tile, used in place of g
  Buffer<C> products, result;
  PanelReader<C> panel;
  EdgeWriter<C> writer;
  Buffer<C> own_sums;

  GradientWorker(const GradientPlan& plan_, const Coefficients<C>& coefficients, const FewOutputsCoefficients<C>& few_outputs_coefficients_,
                 WeightSums<C>& sums_, int64_t block, int64_t chunk_)
      : layer(coefficients.layer), plan(plan_), few_outputs_coefficients(few_outputs_coefficients_), sums(sums_), chunk(chunk_),
        group(layer.group_features(chunk)), by_tile(plan.coef == Way::tiles && layer.tiles > 1 && layer.problem.N <= block),
        inputs(layer, block, chunk, group, layer.problem.input_gradient_of_next_order, plan.in_tiles()), g(layer, plan.of_edges ? 0 : block),
        bases(plan.coef == Way::few_outputs ? layer.problem.G + layer.problem.K : -1, inputs.room),
        g_of_outputs(plan.few_outputs() ? layer.problem.O * inputs.room : 0), edge_weight(plan.of_edges ? chunk * layer.padded_outputs : 0),
        signs(plan.of_edges && plan.in_tiles() ? block * tile_width() : 0),
        products(plan.input == Way::tiles ? (block + Simd<C>::lanes) * Simd<C>::lanes : 0),
        result(plan.input != Way::none ? chunk * inputs.room : 0), panel(coefficients, plan.reads_tiles() ? chunk : 0),
        writer(layer.problem), own_sums(sums.own_size(chunk, by_tile ? tile_width() : layer.padded_outputs)) {}

  // Adds the rows of a part, block by block.
  void add_rows(const RowPart& part, int64_t block) {
    if (!by_tile) chunk_sums = sums.start_chunk(part.split, part.i0, part.features, own_sums.data);
    for (int64_t f = 0; plan.of_edges && f < part.features; ++f) read_edge_weight(part.i0 + f, &edge_weight[f * layer.padded_outputs]);
    for (int64_t n0 = part.n0; n0 < part.end; n0 += block)
      add_block(n0, smaller(block, part.end - n0), part.i0, part.features, part.split);
    if (!by_tile) sums.finish_chunk(writer, part.i0, part.features, chunk_sums);
  }

 private:
  C* chunk_sums = nullptr;

  int64_t tile_width() const { return layer.tile_vectors * Simd<C>::lanes; }

  void add_block(int64_t n0, int64_t rows, int64_t i0, int64_t features, int64_t split) {
    const Problem& p = layer.problem;
    inputs.read(n0, rows, i0, features);
    for (int64_t f = 0; by_tile && f < features; ++f) sums.finite[split * p.I + i0 + f] = inputs.is_finite(f);
    if (plan.in_tiles() && !plan.of_edges) g.read(n0, rows);
    if (plan.few_outputs() && !plan.of_edges)
      read_transposed(p.storage, p.g, n0, rows, inputs.padded, 0, p.O, g_of_outputs.data, inputs.room);
    for (int64_t f = 0; plan.input == Way::tiles && f < features; ++f)
      __builtin_memset(&result[f * inputs.room], 0, size_t(inputs.padded) * sizeof(C));
    for (int64_t f = 0; f < features; f += group) add_group(i0, features, f, smaller(group, features - f));
    if (plan.input != Way::none) write_transposed(p.storage, result.data, inputs.room, rows, features, p.input_gradient, n0, i0, p.I);
    for (int64_t f = 0; sums.wanted && !by_tile && f < features; ++f) sums.note_finite(split, i0 + f, inputs.is_finite(f));
  }

  void read_edge_weight(int64_t i, C* to) const {
    const Problem& p = layer.problem;
    read_transposed(p.storage, p.edge_weight, 0, p.O, layer.padded_outputs, i, 1, to, layer.padded_outputs);
    for (int64_t o = 0; o < layer.padded_outputs; ++o) to[o] /= C(p.N);
  }

  // Adds features f0 .. f0 + features - 1 of the chunk that begins with feature i0.
  void add_group(int64_t i0, int64_t chunk_features, int64_t f0, int64_t features) {
    inputs.evaluate(f0, features);
    if (plan.few_outputs()) add_few_outputs(i0, f0, features);
    if (!plan.in_tiles()) return;
    with_live_rows(layer.live, [&](auto live) {
      constexpr int LIVE = decltype(live)::value;
      for (int64_t t = 0; t < layer.tiles; ++t) {
        const Tile tile = layer.tile(t);
        // With several tiles, a group is the whole chunk.
        if (f0 == 0 && plan.reads_tiles()) panel.open(tile, i0, chunk_features);
        with_width<widest_tile<LIVE>()>(tile.vectors, [&](auto width) {
          add_tile<LIVE, decltype(width)::value>(tile, i0, f0, features);
        });
      }
    });
  }

  void add_few_outputs(int64_t i0, int64_t f0, int64_t features) {
    const int64_t O = layer.problem.O;
    with_few_outputs_table(layer.live, few_outputs_coefficients.table_vectors, [&](auto live, auto vectors) {
      constexpr int LIVE = decltype(live)::value;
      for (int64_t f = 0; f < features; ++f) {
        const int64_t i = i0 + f0 + f;
        if (plan.of_edges)
          write_few_outputs_signs<C, LIVE, decltype(vectors)::value>(
              inputs.inputs(f), inputs.padded, few_outputs_coefficients.table(i), few_outputs_coefficients.base_weights(i), O,
              &edge_weight[(f0 + f) * layer.padded_outputs], g_of_outputs.data, inputs.room);
        if (plan.input == Way::few_outputs)
          few_outputs_backward_input<C, LIVE, decltype(vectors)::value>(
              inputs.input_gradient_inputs(f), inputs.padded, few_outputs_coefficients.table(i), few_outputs_coefficients.base_weights(i), O,
              g_of_outputs.data, inputs.room, &result[(f0 + f) * inputs.room]);
        if (plan.coef != Way::few_outputs) continue;
        C* const to = chunk_sums + (f0 + f) * sums.rows * sums.row_length;
        bases.template spread<LIVE>(inputs.inputs(f), inputs.padded);
        bases.add_products(g_of_outputs.data, inputs.padded, O, to, sums.row_length, to + sums.spline_rows * sums.row_length);
      }
    });
  }

  template <int LIVE, int R>
  void add_tile(const Tile& tile, int64_t i0, int64_t f0, int64_t features) {
    constexpr int64_t width = R * Simd<C>::lanes;
    const C* from = plan.of_edges ? signs.data : g.data(tile);
    const int64_t g_stride = plan.of_edges ? width : g.stride(tile), row_length = by_tile ? width : sums.row_length;
    C* const to = by_tile ? own_sums.data : chunk_sums + f0 * sums.rows * row_length + tile.first;
    if (by_tile) __builtin_memset(to, 0, size_t(features * sums.rows * width) * sizeof(C));
    const int at_once = plan.of_edges ? kSignsAtOnce : kSummedAtOnce;
    for (int64_t f = 0; f < features; ++f) {
      const int64_t i = i0 + f0 + f;
      if (plan.of_edges)
        write_signs<C, LIVE, R>(inputs.inputs(f), panel.feature(i), &edge_weight[(f0 + f) * layer.padded_outputs + tile.first],
                                signs.data);
      if (plan.input == Way::tiles)
        add_input_gradient<C, LIVE, R>(inputs, f, panel.feature(i), from, g_stride, products.data, &result[(f0 + f) * inputs.room]);
      if (plan.coef != Way::tiles) continue;
      C *spline = to + f * sums.rows * row_length, *base = spline + sums.spline_rows * row_length;
      if constexpr (LIVE < 0)
        backward_coef_tile_general(inputs.inputs(f), at_once, from, g_stride, spline, row_length, base);
      else
        backward_coef_tile<C, LIVE, R>(inputs.inputs(f), at_once, !plan.of_edges, from, g_stride, spline, row_length, base);
    }
    if (by_tile) sums.write(writer, i0, features, tile.first, smaller(width, layer.problem.O - tile.first), to, width);
  }
};

template <class C>
void backward(const Problem& p, ParallelFor parallel_for) {
  TiledLayer<C> layer(p);
  if (p.N <= kFewRows && p.edge_weight.data == nullptr) return few_rows_backward(layer, parallel_for);
  layer.prepare(parallel_for);
  const RowSplits splits(layer);
  WeightSums<C> sums(layer, splits.count);
  const GradientPlan plan(layer, sums.wanted);
  const Coefficients<C> coefficients(layer, plan.reads_tiles() && p.N > splits.block, parallel_for);
  const FewOutputsCoefficients<C> few_outputs_coefficients(layer, plan.reads_few_outputs(), parallel_for);
  splits.run(parallel_for, layer.work_per_input(), [&] {
    return [&, worker = GradientWorker<C>(plan, coefficients, few_outputs_coefficients, sums, splits.block,
                                          splits.chunk)](const RowPart& part) mutable { worker.add_rows(part, splits.block); };
  });
  sums.add_splits(parallel_for);
}

}  // namespace
}  // namespace KAN_NAMESPACE
