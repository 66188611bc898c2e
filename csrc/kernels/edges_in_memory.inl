// Converts the weights of edges, (O, I, M) or (O, I) in memory, to rows that hold one coefficient for as many outputs as there are
// lanes, and back.
#pragma once

#include "namespace.inl"
#include "simd.inl"
#include "tiling.inl"
#include "packing.inl"

namespace KAN_NAMESPACE {
namespace {

constexpr int64_t kFeaturesAtOnce = 16;  // features whose factors are transposed together
constexpr int64_t kStagedEntries = 512;  // entries per output, if edges are converted before reading or after writing

// Calls f with the number of coefficients to transpose at once, at most M, as a Constant.
template <class C, class F>
void with_record_width(int64_t M, F f) {
  constexpr int widest = Simd<C>::lanes < 8 ? Simd<C>::lanes : 8;
  if (M >= widest) return f(Constant<widest>{});
  if constexpr (widest > 4)
    if (M >= 4) return f(Constant<4>{});
  if constexpr (widest > 2)
    if (M >= 2) return f(Constant<2>{});
  f(Constant<1>{});
}

// Calls block(first, known) for blocks of W of the M coefficients. The first `known` coefficients of a block were in the previous
// one.
template <int W, class Block>
[[gnu::always_inline]] inline void visit_blocks(int64_t M, const Block& block) {
  int64_t first = 0;
  for (; first + W <= M; first += W) block(first, Constant<0>{});
  if (first < M) block(M - W, int(first - (M - W)));
}
template <int Value>
constexpr int number_of(Constant<Value>) { return Value; }
constexpr int number_of(int value) { return value; }
// The number if it is a Constant, else 0.
template <class Count>
struct KnownNumber {
  static constexpr int value = 0;
};
template <int Value>
struct KnownNumber<Constant<Value>> {
  static constexpr int value = Value;
};

// Calls write(m, v) for every coefficient m, where v holds it for the edges at edge[0] + offset, edge[1] + offset, ..., one output
// per lane.
template <class C, int W, class Write>
[[gnu::always_inline]] inline void read_edges(const C* const* edge, int64_t offset, int64_t M, const Write& write) {
  constexpr int in_vector = Simd<C>::lanes / W;
  visit_blocks<W>(M, [&](int64_t first, auto known) __attribute__((always_inline)) {
    V<C> v[W];
#pragma GCC unroll 8
    for (int k = 0; k < W; ++k)
      v[k] = load_records<C, W>([&](int r) __attribute__((always_inline)) { return edge[k * in_vector + r] + offset + first; });
    records_to_lanes<C, W>(v);
#pragma GCC unroll 8
    for (int k = 0; k < W; ++k)
      if (k >= number_of(known)) write(first + k, v[k]);
  });
}

// The inverse: writes coefficient m, which read(m) returns, to the edges at edge, edge + stride, ... for the first `outputs` lanes.
// `outputs` is an int or a Constant.
template <class C, int W, class Count, class Read>
[[gnu::always_inline]] inline void write_edges(C* edge, int64_t stride, int64_t M, Count outputs, const Read& read) {
  constexpr int in_vector = Simd<C>::lanes / W;
  visit_blocks<W>(M, [&](int64_t first, auto) __attribute__((always_inline)) {
    V<C> v[W];
#pragma GCC unroll 8
    for (int k = 0; k < W; ++k) v[k] = read(first + k);
    lanes_to_records<C, W>(v);
#pragma GCC unroll 8
    for (int k = 0; k < W; ++k)
      store_records<C, W>([&](int r) __attribute__((always_inline)) { return edge + (k * in_vector + r) * stride + first; }, v[k],
                          number_of(outputs) - k * in_vector);
  });
}

// Writes the edges of two features, which are neighbours in memory, for as many outputs as there are lanes. An edge takes half of a
// vector, so that a vector takes both edges of an output.
template <class C, class Read>
[[gnu::always_inline]] inline void write_edge_pairs(C* edges, int64_t stride, const Read& read) {
  constexpr int W = Simd<C>::lanes / 2;
  V<C> first[W], second[W];
#pragma GCC unroll 8
  for (int k = 0; k < W; ++k) {
    first[k] = read(0, k);
    second[k] = read(1, k);
  }
  lanes_to_records<C, W>(first);
  lanes_to_records<C, W>(second);
  Index<C> low;
#pragma GCC unroll 16
  for (int l = 0; l < Simd<C>::lanes; ++l) low[l] = l < W ? l : Simd<C>::lanes + l - W;
#pragma GCC unroll 8
  for (int k = 0; k < W; ++k) {
    store<C>(edges + 2 * k * stride, shuffle<C>(first[k], second[k], low));
    store<C>(edges + (2 * k + 1) * stride, shuffle<C>(first[k], second[k], low + W));
  }
}

// Prefetches `count` elements for reading or writing.
template <bool WRITES, class S>
[[gnu::always_inline]] inline void prefetch(const S* from, int64_t count) {
  for (int64_t c = 0; c < count; c += int64_t(64 / sizeof(S))) __builtin_prefetch(from + c, WRITES);
}

// A block of edges in memory that the next loop reads or writes. Its cache lines are too far apart for the hardware prefetcher, so
// the previous loop prefetches them part by part. At 512 -> 512, waiting for them takes two thirds of the packing otherwise.
template <class C>
struct NextBlock {
  const C* first_part = nullptr;
  int64_t parts = 0, stride = 0, size = 0;  // a part is contiguous: the edges of an output or of a feature; 0 if no block follows

  NextBlock() = default;
  NextBlock(const C* edges, int64_t output_stride, int64_t feature_stride, int64_t outputs, int64_t features, int64_t M) : first_part(edges) {
    const bool by_output = feature_stride <= output_stride;
    parts = by_output ? outputs : features;
    stride = by_output ? output_stride : feature_stride;
    size = (by_output ? features : outputs) * M;
  }
  template <bool WRITES>
  [[gnu::always_inline]] void prefetch_part(int64_t part) const {
    if (part < parts) prefetch<WRITES>(first_part + part * stride, size);
  }
};

// Gives access to the edges of some features and as many outputs as there are lanes. Edges of the compute type whose coefficients
// are contiguous are read in place, others are converted first. Lanes beyond the last output repeat it.
template <class C>
struct EdgeReader {
  static constexpr int lanes = Simd<C>::lanes;
  const Problem& problem;
  const int64_t M;
  const bool in_place;
  const int64_t features_at_once;
  Buffer<C> staged;
  // Loops copy this struct, so that the compiler knows that no store changes it.
  struct Edges {
    const C* of_output[lanes];
    int64_t stride;  // between features
  } edges;

  explicit EdgeReader(const Problem& p)
      : problem(p), M(p.G + p.K), in_place(is_stored_as<C>(p.storage) && p.spline_weight.stride[2] == 1),
        features_at_once(in_place ? kFeaturesAtOnce : smaller(kFeaturesAtOnce, at_least_one(kStagedEntries / M))),
        staged(in_place ? 0 : lanes * features_at_once * M) {}

  // `features` is at most features_at_once.
  void open(int64_t first_output, int64_t first_feature, int64_t features) {
    const Operand& weight = problem.spline_weight;
    edges.stride = in_place ? weight.stride[1] : M;
    for (int lane = 0; lane < lanes; ++lane) {
      const int64_t o = smaller(first_output + lane, problem.O - 1);
      if (in_place)
        edges.of_output[lane] = static_cast<const C*>(weight.data) + o * weight.stride[0] + first_feature * weight.stride[1];
      else
        edges.of_output[lane] = first_output + lane == o ? stage(lane, o, first_feature, features) : edges.of_output[lane - 1];
    }
  }

  NextBlock<C> next_block(int64_t first_output, int64_t first_feature, int64_t features) const {
    const Operand& weight = problem.spline_weight;
    const int64_t outputs = smaller(lanes, problem.O - first_output), some = smaller(features, problem.I - first_feature);
    if (!in_place || outputs <= 0 || some <= 0) return {};
    const C* first = static_cast<const C*>(weight.data) + first_output * weight.stride[0] + first_feature * weight.stride[1];
    return {first, weight.stride[0], weight.stride[1], outputs, some, M};
  }

 private:
  const C* stage(int lane, int64_t o, int64_t first_feature, int64_t features) {
    C* to = &staged[lane * features_at_once * M];
    const Operand& weight = problem.spline_weight;
    with_storage(problem.storage, [&](auto tag) {
      const auto* from = static_cast<const decltype(tag)*>(weight.data) + o * weight.stride[0] + first_feature * weight.stride[1];
      if (weight.stride[2] == 1 && weight.stride[1] == M)
        widen_row(from, 1, features * M, to);
      else
        for (int64_t f = 0; f < features; ++f) widen_row(from + f * weight.stride[1], weight.stride[2], M, to + f * M);
    });
    return to;
  }
};

// Returns a mask with all bits set in the lanes below `count`.
template <class C>
inline Index<C> first_lanes(int64_t count) {
  Index<C> lane;
#pragma GCC unroll 16
  for (int l = 0; l < Simd<C>::lanes; ++l) lane[l] = l;
  return lane < Index<C>{} + typename Simd<C>::Int(smaller(count, Simd<C>::lanes));
}

// Writes the gradients of the weights from their sums, for as many outputs as there are lanes and a few features at a time.
template <class C>
struct EdgeWriter {
  static constexpr int lanes = Simd<C>::lanes;
  const Problem& problem;
  const int64_t M;
  const bool converts;
  EdgeReader<C> weights;  // the unscaled weights, for the gradient of the scaler
  Buffer<C> scale, scale_gradient, converted;

  explicit EdgeWriter(const Problem& p)
      : problem(p), M(p.G + p.K), converts(!is_stored_as<C>(p.storage)), weights(p),
        scale(p.spline_scaler.data != nullptr ? kFeaturesAtOnce * lanes : 0),
        scale_gradient(p.spline_scaler_gradient != nullptr ? kFeaturesAtOnce * lanes : 0),
        converted(converts && p.spline_weight_gradient != nullptr ? lanes * weights.features_at_once * M : 0) {}

  // Writes `outputs` outputs from first_output on and `features` features from first_feature on. For every feature, `sums` holds
  // rows of row_length: the gradients of the scaled coefficients, then the gradient of the base activation's weight. If spline_rows
  // is 0, the gradients of the coefficients are zeros.
  void write(int64_t first_feature, int64_t features, int64_t first_output, int64_t outputs, int64_t spline_rows, const C* sums,
             int64_t row_length) {
    const int64_t feature_size = (spline_rows + 1) * row_length;
    for (int64_t f = 0; f < features; f += weights.features_at_once) {
      const int64_t some = smaller(weights.features_at_once, features - f);
      const C* own = sums + f * feature_size;
      for (int64_t o = 0; o < outputs; o += lanes) {
        const bool is_last = o + lanes >= outputs;
        next_output = first_output + (is_last ? 0 : o + lanes);
        next_feature = first_feature + f + (is_last ? some : 0);
        has_next = !is_last || f + some < features;
        write_some(first_feature + f, some, first_output + o, smaller(lanes, outputs - o), spline_rows, own + o, row_length);
      }
      if (problem.base_weight_gradient != nullptr)
        write_factors(own + spline_rows * row_length, feature_size, first_feature + f, some, first_output, outputs,
                      problem.base_weight_gradient);
    }
  }

 private:
  int64_t next_output = 0, next_feature = 0;  // start of the block after the one being written
  bool has_next = false;

  void write_some(int64_t i0, int64_t features, int64_t o0, int64_t outputs, int64_t spline_rows, const C* sums, int64_t row_length) {
    const Problem& p = problem;
    if (p.spline_weight_gradient == nullptr && p.spline_scaler_gradient == nullptr) return;
    if (spline_rows == 0) return write_zeros(i0, features, o0, outputs);
    if (p.spline_scaler.data != nullptr)
      read_transposed(p.storage, p.spline_scaler, o0, outputs, lanes, i0, features, scale.data, lanes);
    const int64_t feature_size = (spline_rows + 1) * row_length;
    with_record_width<C>(M, [&](auto width) {
      constexpr int W = decltype(width)::value;
      // The two loops are separate: if outputs are a power of two apart, edges and gradients together do not fit their sets of L1.
      if (p.spline_scaler_gradient != nullptr) sum_products<W>(i0, features, o0, feature_size, sums, row_length);
      if (p.spline_weight_gradient != nullptr) {
        if (outputs == lanes)
          write_features<W>(i0, features, o0, Constant<lanes>{}, feature_size, sums, row_length);
        else
          write_features<W>(i0, features, o0, int(outputs), feature_size, sums, row_length);
      }
    });
    if (p.spline_scaler_gradient != nullptr)
      write_factors(scale_gradient.data, lanes, i0, features, o0, outputs, p.spline_scaler_gradient);
    if (converts && p.spline_weight_gradient != nullptr) convert(i0, features, o0, outputs);
  }

  // Computes the gradient of the scaler: for every edge, the sum of the coefficients times their gradients.
  template <int W>
  void sum_products(int64_t i0, int64_t features, int64_t o0, int64_t feature_size, const C* sums, int64_t row_length) {
    weights.open(o0, i0, features);
    const typename EdgeReader<C>::Edges edges = weights.edges;
    const NextBlock<C> next = has_next ? weights.next_block(next_output, next_feature, features) : NextBlock<C>{};
    for (int64_t f = 0; f < features; ++f) {
      next.template prefetch_part<false>(f);
      const C* rows = sums + f * feature_size;
      V<C> sum = {};
      read_edges<C, W>(edges.of_output, f * edges.stride, M, [&](int64_t m, V<C> coefficient) __attribute__((always_inline)) {
        sum += coefficient * load(rows + m * row_length);
      });
      store<C>(&scale_gradient[f * lanes], sum);
    }
  }

  template <int W, class Count>
  void write_features(int64_t i0, int64_t features, int64_t o0, Count outputs, int64_t feature_size, const C* sums, int64_t row_length) {
    const Problem& p = problem;
    C* const to = converts ? converted.data : static_cast<C*>(p.spline_weight_gradient) + edge(o0, i0) * M;
    const int64_t stride = converts ? weights.features_at_once * M : p.edge_stride[0] * M;
    const int64_t step = converts ? M : p.edge_stride[1] * M, bases = M;
    NextBlock<C> next;
    if (has_next && !converts)
      next = {static_cast<C*>(p.spline_weight_gradient) + edge(next_output, next_feature) * M, stride, step,
              smaller(lanes, p.O - next_output), smaller(features, p.I - next_feature), M};
    int64_t f = 0;
    // A whole line is stored at once, and a step of 256 -> 256 on 256 rows takes 5 % less than with two halves (Zen 5).
    if constexpr (2 * W == lanes && KAN_VECTOR_BYTES == 64 && KnownNumber<Count>::value == lanes)
      for (; bases == W && step == W && f + 1 < features; f += 2) {
        next.template prefetch_part<true>(f);
        next.template prefetch_part<true>(f + 1);
        const C* rows = sums + f * feature_size;
        const bool scales = p.spline_scaler.data != nullptr;
        const V<C> factor[2] = {scales ? load(&scale[f * lanes]) : broadcast(C(1)), scales ? load(&scale[(f + 1) * lanes]) : broadcast(C(1))};
        write_edge_pairs<C>(to + f * step, stride, [&](int which, int k) __attribute__((always_inline)) {
          return load(rows + which * feature_size + k * row_length) * factor[which];
        });
      }
    for (; f < features; ++f) {
      next.template prefetch_part<true>(f);
      const C* rows = sums + f * feature_size;
      const V<C> factor = p.spline_scaler.data != nullptr ? load(&scale[f * lanes]) : broadcast(C(1));
      write_edges<C, W>(to + f * step, stride, bases, outputs,
                        [&](int64_t m) __attribute__((always_inline)) { return load(rows + m * row_length) * factor; });
    }
  }

  int64_t edge(int64_t o, int64_t i) const { return o * problem.edge_stride[0] + i * problem.edge_stride[1]; }

  // Writes one number per feature and output to an (O, I) gradient.
  void write_factors(const C* values, int64_t feature_stride, int64_t i0, int64_t features, int64_t o0, int64_t outputs, void* to) {
    const Problem& p = problem;
    if (p.edge_stride[1] == 1)
      write_transposed(p.storage, values, feature_stride, outputs, features, to, o0, i0, p.edge_stride[0]);
    else
      write_rows(p.storage, values, feature_stride, features, outputs, to, i0, o0, p.edge_stride[1]);
  }

  void convert(int64_t i0, int64_t features, int64_t o0, int64_t outputs) {
    const Problem& p = problem;
    for (int64_t lane = 0; lane < outputs; ++lane) {
      const C* from = &converted[lane * weights.features_at_once * M];
      if (p.edge_stride[1] == 1)
        write_rows(p.storage, from, 0, 1, features * M, p.spline_weight_gradient, 0, edge(o0 + lane, i0) * M, 0);
      else
        write_rows(p.storage, from, M, features, M, p.spline_weight_gradient, i0, (o0 + lane) * M, p.edge_stride[1] * M);
    }
  }

  void write_zeros(int64_t i0, int64_t features, int64_t o0, int64_t outputs) {
    with_storage(problem.storage, [&](auto tag) {
      using S = decltype(tag);
      for (int64_t o = o0; o < o0 + outputs; ++o)
        for (int64_t i = i0; i < i0 + features; ++i) {
          S *weight = static_cast<S*>(problem.spline_weight_gradient), *scaler = static_cast<S*>(problem.spline_scaler_gradient);
          for (int64_t m = 0; weight != nullptr && m < M; ++m) weight[edge(o, i) * M + m] = narrow<S>(0.0f);
          if (scaler != nullptr) scaler[edge(o, i)] = narrow<S>(0.0f);
        }
    });
  }
};

}  // namespace
}  // namespace KAN_NAMESPACE
