// Weights of edges, (O, I, M) or (O, I) in memory, to rows of one coefficient for as many outputs as there are lanes, and back.
//
#pragma once

#include "namespace.inl"
#include "simd.inl"
#include "tiling.inl"
#include "packing.inl"

namespace KAN_NAMESPACE {
namespace {

constexpr int64_t kFeaturesAtOnce = 16;  // whose factors are transposed together
constexpr int64_t kStagedEntries = 512;  // of one output, where edges are converted before or after

// Calls f with the number of coefficients that are transposed at once, as a Constant: at most M.
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

// block(first, known) for blocks of W of the M coefficients: the first `known` of a block were in the one before.
template <int W, class Block>
[[gnu::always_inline]] inline void visit_blocks(int64_t M, const Block& block) {
  int64_t first = 0;
  for (; first + W <= M; first += W) block(first, Constant<0>{});
  if (first < M) block(M - W, int(first - (M - W)));
}
template <int Value>
constexpr int number_of(Constant<Value>) { return Value; }
constexpr int number_of(int value) { return value; }

// write(m, v) for every coefficient m: v holds it for the edges edge[0] + offset, edge[1] + offset, ... of as many outputs as there
// are lanes.
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

// The way back: the edges edge, edge + stride, ... of the first `outputs` lanes, a number or a Constant, become what read(m) gives.
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

// Asks for `count` elements before they are read or written.
template <bool WRITES, class S>
[[gnu::always_inline]] inline void prefetch(const S* from, int64_t count) {
  for (int64_t c = 0; c < count; c += int64_t(64 / sizeof(S))) __builtin_prefetch(from + c, WRITES);
}

// A block of edges in memory that the next loop reads or writes. The lines of its edges are too far apart for the processor to
// fetch them ahead by itself, so the loop before it asks for them, part by part: at 512 -> 512 they cost two thirds of the packing.
template <class C>
struct NextBlock {
  const C* first_part = nullptr;
  int64_t parts = 0, stride = 0, size = 0;  // parts that are contiguous: an output's edges, or a feature's; 0 if no block follows

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

// The edges from as many outputs as there are lanes, from `first_output` on, to some features; where they stand if they are of
// the compute type with their coefficients in a row, else converted. Lanes beyond the last output repeat it.
template <class C>
struct EdgeReader {
  static constexpr int lanes = Simd<C>::lanes;
  const Problem& problem;
  const int64_t M;
  const bool in_place;
  const int64_t features_at_once;
  Buffer<C> staged;
  // A loop copies these, so that the compiler knows that no store changes them.
  struct Edges {
    const C* of_output[lanes];
    int64_t stride;  // of features
  } edges;

  explicit EdgeReader(const Problem& p)
      : problem(p), M(p.G + p.K), in_place(is_stored_as<C>(p.storage) && p.spline_weight.stride[2] == 1),
        features_at_once(in_place ? kFeaturesAtOnce : smaller(kFeaturesAtOnce, at_least_one(kStagedEntries / M))),
        staged(in_place ? 0 : lanes * features_at_once * M) {}

  // At most features_at_once of them.
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

// A vector of the lanes below `count`, all of whose bits are set.
template <class C>
inline Index<C> first_lanes(int64_t count) {
  Index<C> lane;
#pragma GCC unroll 16
  for (int l = 0; l < Simd<C>::lanes; ++l) lane[l] = l;
  return lane < Index<C>{} + typename Simd<C>::Int(smaller(count, Simd<C>::lanes));
}

// Gradients of the weights from sums for as many outputs as there are lanes, for a few features at a time.
template <class C>
struct EdgeWriter {
  static constexpr int lanes = Simd<C>::lanes;
  const Problem& problem;
  const int64_t M;
  const bool converts;
  EdgeReader<C> weights;  // as they are stored, for the scaler's gradient
  Buffer<C> scale, scale_gradient, converted;

  explicit EdgeWriter(const Problem& p)
      : problem(p), M(p.G + p.K), converts(!is_stored_as<C>(p.storage)), weights(p),
        scale(p.spline_scaler.data != nullptr ? kFeaturesAtOnce * lanes : 0),
        scale_gradient(p.spline_scaler_gradient != nullptr ? kFeaturesAtOnce * lanes : 0),
        converted(converts && p.spline_weight_gradient != nullptr ? lanes * weights.features_at_once * M : 0) {}

  // Outputs first_output .. + outputs of features first_feature ..: `sums` holds, for every feature, rows of row_length: the
  // gradients of the scaled coefficients, then that of the base activation's weight. No spline rows stand for zeros.
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
  int64_t next_output = 0, next_feature = 0;  // of the block after the one that is written
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
      // One after the other: where a power of two separates outputs, both edges and gradients do not fit the same sets of L1.
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

  // The scaler's gradient: for every edge the sum of the coefficients' times these.
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
    for (int64_t f = 0; f < features; ++f) {
      next.template prefetch_part<true>(f);
      const C* rows = sums + f * feature_size;
      const V<C> factor = p.spline_scaler.data != nullptr ? load(&scale[f * lanes]) : broadcast(C(1));
      write_edges<C, W>(to + f * step, stride, bases, outputs,
                        [&](int64_t m) __attribute__((always_inline)) { return load(rows + m * row_length) * factor; });
    }
  }

  int64_t edge(int64_t o, int64_t i) const { return o * problem.edge_stride[0] + i * problem.edge_stride[1]; }

  // From one number for every feature and output to an (O, I) gradient.
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
