// Computes, for the function of every edge, the mean of its magnitude over the rows, and its signs. The gradients of that mean are
// those of a layer whose g is replaced by the signs.
#pragma once

#include "namespace.inl"
#include "simd.inl"
#include "contract.inl"
#include "tiling.inl"
#include "edges_in_memory.inl"
#include "coefficients.inl"
#include "evaluation.inl"
#include "few_outputs.inl"

namespace KAN_NAMESPACE {
namespace {

constexpr int kMagnitudesAtOnce = 16;  // added in the compute type before the sum continues in double: rounding errors add up

template <class C>
inline Index<C> sign_bits(V<C> v) {
  return (Index<C>)v & (Index<C>)broadcast(C(-0.0));
}
template <class C>
inline V<C> magnitude(V<C> v) {
  return (V<C>)((Index<C>)v ^ sign_bits<C>(v));
}

// Returns `weight` if v > 0, -`weight` if v < 0, and 0 if v is 0 or NaN.
template <class C>
inline V<C> signed_weight(V<C> v, V<C> weight) {
  return magnitude<C>(v) > V<C>{} ? (V<C>)((Index<C>)weight ^ sign_bits<C>(v)) : V<C>{};
}

// Calls visit(b, phi) for every input, where phi holds the values of its edges to the outputs of a tile in R vectors.
template <class C, int LIVE, int R, class Visit>
[[gnu::always_inline]] inline void visit_edges(const Inputs<C>& inputs, const CoefTile<C>& tile, Visit visit) {
  if constexpr (LIVE < 0)
    contract_general(inputs, tile, [&](int64_t b, V<C> phi) __attribute__((always_inline)) { visit(b, &phi); });
  else
    contract_runs<C, LIVE, R>(inputs, tile, visit);
}

// Adds the magnitudes of the edges to sums[0 .. R lanes). Adds a few inputs at a time in the compute type first.
template <class C, int LIVE, int R>
void add_magnitudes(const Inputs<C>& inputs, const CoefTile<C>& tile, double* sums) {
  constexpr int lanes = Simd<C>::lanes;
  V<C> some[R] = {};
  int count = 0;
  const auto flush = [&]() __attribute__((always_inline)) {
    for (int r = 0; r < R; ++r) {
      C lane[lanes];
      store<C>(lane, some[r]);
      for (int l = 0; l < lanes; ++l) sums[r * lanes + l] += double(lane[l]);
      some[r] = V<C>{};
    }
    count = 0;
  };
  visit_edges<C, LIVE, R>(inputs, tile, [&](int64_t, const V<C>* phi) __attribute__((always_inline)) {
    for (int r = 0; r < R; ++r) some[r] += magnitude<C>(phi[r]);
    if (++count == kMagnitudesAtOnce) flush();
  });
  flush();
}

// The same for a layer of few outputs.
template <class C, int LIVE, int TABLE_VECTORS>
void add_few_outputs_magnitudes(const Inputs<C>& inputs, int padded, const C* table, const C* base, int64_t O, double* sums) {
  V<C> some[kFewOutputs] = {};
  few_outputs_contract<C, LIVE, TABLE_VECTORS>(inputs, padded, table, base, O,
                                          [&](int b, int64_t o, V<C> phi) __attribute__((always_inline)) {
                                            phi = first_lanes<C>(inputs.count - b) ? phi : V<C>{};
                                            some[o] += magnitude<C>(phi);
                                          });
  for (int64_t o = 0; o < O; ++o) sums[o] += double(sum_lanes<C>(some[o]));
}

// Writes the signs of the edges times `weight`, which is a row of the tile, to signs[b * R lanes ...].
template <class C, int LIVE, int R>
void write_signs(const Inputs<C>& inputs, const CoefTile<C>& tile, const C* weight, C* signs) {
  constexpr int lanes = Simd<C>::lanes;
  visit_edges<C, LIVE, R>(inputs, tile, [&](int64_t b, const V<C>* phi) __attribute__((always_inline)) {
    for (int r = 0; r < R; ++r)
      store<C>(signs + b * (R * lanes) + r * lanes, signed_weight<C>(phi[r], load(weight + r * lanes)));
  });
}

// Writes the signs times `weight` to signs[o * stride + b], and 0 for inputs beyond the last.
template <class C, int LIVE, int TABLE_VECTORS>
void write_few_outputs_signs(const Inputs<C>& inputs, int padded, const C* table, const C* base, int64_t O, const C* weight,
                        C* signs, int64_t stride) {
  few_outputs_contract<C, LIVE, TABLE_VECTORS>(
      inputs, padded, table, base, O, [&](int b, int64_t o, V<C> phi) __attribute__((always_inline)) {
        phi = first_lanes<C>(inputs.count - b) ? phi : V<C>{};
        store<C>(signs + o * stride + b, signed_weight<C>(phi, broadcast(weight[o])));
      });
}

// Processes one thread's blocks of rows x chunks of features.
template <class C>
struct MagnitudeWorker {
  const TiledLayer<C>& layer;
  const FewOutputsCoefficients<C>& few_outputs_coefficients;
  const bool has_few_outputs;
  const int64_t group;
  EvaluationScratch<C> inputs;
  PanelReader<C> panel;

  MagnitudeWorker(const Coefficients<C>& coefficients, const FewOutputsCoefficients<C>& few_outputs_coefficients_, int64_t block, int64_t chunk)
      : layer(coefficients.layer), few_outputs_coefficients(few_outputs_coefficients_), has_few_outputs(layer.few_outputs_table_vectors() > 0),
        group(layer.group_features(chunk)), inputs(layer, block, chunk, group, false, !has_few_outputs), panel(coefficients, has_few_outputs ? 0 : chunk) {}

  // Adds the rows of a part, block by block, to `sums` (features, padded_outputs).
  void add_rows(const RowPart& part, int64_t block, double* sums) {
    for (int64_t n0 = part.n0; n0 < part.end; n0 += block) {
      inputs.read(n0, smaller(block, part.end - n0), part.i0, part.features);
      for (int64_t f = 0; f < part.features; f += group) {
        const int64_t some = smaller(group, part.features - f);
        double* own = sums + f * layer.padded_outputs;
        inputs.evaluate(f, some);
        has_few_outputs ? add_few_outputs(part.i0 + f, some, own) : add_tiles(part, f, some, own);
      }
    }
  }

 private:
  void add_tiles(const RowPart& part, int64_t f0, int64_t features, double* sums) {
    with_live_rows(layer.live, [&](auto live) {
      constexpr int LIVE = decltype(live)::value;
      for (int64_t t = 0; t < layer.tiles; ++t) {
        const Tile tile = layer.tile(t);
        if (f0 == 0) panel.open(tile, part.i0, part.features);
        with_width<widest_tile<LIVE>()>(tile.vectors, [&](auto width) {
          for (int64_t f = 0; f < features; ++f)
            add_magnitudes<C, LIVE, decltype(width)::value>(inputs.inputs(f), panel.feature(part.i0 + f0 + f),
                                                            sums + f * layer.padded_outputs + tile.first);
        });
      }
    });
  }
  void add_few_outputs(int64_t i, int64_t features, double* sums) {
    with_few_outputs_table(layer.live, few_outputs_coefficients.table_vectors, [&](auto live, auto vectors) {
      for (int64_t f = 0; f < features; ++f)
        add_few_outputs_magnitudes<C, decltype(live)::value, decltype(vectors)::value>(
            inputs.inputs(f), inputs.padded, few_outputs_coefficients.table(i + f), few_outputs_coefficients.base_weights(i + f),
            layer.problem.O, sums + f * layer.padded_outputs);
    });
  }
};

template <class C>
void edge_l1(const Problem& p, ParallelFor parallel_for) {
  TiledLayer<C> layer(p);
  layer.prepare(parallel_for);
  const RowSplits splits(layer);
  const bool has_few_outputs = layer.few_outputs_table_vectors() > 0;
  const Coefficients<C> coefficients(layer, !has_few_outputs && p.N > splits.block, parallel_for);
  const FewOutputsCoefficients<C> few_outputs_coefficients(layer, has_few_outputs, parallel_for);
  const int64_t O = layer.padded_outputs, all = p.I * O;
  Buffer<double> sums(splits.count * all);
  splits.run(parallel_for, layer.work_per_input(), [&] {
    return [&, worker = MagnitudeWorker<C>(coefficients, few_outputs_coefficients, splits.block, splits.chunk)](const RowPart& part) mutable {
      double* own = &sums[part.split * all + part.i0 * O];
      __builtin_memset(own, 0, size_t(part.features * O) * sizeof(double));
      worker.add_rows(part, splits.block, own);
    };
  });
  for (int64_t split = 1; split < splits.count; ++split) add_to(sums.data, &sums[split * all], all);
  with_storage(p.storage, [&](auto tag) {
    using S = decltype(tag);
    for (int64_t o = 0; o < p.O; ++o)
      for (int64_t i = 0; i < p.I; ++i) static_cast<S*>(p.edge_l1)[o * p.I + i] = narrow<S>(C(sums[i * O + o] / double(p.N)));
  });
}

}  // namespace
}  // namespace KAN_NAMESPACE
