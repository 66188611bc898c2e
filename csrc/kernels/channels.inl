// Implements spline_channels and its gradients. Channel 0 is the layer's output. Every other channel is a sum of derivatives of the
// edges' functions, each with a factor per input, as directional derivatives and Laplacians are. All of them need one evaluation of
// the bases and read the same coefficient rows.
#pragma once

#include "namespace.inl"
#include "simd.inl"
#include "contract.inl"
#include "tiling.inl"
#include "packing.inl"
#include "coefficients.inl"
#include "evaluation.inl"
#include "few_outputs.inl"
#include "weight_sums.inl"
#include "backward.inl"

namespace KAN_NAMESPACE {
namespace {

using kan::Channels;
using kan::Plane;

inline Problem of_order(const Problem& p, int order) {
  Problem other = p;
  other.derivative = order;
  return other;
}

// A layer whose bases are replaced by their derivatives of an order. An evaluation of it gives this order and the next.
template <class C>
struct OrderLayer {
  const Problem problem;
  TiledLayer<C> layer;
  OrderLayer(const Problem& p, int order) : problem(of_order(p, order)), layer(problem) {}
};

constexpr int kOrderPairs = 3;  // orders 0 to 5: derivatives of order 4 and their gradients

template <class C>
struct OrderLayers {
  OrderLayer<C> first, second, third;
  const int pairs;

  OrderLayers(const Problem& p, int largest_order, ParallelFor parallel_for)
      : first(p, 0), second(p, 2), third(p, 4), pairs(largest_order / 2 + 1) {
    for (int pair = 0; pair < pairs; ++pair) layer(pair).prepare(parallel_for);
  }
  TiledLayer<C>& layer(int pair) { return pair == 0 ? first.layer : pair == 1 ? second.layer : third.layer; }
};

// Evaluates a chunk of features, one at a time, for all channels.
template <class C>
struct ChannelInputs {
  static constexpr int lanes = Simd<C>::lanes;
  const Channels& channels;
  const int64_t chunk;
  EvaluationScratch<C> first, second, third;
  const int pairs, live, room;
  Buffer<C> w, sorted_w;  // (planes, chunk, room) and (planes, room)
  Buffer<C> mixed;        // the values of channels 1, 2, ..., of their slopes, and of one order

  ChannelInputs(const Channels& channels_, OrderLayers<C>& layers, int64_t block, int64_t chunk_, bool sorts)
      : channels(channels_), chunk(chunk_), first(layers.first.layer, block, chunk, 1, true, sorts),
        second(layers.second.layer, block, layers.pairs > 1 ? chunk : 0, 1, true, first.by_run && layers.second.layer.live > 0),
        third(layers.third.layer, block, layers.pairs > 2 ? chunk : 0, 1, true, first.by_run && layers.third.layer.live > 0),
        pairs(layers.pairs), live(first.live), room(first.room), w(channels.planes * chunk * room),
        sorted_w(first.by_run ? channels.planes * (room + lanes) : 0), mixed(slot(2 * channels.count + kValueStride / room)) {}

  void read(int64_t first_row, int64_t rows, int64_t first_feature, int64_t features) {
    for (int pair = 0; pair < pairs; ++pair) of_pair(pair).read(first_row, rows, first_feature, features);
    for (int p = 0; p < channels.planes; ++p)
      read_transposed(channels.problem.storage, channels.plane[p].w, first_row, rows, first.padded, first_feature, features,
                      &w[p * chunk * room], room);
  }

  // Evaluates feature f of those read: the values of every channel, and also those of the gradient with respect to x if `slopes`.
  void evaluate(int64_t f, bool slopes) {
    feature = f;
    for (int pair = 0; pair < pairs; ++pair) of_pair(pair).evaluate(f, 1);
    const int32_t* const order = first.sorted.runs(0).order;
    for (int p = 0; first.by_run && p < channels.planes; ++p)
      for (int position = 0; position < first.row_count; ++position)
        sorted_w[p * (room + lanes) + position] = w[(p * chunk + f) * room + order[position]];
    for (int c = 1; c < channels.count; ++c) {
      mix(c, 0, &mixed[slot(c)]);
      if (slopes) mix(c, 1, &mixed[slot(channels.count + c)]);
    }
  }

  Inputs<C> channel(int c) const { return c == 0 ? first.inputs(0) : first.inputs_of(&mixed[slot(c)], 0, ValueSum::unknown); }

  // The inputs of the gradient of channel c with respect to x.
  Inputs<C> slope(int c) {
    return c == 0 ? of_order(1) : first.inputs_of(&mixed[slot(channels.count + c)], 0, ValueSum::zero);
  }

  // The inputs for a derivative of order `order` of every edge. Valid until the next call.
  Inputs<C> of_order(int order) {
    const EvaluationScratch<C>& scratch = of_pair(order / 2);
    const C* const values = order % 2 == 1 ? scratch.slopes.data : scratch.values.data;
    if (scratch.live == live) return first.inputs_of(values, 0, ValueSum::zero);
    C* const to = &mixed[slot(0)];  // of order > K: the base activation alone
    for (int k = 0; k < live; ++k) __builtin_memset(to + k * kValueStride, 0, size_t(first.padded) * sizeof(C));
    __builtin_memcpy(to + live * kValueStride, values, size_t(first.padded) * sizeof(C));
    return first.inputs_of(to, 0, ValueSum::zero);
  }

  bool is_finite(int64_t f) const { return first.is_finite(f); }

 private:
  int64_t feature = 0;

  EvaluationScratch<C>& of_pair(int pair) { return pair == 0 ? first : pair == 1 ? second : third; }

  // Small blocks share the rows of values, as in EvaluationScratch.
  int64_t slot(int64_t s) const {
    const int64_t sharing = kValueStride / room;
    return s / sharing * (live + 1) * kValueStride + s % sharing * room;
  }

  // Writes the sum over the planes of channel c of their factors times the derivatives of their order, plus `more`.
  void mix(int c, int more, C* to) {
    const int count = first.padded;
    bool is_first = true;
    for (int p = 0; p < channels.planes; ++p) {
      const Plane& plane = channels.plane[p];
      if (plane.channel != c) continue;
      const int order = plane.order + more;
      const EvaluationScratch<C>& scratch = of_pair(order / 2);
      const C* const from = order % 2 == 1 ? scratch.slopes.data : scratch.values.data;
      const C* const by_row = &w[(p * chunk + feature) * room];
      const C* const by_place = first.by_run ? &sorted_w[p * (room + lanes)] : by_row;
      for (int k = 0; k < scratch.live; ++k) add_row(from + k * kValueStride, by_place, count, is_first, to + k * kValueStride);
      for (int k = scratch.live; is_first && k < live; ++k) __builtin_memset(to + k * kValueStride, 0, size_t(count) * sizeof(C));
      add_row(from + scratch.live * kValueStride, by_row, count, is_first, to + live * kValueStride);
      is_first = false;
    }
    for (int k = 0; is_first && k <= live; ++k) __builtin_memset(to + k * kValueStride, 0, size_t(count) * sizeof(C));
  }

  static void add_row(const C* from, const C* factors, int count, bool is_first, C* to) {
    for (int b = 0; b < count; b += lanes) {
      const V<C> term = load(from + b) * load(factors + b);
      store<C>(to + b, is_first ? term : load(to + b) + term);
    }
  }
};

// Calls f with two Constants, the number of live rows or -1, and the width of a tile, for every tile and its coefficients, if it
// reads them.
template <class C, class F>
[[gnu::always_inline]] inline void visit_tiles(const TiledLayer<C>& layer, PanelReader<C>& panel, int64_t i, bool reads, const F& f) {
  with_live_rows(layer.live, [&](auto live) {
    constexpr int LIVE = decltype(live)::value;
    for (int64_t t = 0; t < layer.tiles; ++t) {
      const Tile tile = layer.tile(t);
      if (reads) panel.open(tile, i, 1);
      with_width<widest_tile<LIVE>()>(tile.vectors, [&](auto width) { f(live, width, tile, reads ? panel.feature(i) : CoefTile<C>{}); });
    }
  });
}

// Computes along[k * stride + b], the sum over the outputs of g[o * stride + b] times coefficient k of input b. k = LIVE is the base
// activation.
template <class C, int LIVE, int TABLE_VECTORS>
void few_outputs_along(const int32_t* first_rows, int padded, const C* table, const C* base, int64_t O, const C* g, int64_t stride, C* along) {
  constexpr int64_t table_size = TABLE_VECTORS * Simd<C>::lanes;
  for (int b = 0; b < padded; b += Simd<C>::lanes) {
    const Index<C> row = load_index<C>(first_rows + b);
    V<C> sum[LIVE + 1] = {};
    for (int64_t o = 0; o < O; ++o) {
      const V<C> gradient = load(g + o * stride + b);
      for (int k = 0; k < LIVE; ++k) sum[k] += gradient * lookup<C, TABLE_VECTORS>(table + o * table_size, row + typename Simd<C>::Int(k));
      sum[LIVE] += gradient * base[o];
    }
    for (int k = 0; k <= LIVE; ++k) store<C>(along + k * stride + b, sum[k]);
  }
}

// Adds the sum over k of value k times along k to result[b].
template <class C, int LIVE>
void add_along(const C* values, const C* along, int64_t stride, int padded, C* result) {
  for (int b = 0; b < padded; b += Simd<C>::lanes) {
    V<C> sum = load(result + b);
    for (int k = 0; k <= LIVE; ++k) sum += load(values + k * kValueStride + b) * load(along + k * stride + b);
    store<C>(result + b, sum);
  }
}

template <class C>
struct ChannelForwardWorker {
  const Channels& channels;
  const TiledLayer<C>& layer;
  const int64_t chunk, plane_size;
  const FewOutputsCoefficients<C>& few;
  ChannelInputs<C> inputs;
  PanelReader<C> panel;
  Buffer<C> total, part;  // (channels, block, padded_outputs), tile by tile; or (channels, O, rows) if there are few outputs

  ChannelForwardWorker(const Channels& channels_, OrderLayers<C>& layers, const Coefficients<C>& coefficients,
                       const FewOutputsCoefficients<C>& few_, int64_t block)
      : channels(channels_), layer(layers.first.layer), chunk(smaller(layer.problem.I, kChunkFeatures)), plane_size(block * layer.padded_outputs),
        few(few_), inputs(channels, layers, block, chunk, few.table_vectors == 0), panel(coefficients, 0), total(channels.count * plane_size),
        part(layer.problem.I > chunk ? channels.count * plane_size : 0) {}

  void add(int64_t n0, int64_t rows) {
    const Problem& p = layer.problem;
    for (int64_t i0 = 0; i0 < p.I; i0 += chunk) {
      const int64_t features = smaller(chunk, p.I - i0);
      C* const sums = i0 == 0 ? total.data : part.data;
      __builtin_memset(sums, 0, size_t(channels.count * plane_size) * sizeof(C));
      inputs.read(n0, rows, i0, features);
      for (int64_t f = 0; f < features; ++f) {
        inputs.evaluate(f, false);
        if (few.table_vectors > 0) {
          add_few_outputs(i0 + f, sums);
          continue;
        }
        visit_tiles(layer, panel, i0 + f, true, [&](auto live, auto width, const Tile& tile, const CoefTile<C>& coef) {
          constexpr int LIVE = decltype(live)::value, R = decltype(width)::value;
          for (int c = 0; c < channels.count; ++c) {
            C* const y = sums + c * plane_size + rows * tile.first;
            if constexpr (LIVE < 0)
              forward_tile_general(inputs.channel(c), coef, y, Simd<C>::lanes);
            else
              forward_tile<C, LIVE, R>(inputs.channel(c), coef, y, R * Simd<C>::lanes);
          }
        });
      }
      if (i0 > 0) add_to(total.data, part.data, channels.count * plane_size);
    }
    for (int c = 0; c < channels.count; ++c)
      if (few.table_vectors > 0)
        write_transposed(p.storage, total.data + c * plane_size, inputs.first.padded, rows, p.O, p.y, c * p.N + n0, 0, p.O);
      else
        write_tiles(layer, total.data + c * plane_size, c * p.N + n0, rows);
  }

 private:
  void add_few_outputs(int64_t i, C* sums) const {
    with_few_outputs_table(layer.live, few.table_vectors, [&](auto live, auto vectors) {
      for (int c = 0; c < channels.count; ++c)
        few_outputs_forward<C, decltype(live)::value, decltype(vectors)::value>(inputs.channel(c), inputs.first.padded, few.table(i),
                                                                                few.base_weights(i), layer.problem.O, sums + c * plane_size);
    });
  }
};

template <class C>
void channels_forward(const Channels& channels, ParallelFor parallel_for) {
  OrderLayers<C> layers(channels.problem, channels.largest_order, parallel_for);
  const TiledLayer<C>& layer = layers.first.layer;
  const int64_t N = channels.problem.N, block = layer.block_rows(16);
  const bool has_few_outputs = layer.few_outputs_table_vectors() > 0;
  const Coefficients<C> coefficients(layer, !has_few_outputs, parallel_for);
  const FewOutputsCoefficients<C> few(layer, has_few_outputs, parallel_for);
  run_parallel(parallel_for, divide_up(N, block), block * channels.problem.I * channels.count * layer.work_per_input(), [&](int64_t begin, int64_t end) {
    ChannelForwardWorker<C> worker(channels, layers, coefficients, few, block);
    for (int64_t b = begin; b < end; ++b) worker.add(b * block, smaller(block, N - b * block));
  });
}

template <class C>
struct ChannelBackwardWorker {
  static constexpr int lanes = Simd<C>::lanes;
  const Channels& channels;
  const TiledLayer<C>& layer;
  WeightSums<C>& sums;
  const int64_t chunk;
  const FewOutputsCoefficients<C>& few;
  const bool for_inputs, has_few_outputs, sums_few_outputs, in_place;  // sums_few_outputs: by dense bases
  ChannelInputs<C> inputs;
  PanelReader<C> panel;
  EdgeWriter<C> writer;
  Buffer<C> g, own_sums;
  Buffer<C> products, of_x, of_w;  // of_x: (chunk, room); of_w: (planes, chunk, room)
  DenseBases<C> bases;
  Buffer<C> g_of_outputs, along;  // (channels, O, room) and (channels, live + 1, room), for few outputs

  ChannelBackwardWorker(const Channels& channels_, OrderLayers<C>& layers, const Coefficients<C>& coefficients,
                        const FewOutputsCoefficients<C>& few_, WeightSums<C>& sums_, int64_t block, int64_t chunk_)
      : channels(channels_), layer(layers.first.layer), sums(sums_), chunk(chunk_), few(few_),
        for_inputs(channels.problem.input_gradient != nullptr), has_few_outputs(few.table_vectors > 0),
        sums_few_outputs(has_few_outputs && (layer.problem.G + layer.problem.K + 1) * layer.problem.O <= kFewOutputsMostProducts),
        in_place(is_stored_as<C>(layer.problem.storage) && layer.problem.g.stride[1] == 1 && layer.tiles == 1 &&
                 layer.problem.O == layer.padded_outputs),
        inputs(channels, layers, block, chunk, !sums_few_outputs), panel(coefficients, 0), writer(layer.problem),
        g(in_place ? 0 : channels.count * block * layer.padded_outputs), own_sums(sums.own_size(chunk, layer.padded_outputs)),
        products((block + lanes) * lanes), of_x(chunk * inputs.room), of_w(channels.planes * chunk * inputs.room),
        bases(sums_few_outputs ? layer.problem.G + layer.problem.K : -1, inputs.room),
        g_of_outputs(has_few_outputs ? channels.count * layer.problem.O * inputs.room : 0),
        along(has_few_outputs ? channels.count * (layer.live + 1) * inputs.room : 0) {}

  void add_rows(const RowPart& part, int64_t block) {
    C* const of_chunk = sums.start_chunk(part.split, part.i0, part.features, own_sums.data);
    for (int64_t n0 = part.n0; n0 < part.end; n0 += block) add_block(n0, smaller(block, part.end - n0), part, of_chunk);
    sums.finish_chunk(writer, part.i0, part.features, of_chunk);
  }

 private:
  void add_block(int64_t n0, int64_t rows, const RowPart& part, C* of_chunk) {
    const Problem& p = layer.problem;
    inputs.read(n0, rows, part.i0, part.features);
    for (int c = 0; has_few_outputs && c < channels.count; ++c)
      read_transposed(p.storage, gradient_of(c), n0, rows, inputs.first.padded, 0, p.O, g_few(c), inputs.room);
    for (int c = 0; !in_place && !sums_few_outputs && c < channels.count; ++c)
      for (int64_t t = 0; t < layer.tiles; ++t) {
        const Tile tile = layer.tile(t);
        const int64_t width = tile.vectors * lanes;
        pack_rows(p.storage, gradient_of(c), n0, rows, tile.first, smaller(width, p.O - tile.first), &g[gradient_at(c, rows, tile)], width);
      }
    if (for_inputs) {
      __builtin_memset(of_x.data, 0, size_t(chunk * inputs.room) * sizeof(C));
      __builtin_memset(of_w.data, 0, size_t(channels.planes * chunk * inputs.room) * sizeof(C));
    }
    for (int64_t f = 0; f < part.features; ++f) {
      inputs.evaluate(f, for_inputs);
      if (has_few_outputs) add_few_outputs(part.i0 + f, f, of_chunk);
      if (!sums_few_outputs)
        visit_tiles(layer, panel, part.i0 + f, !has_few_outputs, [&](auto live, auto width, const Tile& tile, const CoefTile<C>& coef) {
          add_tile<decltype(live)::value, decltype(width)::value>(n0, rows, f, tile, coef, of_chunk);
        });
      if (sums.wanted) sums.note_finite(part.split, part.i0 + f, inputs.is_finite(f));
    }
    if (!for_inputs) return;
    write_transposed(p.storage, of_x.data, inputs.room, rows, part.features, p.input_gradient, n0, part.i0, p.I);
    for (int k = 0; k < channels.planes; ++k)
      write_transposed(p.storage, &of_w[k * chunk * inputs.room], inputs.room, rows, part.features, channels.plane_gradient, k * p.N + n0,
                       part.i0, p.I);
  }

  C* g_few(int c) { return &g_of_outputs[c * layer.problem.O * inputs.room]; }

  void add_few_outputs(int64_t i, int64_t f, C* of_chunk) {
    const Problem& p = layer.problem;
    const int padded = inputs.first.padded;
    with_few_outputs_table(layer.live, few.table_vectors, [&](auto live, auto vectors) {
      constexpr int LIVE = decltype(live)::value;
      const auto of_channel = [&](int c) { return &along[c * (LIVE + 1) * inputs.room]; };
      for (int c = 0; for_inputs && c < channels.count; ++c) {
        const Inputs<C> slope = inputs.slope(c);
        few_outputs_along<C, LIVE, decltype(vectors)::value>(slope.first_rows, padded, few.table(i), few.base_weights(i), p.O, g_few(c),
                                                             inputs.room, of_channel(c));
        add_along<C, LIVE>(slope.values, of_channel(c), inputs.room, padded, &of_x[f * inputs.room]);
      }
      for (int k = 0; for_inputs && k < channels.planes; ++k)
        add_along<C, LIVE>(inputs.of_order(channels.plane[k].order).values, of_channel(channels.plane[k].channel), inputs.room, padded,
                           &of_w[(k * chunk + f) * inputs.room]);
      if (!sums.wanted || !sums_few_outputs) return;
      C* const to = of_chunk + f * sums.rows * sums.row_length;
      for (int c = 0; c < channels.count; ++c) {
        bases.template spread<LIVE>(inputs.channel(c), padded);
        bases.add_products(g_few(c), padded, p.O, to, sums.row_length, to + sums.spline_rows * sums.row_length);
      }
    });
  }

  Operand gradient_of(int c) const {
    Operand g_of_channel = layer.problem.g;
    g_of_channel.data = static_cast<const char*>(g_of_channel.data) + c * channels.g_bytes;
    return g_of_channel;
  }
  int64_t gradient_at(int c, int64_t rows, const Tile& tile) const { return (c * layer.padded_outputs + tile.first) * rows; }

  template <int LIVE, int R>
  void add_tile(int64_t n0, int64_t rows, int64_t f, const Tile& tile, const CoefTile<C>& coef, C* of_chunk) {
    const Problem& p = layer.problem;
    const int64_t stride = in_place ? p.g.stride[0] : R * lanes;
    const auto gradient = [&](int c) {
      return in_place ? static_cast<const C*>(gradient_of(c).data) + n0 * stride : &g[gradient_at(c, rows, tile)];
    };
    const auto add_input = [&](const Inputs<C>& values, int c, C* result) {
      if constexpr (LIVE < 0)
        backward_input_tile_general(values, coef, gradient(c), stride, products.data);
      else
        backward_input_tile<C, LIVE, R>(values, coef, gradient(c), stride, products.data);
      add_products(products.data, inputs.first.padded, result);
    };
    const bool in_tiles = for_inputs && !has_few_outputs;
    for (int c = 0; in_tiles && c < channels.count; ++c) add_input(inputs.slope(c), c, &of_x[f * inputs.room]);
    for (int k = 0; in_tiles && k < channels.planes; ++k)
      add_input(inputs.of_order(channels.plane[k].order), channels.plane[k].channel, &of_w[(k * chunk + f) * inputs.room]);
    if (!sums.wanted) return;
    C *const spline = of_chunk + f * sums.rows * sums.row_length + tile.first, *const base = spline + sums.spline_rows * sums.row_length;
    for (int c = 0; c < channels.count; ++c) {
      if constexpr (LIVE < 0)
        backward_coef_tile_general(inputs.channel(c), kSummedAtOnce, gradient(c), stride, spline, sums.row_length, base);
      else
        backward_coef_tile<C, LIVE, R>(inputs.channel(c), kSummedAtOnce, true, gradient(c), stride, spline, sums.row_length, base);
    }
  }
};

template <class C>
void channels_backward(const Channels& channels, ParallelFor parallel_for) {
  OrderLayers<C> layers(channels.problem, channels.largest_order + 1, parallel_for);
  const TiledLayer<C>& layer = layers.first.layer;
  const RowSplits splits(layer);
  WeightSums<C> sums(layer, splits.count);
  const FewOutputsCoefficients<C> few(layer, layer.few_outputs_table_vectors() > 0, parallel_for);
  const Coefficients<C> coefficients(layer, few.table_vectors == 0, parallel_for);
  splits.run(parallel_for, channels.count * layer.work_per_input(), [&] {
    return [&, worker = ChannelBackwardWorker<C>(channels, layers, coefficients, few, sums, splits.block,
                                                 splits.chunk)](const RowPart& part) mutable { worker.add_rows(part, splits.block); };
  });
  sums.add_splits(parallel_for);
}

}  // namespace
}  // namespace KAN_NAMESPACE
