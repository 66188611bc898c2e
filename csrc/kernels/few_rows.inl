// Handles batches of few rows. Vectors run over the features, the edges are read in place, and no buffer of the size of the weights
// is built.
#pragma once

#include "namespace.inl"
#include "simd.inl"
#include "activation.inl"
#include "knot_tables.inl"
#include "basis.inl"
#include "tiling.inl"
#include "packing.inl"
#include "edges_in_memory.inl"

namespace KAN_NAMESPACE {
namespace {

constexpr int64_t kFewRowsWait = 2;  // time relative to the vector operations: the weights are in L2 or L3 (replace.py, N=1)
constexpr int64_t kFewRows = 8;      // panels pay off from 9 rows on; 512 -> 512, 5 rows takes 0.6 of the time with panels
constexpr int64_t kOutputGroup = 128;    // outputs of a task: sums for the gradient of x take 1 % of the weights for each row
constexpr int64_t kReadSums = 4096;      // of a task's block of outputs: 16 KB of L1, and long pieces of the edges' lines
constexpr int64_t kWrittenBases = 16384; // of a task: 64 KB of L2, and long pieces of the gradient's lines
constexpr int64_t kOutputsAtOnce = 32;  // summed separately, like features: rounding errors grow with the number of outputs

// Evaluates the inputs of one row to as many features as there are lanes.
template <class C>
struct FeatureEvaluation {
  static constexpr int lanes = Simd<C>::lanes;
  const TiledLayer<C>& layer;
  const int K, intervals;
  Buffer<C> x, w, knots;     // knots: (K + J + 1 + K, lanes), with K more beyond either end
  Buffer<C> near, basis;     // vectors over the features
  Buffer<C> shifted;         // (3K + 1, lanes): live values by coefficient row, starting K before the first row

  explicit FeatureEvaluation(const TiledLayer<C>& layer_)
      : layer(layer_), K(layer.problem.K), intervals(layer.tables.intervals), x(lanes), w(lanes),
        knots((intervals + 1 + 2 * K) * lanes), near((2 * K + 1) * lanes), basis((K + 1) * lanes), shifted((3 * K + 1) * lanes) {}

  // Evaluates features i0 .. i0 + features - 1 of row n. Writes the live values and then the base activation, a vector each, to
  // `values`, and their next derivatives to `slopes` unless that is null. Also writes the first coefficient row of every feature.
  void evaluate(int64_t n, int64_t i0, int64_t features, C* values, C* slopes, int32_t* first_rows) {
    const Problem& p = layer.problem;
    pack_rows(p.storage, p.x, n, 1, i0, features, x.data, lanes);
    if (p.w.data != nullptr) pack_rows(p.storage, p.w, n, 1, i0, features, w.data, lanes);
    if (layer.live > 0) evaluate_spline(i0, features, values, slopes, first_rows);
    write_base(layer.activation, values);
    if (slopes != nullptr) write_base(layer.next_activation, slopes);
    for (int k = 0; p.w.data != nullptr && k <= layer.live; ++k) {
      store<C>(values + k * lanes, load(values + k * lanes) * load(w.data));
      if (slopes != nullptr) store<C>(slopes + k * lanes, load(slopes + k * lanes) * load(w.data));
    }
  }

  bool is_finite() const { return !any_lane<C>(non_finite<C>(load(x.data))); }

 private:
  void write_base(const BaseActivation<C>& activation, C* to) const {
    store<C>(to + layer.live * lanes, layer.has_base() ? activation(load(x.data)) : V<C>{});
  }

  void evaluate_spline(int64_t i0, int64_t features, C* values, C* slopes, int32_t* first_rows) {
    using Int = typename Simd<C>::Int;
    const Problem& p = layer.problem;
    C* inner = &knots[K * lanes];
    read_transposed(p.grid_storage, p.grid, i0, features, lanes, 0, intervals + 1, inner, lanes);
    const V<C> points = load(x.data), first = load(inner), last = load(inner + intervals * lanes), range = last - first;
    for (int m = 1; m <= K; ++m) {
      store<C>(inner - m * lanes, first - C(m) * range);
      store<C>(inner + (intervals + m) * lanes, last + C(m) * range);
    }
    Index<C> reached = {};  // the number of knots that are at most x
    for (int m = 0; m <= intervals; ++m) reached -= (Index<C>)(points >= load(inner + m * lanes));
    const Index<C> inside = (reached > Index<C>{}) & (reached <= Index<C>{} + Int(intervals));
    const Index<C> j = inside ? reached - Int(1) : Index<C>{};

    Index<C> lane;
    for (int l = 0; l < lanes; ++l) lane[l] = l;
    V<C>* near_knots = reinterpret_cast<V<C>*>(near.data);
    for (int r = 0; r < 2 * K; ++r) near_knots[r] = lookup<C, 0>(knots.data, (j + Int(1 + r)) * Int(lanes) + lane);
    const Index<C> row = first_row_of<C>(j, K, int(p.G));
    store_index(first_rows, row);
    write_live(points, inside, j - Int(K) - row, p.derivative, values);
    if (slopes != nullptr) write_live(points, inside, j - Int(K) - row, p.derivative + 1, slopes);
  }

  // `shift` is the first basis that is live on the interval minus the first row that exists.
  void write_live(V<C> points, Index<C> inside, Index<C> shift, int order, C* to) {
    V<C>* live = reinterpret_cast<V<C>*>(basis.data);
    if (order <= K)
      general_values<C>(K, order, reinterpret_cast<const V<C>*>(near.data), points, live);
    else
      for (int k = 0; k <= K; ++k) live[k] = V<C>{};
    if (any_lane<C>(shift)) {
      for (int k = 0; k <= 3 * K; ++k) store<C>(&shifted[k * lanes], V<C>{});
      for (int r = 0; r <= K; ++r)
        for (int l = 0; l < lanes; ++l) shifted[(K + r + int(shift[l])) * lanes + l] = live[r][l];
      for (int k = 0; k <= K; ++k) live[k] = load(&shifted[(K + k) * lanes]);
    }
    const V<C> outside = order < K ? (points - points) * C(0) : V<C>{};  // NaN if x is not finite
    for (int k = 0; k <= K; ++k) store<C>(to + k * lanes, inside ? live[k] : outside);
  }
};

// Returns the number of entries of a record, which holds the coefficients that an input reads: a power of two if several records
// fit a vector, else whole vectors.
template <class C>
constexpr int record_size(int live) {
  constexpr int lanes = Simd<C>::lanes;
  return live > 1 && live <= lanes / 2 ? ceil_pow2(live) : (live + lanes - 1) / lanes * lanes;
}

// Calls f with the number of entries of a record as a Constant if a record fits one vector, else with Constant<0>.
template <class C, int SIZE = 2, class F>
void with_record_size(int live, F f) {
  if (record_size<C>(live) == SIZE) return f(Constant<SIZE>{});
  if constexpr (SIZE < Simd<C>::lanes)
    with_record_size<C, 2 * SIZE>(live, f);
  else
    f(Constant<0>{});
}

// The evaluated inputs of all rows, in blocks of as many features as there are lanes.
template <class C>
struct FewRowsInputs {
  static constexpr int lanes = Simd<C>::lanes;
  const TiledLayer<C>& layer;
  const int64_t rows, blocks;
  const int record;                    // entries of a record
  const bool with_slopes;
  Buffer<C> values, slopes;            // (rows, blocks, lanes, record): 0 beyond the live values
  Buffer<C> base_values, base_slopes;  // (rows, blocks, lanes)
  Buffer<int32_t> first_rows;          // (rows, blocks, lanes)
  Buffer<uint8_t> finite;              // (rows, blocks)

  FewRowsInputs(const TiledLayer<C>& layer_, ParallelFor parallel_for)
      : layer(layer_), rows(layer.problem.N), blocks(divide_up(layer.problem.I, lanes)), record(record_size<C>(layer.live)),
        with_slopes(layer.problem.input_gradient_of_next_order), values(rows * blocks * lanes * record),
        slopes(with_slopes ? rows * blocks * lanes * record : 0), base_values(rows * blocks * lanes),
        base_slopes(with_slopes ? rows * blocks * lanes : 0), first_rows(rows * blocks * lanes), finite(rows * blocks) {
    run_parallel(parallel_for, blocks, rows * 8 * (layer.live + layer.tables.intervals), [&](int64_t begin, int64_t end) {
      FeatureEvaluation<C> evaluation(layer);
      Buffer<C> value((layer.live + 1) * lanes), slope((layer.live + 1) * lanes);
      for (int64_t n = 0; n < rows; ++n)
        for (int64_t block = begin; block < end; ++block) {
          const int64_t k = n * blocks + block;
          evaluation.evaluate(n, block * lanes, features_of(block), value.data, with_slopes ? slope.data : nullptr, &first_rows[k * lanes]);
          write_records(value.data, &values[k * lanes * record], &base_values[k * lanes]);
          if (with_slopes) write_records(slope.data, &slopes[k * lanes * record], &base_slopes[k * lanes]);
          finite[k] = evaluation.is_finite();
        }
    });
  }

  int64_t features_of(int64_t block) const { return smaller(lanes, layer.problem.I - block * lanes); }
  const C* value(int64_t n, int64_t block) const { return &values[(n * blocks + block) * lanes * record]; }
  const C* base_value(int64_t n, int64_t block) const { return &base_values[(n * blocks + block) * lanes]; }
  // The values that the gradient with respect to x uses: the slopes if they were evaluated, else the values.
  const C* slope(int64_t n, int64_t block) const { return (with_slopes ? slopes : values).data + (n * blocks + block) * lanes * record; }
  const C* base_slope(int64_t n, int64_t block) const { return (with_slopes ? base_slopes : base_values).data + (n * blocks + block) * lanes; }

 private:
  void write_records(const C* vectors, C* to, C* base) const {
    for (int lane = 0; lane < lanes; ++lane)
      for (int k = 0; k < record; ++k) to[lane * record + k] = k < layer.live ? vectors[k * lanes + lane] : C(0);
    store<C>(base, load(vectors + layer.live * lanes));
  }
};

// Convert one output's edges to some features, and the same elements of an (O, I) matrix, to the compute type. Few layers need
// these functions, so they are not inlined.
template <class C>
[[gnu::noinline]] void stage_edges(const Problem& p, int64_t o, int64_t first_feature, int64_t features, C* to) {
  const Operand& weight = p.spline_weight;
  const int64_t M = p.G + p.K;
  with_storage(p.storage, [&](auto tag) {
    const auto* from = static_cast<const decltype(tag)*>(weight.data) + o * weight.stride[0] + first_feature * weight.stride[1];
    for (int64_t f = 0; f < features; ++f) widen_row(from + f * weight.stride[1], weight.stride[2], M, to + f * M);
  });
}
template <class C>
[[gnu::noinline]] void pack_factors(const Problem& p, const Operand& matrix, int64_t o, int64_t first_feature, int64_t features, C* to) {
  pack_rows(p.storage, matrix, o, 1, first_feature, features, to, Simd<C>::lanes);
}

// The edges of one output to the features of a block. RECORD is the number of entries of a record if it fits one vector, else 0.
template <class C, int RECORD>
struct BlockEdges {
  static constexpr int lanes = Simd<C>::lanes;
  const Problem& p;
  const FewRowsInputs<C>& inputs;
  const int live, record, vectors;  // vectors: the number that hold the records of a block
  const int64_t M;
  const bool in_place;
  Buffer<C> staged;
  const C* edges = nullptr;
  int64_t stride = 0;  // between features
  int64_t block = 0, first_feature = 0, features = 0;

  explicit BlockEdges(const FewRowsInputs<C>& inputs_)
      : p(inputs_.layer.problem), inputs(inputs_), live(inputs.layer.live), record(inputs.record), vectors(record), M(p.G + p.K),
        in_place(is_stored_as<C>(p.storage) && p.spline_weight.stride[2] == 1), staged(lanes * M + record) {}

  void at(int64_t block_) {
    block = block_;
    first_feature = block * lanes;
    features = inputs.features_of(block);
  }

  // Must be called before `visit`.
  void open(int64_t o) {
    if (live == 0) return;
    const Operand& weight = p.spline_weight;
    const int64_t *step = weight.stride, last_edge = (p.O - 1) * step[0] + (p.I - 1) * step[1];
    // A record may extend past the last coefficient of its edge, but not past the last edge.
    const bool ends_inside = o * step[0] + (first_feature + features - 1) * step[1] + record <= last_edge;
    if (in_place && features == lanes && (ends_inside || live == record)) {
      edges = static_cast<const C*>(weight.data) + o * step[0] + first_feature * step[1];
      stride = step[1];
    } else {
      stage(o);
    }
  }

  // Calls add(v, factor, c) for every vector of records, where v is its index, c holds the coefficients that row n reads, and
  // `factor` repeats the factor of each feature for every coefficient.
  template <class Add>
  [[gnu::always_inline]] void visit(int64_t n, V<C> factors, const Add& add) const {
    const int32_t* first = &inputs.first_rows[(n * inputs.blocks + block) * lanes];
    if constexpr (RECORD > 0 && RECORD < lanes) {
      constexpr int in_vector = lanes / RECORD;
      Index<C> entry;
#pragma GCC unroll 16
      for (int l = 0; l < lanes; ++l) entry[l] = l % RECORD;
      const Index<C> exists = entry < Index<C>{} + typename Simd<C>::Int(live);
#pragma GCC unroll 8
      for (int v = 0; v < RECORD; ++v) {
        const V<C> c = load_records<C, RECORD>([&](int r) __attribute__((always_inline)) {
          const int lane = v * in_vector + r;
          return edges + lane * stride + first[lane];
        });
        add(v, repeat_lanes<C, RECORD>(factors, v * in_vector), (V<C>)((Index<C>)c & exists));
      }
    } else {
      const int in_record = record / lanes;
      C factor[lanes];
      store<C>(factor, factors);
      for (int lane = 0; live > 0 && lane < lanes; ++lane)
        for (int v = 0; v < in_record; ++v) {
          const V<C> c = load(edges + lane * stride + first[lane] + v * lanes);
          add(lane * in_record + v, broadcast(factor[lane]), (V<C>)((Index<C>)c & first_lanes<C>(live - v * lanes)));
        }
    }
  }

  // Returns the elements of an (O, I) matrix for the output and the features of the block, 0 beyond the last feature.
  V<C> factors(const Operand& matrix, int64_t o) const {
    if (is_stored_as<C>(p.storage) && matrix.stride[1] == 1 && features == lanes)
      return load(static_cast<const C*>(matrix.data) + o * matrix.stride[0] + first_feature);
    C element[lanes];
    pack_factors(p, matrix, o, first_feature, features, element);
    return load(element);
  }
  V<C> scale(int64_t o) const { return p.spline_scaler.data != nullptr ? factors(p.spline_scaler, o) : broadcast(C(1)); }
  V<C> base(int64_t o) const { return p.base_weight.data != nullptr ? factors(p.base_weight, o) : V<C>{}; }

 private:
  void stage(int64_t o) {
    stage_edges(p, o, first_feature, features, staged.data);
    for (int64_t k = features * M; k < lanes * M + record; ++k) staged[k] = C(0);
    edges = staged.data;
    stride = M;
  }
};

template <class C, int RECORD>
void few_rows_forward(const FewRowsInputs<C>& inputs, ParallelFor parallel_for) {
  constexpr int lanes = Simd<C>::lanes;
  const Problem& p = inputs.layer.problem;
  const int64_t work = kFewRowsWait * p.N * inputs.blocks * (inputs.record + 2);
  run_parallel(parallel_for, p.O, work, [&](int64_t begin, int64_t end) {
    BlockEdges<C, RECORD> edges(inputs);
    C total[kFewRows];
    for (int64_t o = begin; o < end; ++o) {
      for (int64_t n = 0; n < p.N; ++n) total[n] = C(0);
      for (int64_t first = 0; first < inputs.blocks; first += kChunkFeatures) {
        V<C> sums[kFewRows] = {};
        for (int64_t block = first; block < smaller(first + kChunkFeatures, inputs.blocks); ++block) {
          edges.at(block);
          edges.open(o);
          const V<C> scale = edges.scale(o), base = edges.base(o);
          for (int64_t n = 0; n < p.N; ++n) {
            const C* value = inputs.value(n, block);
            V<C> spline = {};
            edges.visit(n, scale, [&](int v, V<C> factor, V<C> c) __attribute__((always_inline)) {
              spline += load(value + v * lanes) * c * factor;
            });
            sums[n] += spline + load(inputs.base_value(n, block)) * base;
          }
        }
        for (int64_t n = 0; n < p.N; ++n) total[n] += sum_lanes<C>(sums[n]);
      }
      for (int64_t n = 0; n < p.N; ++n) write_rows(p.storage, &total[n], 1, 1, 1, p.y, n, o, p.O);
    }
  });
}

template <class C>
void few_rows_forward(const TiledLayer<C>& layer, ParallelFor parallel_for) {
  if (layer.problem.N == 0) return;
  const FewRowsInputs<C> inputs(layer, parallel_for);
  with_record_size<C>(layer.live, [&](auto record) { few_rows_forward<C, decltype(record)::value>(inputs, parallel_for); });
}

// Calls add(task of a thread) for groups of outputs and chunks of features, which depend on the shape alone. `work` is the cost of an
// edge in vector operations times the lanes.
template <class C, class MakeWorker>
void for_output_groups(const FewRowsInputs<C>& inputs, ParallelFor parallel_for, int64_t chunk, int64_t work, const MakeWorker& make_worker) {
  const int64_t O = inputs.layer.problem.O, groups = divide_up(O, kOutputGroup), chunks = divide_up(inputs.blocks, chunk);
  run_parallel(parallel_for, groups * chunks, kFewRowsWait * chunk * smaller(O, kOutputGroup) * work, [&](int64_t begin, int64_t end) {
    auto worker = make_worker();
    for (int64_t task = begin; task < end; ++task) {
      const int64_t group = task % groups, first = task / groups * chunk;
      worker.add(group, first, smaller(chunk, inputs.blocks - first));
    }
  });
}

template <class C>
void read_gradient(const Problem& p, int64_t o, C* gradient) {
  for (int64_t n = 0; n < p.N; ++n) pack_rows(p.storage, p.g, n, 1, o, 1, gradient + n, 1);
}

// Writes `width` numbers per feature of the blocks to the gradients of their edges to output o.
template <class C>
[[gnu::noinline]] void write_edges(const Problem& p, int64_t o, int64_t first, int64_t count, const C* from, int64_t width, void* to) {
  if (to == nullptr) return;
  constexpr int lanes = Simd<C>::lanes;
  const int64_t i0 = first * lanes, features = smaller(count * lanes, p.I - i0);
  const int64_t step = p.edge_stride[1], start = o * p.edge_stride[0] + i0 * step;
  if (step == 1)
    write_rows(p.storage, from, 0, 1, features * width, to, 0, start * width, 0);
  else
    for (int64_t f = 0; f < features; ++f) write_rows(p.storage, from + f * width, 0, 1, width, to, 0, (start + f * step) * width, 0);
}

// Returns the sum of every record of a block, in the order of the features.
template <class C, int RECORD>
V<C> sum_records(const C* records, int record) {
  constexpr int lanes = Simd<C>::lanes;
  V<C> sum = {};
  if constexpr (RECORD > 0) {
    V<C> v[RECORD];
    for (int k = 0; k < RECORD; ++k) v[k] = load(records + k * lanes);
    records_to_lanes<C, RECORD>(v);
    for (int k = 0; k < RECORD; ++k) sum += v[k];
    return sum;
  }
  for (int lane = 0; lane < lanes; ++lane)
    for (int k = 0; k < record; ++k) sum[lane] += records[lane * record + k];
  return sum;
}

// Reads the edges: sums them over the outputs for the gradient of x, and computes the gradient of the scaler.
template <class C, int RECORD>
struct FewRowsReader {
  static constexpr int lanes = Simd<C>::lanes;
  const FewRowsInputs<C>& inputs;
  const Problem& p;
  const int64_t block_size;  // sums per row and block: the records, then the base activation
  C* const along;            // (groups, rows, blocks, block_size): sums over the outputs of g times the weights
  BlockEdges<C, RECORD> edges;
  Buffer<C> some_along;  // (rows, chunk, block_size)
  Buffer<C> of_scaler;   // (features): the gradient for one output
  Buffer<C> products;    // (lanes, record)

  FewRowsReader(const FewRowsInputs<C>& inputs_, int64_t chunk, C* along_)
      : inputs(inputs_), p(inputs.layer.problem), block_size(sums_per_block(inputs)), along(along_), edges(inputs),
        some_along(along != nullptr ? p.N * chunk * block_size : 0), of_scaler(chunk * lanes), products(lanes * inputs.record) {}

  static int64_t sums_per_block(const FewRowsInputs<C>& inputs) { return (inputs.record + 1) * lanes; }

  void add(int64_t group, int64_t first, int64_t count) {
    C gradient[kFewRows];
    C* const sums = along == nullptr ? nullptr : along + (group * p.N * inputs.blocks + first) * block_size;
    for (int64_t n = 0; along != nullptr && n < p.N; ++n)
      __builtin_memset(sums + n * inputs.blocks * block_size, 0, size_t(count * block_size) * sizeof(C));
    const int64_t end = smaller((group + 1) * kOutputGroup, p.O);
    for (int64_t o0 = group * kOutputGroup; o0 < end; o0 += kOutputsAtOnce) {
      if (along != nullptr) __builtin_memset(some_along.data, 0, size_t(p.N * count * block_size) * sizeof(C));
      for (int64_t o = o0; o < smaller(o0 + kOutputsAtOnce, end); ++o) {
        prefetch_row(p.spline_scaler, o + 1, first, count);
        if (along != nullptr) prefetch_row(p.base_weight, o + 1, first, count);
        read_gradient(p, o, gradient);
        for (int64_t b = 0; b < count; ++b) read_block(o, first + b, b, count, gradient);
        write_edges(p, o, first, count, of_scaler.data, 1, p.spline_scaler_gradient);
      }
      for (int64_t n = 0; along != nullptr && n < p.N; ++n)
        add_to(sums + n * inputs.blocks * block_size, some_along.data + n * count * block_size, count * block_size);
    }
  }

 private:
  // Prefetches part of a row of an (O, I) matrix. It is too short for the hardware prefetcher.
  void prefetch_row(const Operand& matrix, int64_t o, int64_t first, int64_t count) const {
    if (o >= p.O || matrix.data == nullptr || !is_stored_as<C>(p.storage) || matrix.stride[1] != 1) return;
    prefetch<false>(static_cast<const C*>(matrix.data) + o * matrix.stride[0] + first * lanes, count * lanes);
  }

  void read_block(int64_t o, int64_t block, int64_t b, int64_t count, const C* gradient) {
    const bool for_inputs = along != nullptr, for_scaler = p.spline_scaler_gradient != nullptr;
    edges.at(block);
    edges.open(o);
    const V<C> scale = edges.scale(o), base = for_inputs ? edges.base(o) : V<C>{};
    if (for_scaler) __builtin_memset(products.data, 0, size_t(lanes * inputs.record) * sizeof(C));
    for (int64_t n = 0; n < p.N; ++n) {
      const V<C> g = broadcast(gradient[n]);
      C* const sums = some_along.data + (n * count + b) * block_size;
      const C* const value = inputs.value(n, block);
      const auto add_product = [&](int v, V<C> c) __attribute__((always_inline)) {
        store<C>(&products[v * lanes], load(&products[v * lanes]) + g * load(value + v * lanes) * c);
      };
      const auto add_along = [&](int v, V<C> factor, V<C> c) __attribute__((always_inline)) {
        store<C>(sums + v * lanes, load(sums + v * lanes) + factor * c);
      };
      if (for_inputs) store<C>(sums + edges.vectors * lanes, load(sums + edges.vectors * lanes) + g * base);
      if (for_inputs && for_scaler)
        edges.visit(n, scale * g, [&](int v, V<C> factor, V<C> c) __attribute__((always_inline)) {
          add_along(v, factor, c);
          add_product(v, c);
        });
      else if (for_inputs)
        edges.visit(n, scale * g, add_along);
      else
        edges.visit(n, g, [&](int v, V<C>, V<C> c) __attribute__((always_inline)) { add_product(v, c); });
    }
    if (for_scaler) store<C>(&of_scaler[b * lanes], sum_records<C, RECORD>(products.data, inputs.record));
  }
};

// Computes the gradient of x from the sums over the outputs.
template <class C, int RECORD>
void few_rows_input_gradient(const FewRowsInputs<C>& inputs, C* along, ParallelFor parallel_for) {
  constexpr int lanes = Simd<C>::lanes;
  const Problem& p = inputs.layer.problem;
  const int64_t groups = divide_up(p.O, kOutputGroup), size = FewRowsReader<C, RECORD>::sums_per_block(inputs);
  run_parallel(parallel_for, inputs.blocks, p.N * (groups + 2) * (inputs.record + 1), [&](int64_t begin, int64_t end) {
    for (int64_t n = 0; n < p.N; ++n)
      for (int64_t block = begin; block < end; ++block) {
        C* const sums = along + (n * inputs.blocks + block) * size;
        for (int64_t group = 1; group < groups; ++group) add_to(sums, sums + group * p.N * inputs.blocks * size, size);
        const C* const slope = inputs.slope(n, block);
        for (int v = 0; v < inputs.record; ++v) store<C>(sums + v * lanes, load(sums + v * lanes) * load(slope + v * lanes));
        C result[lanes];
        const V<C> of_base = load(sums + inputs.record * lanes) * load(inputs.base_slope(n, block));
        store<C>(result, sum_records<C, RECORD>(sums, inputs.record) + of_base);
        write_rows(p.storage, result, 0, 1, inputs.features_of(block), p.input_gradient, n, block * lanes, p.I);
      }
  });
}

// Writes the gradients that depend on no weight except the scaler, those of base_weight and spline_weight, output by output.
template <class C, int RECORD>
struct FewRowsWriter {
  static constexpr int lanes = Simd<C>::lanes;
  const FewRowsInputs<C>& inputs;
  const Problem& p;
  const int64_t M;
  const bool in_place;
  BlockEdges<C, RECORD> edges;
  Buffer<C> bases;       // (rows, features, M): all M bases, mostly 0
  Buffer<C> line;        // (features, M): the gradient for one output
  Buffer<C> of_base;     // (features): the gradient for one output
  Buffer<int32_t> lane;  // (M, lanes): the feature of every coefficient of a block
  int64_t spread_from = -1;

  FewRowsWriter(const FewRowsInputs<C>& inputs_, int64_t chunk)
      : inputs(inputs_), p(inputs.layer.problem), M(p.spline_weight_gradient != nullptr ? p.G + p.K : 0),
        in_place(p.edge_stride[1] == 1 && is_stored_as<C>(p.storage)), edges(inputs), bases(p.N * chunk * lanes * M),
        line(chunk * lanes * M), of_base(chunk * lanes), lane(M * lanes) {
    for (int64_t k = 0; k < M * lanes; ++k) lane[k] = int32_t(k / M);
  }

  void add(int64_t group, int64_t first, int64_t count) {
    if (M > 0 && first != spread_from) spread_bases(first, count);
    spread_from = first;
    C gradient[kFewRows];
    for (int64_t o = group * kOutputGroup; o < smaller((group + 1) * kOutputGroup, p.O); ++o) {
      read_gradient(p, o, gradient);
      C* const in_tensor = static_cast<C*>(p.spline_weight_gradient) + (o * p.edge_stride[0] + first * lanes) * M;
      for (int64_t b = 0; b < count; ++b) {
        fill_base(first + b, b, gradient);
        if (M == 0) continue;
        const bool whole = inputs.features_of(first + b) == lanes;
        fill_block(o, first + b, b, count, gradient, (in_place && whole ? in_tensor : line.data) + b * lanes * M);
        if (in_place && !whole) __builtin_memcpy(in_tensor + b * lanes * M, &line[b * lanes * M], size_t(inputs.features_of(first + b) * M) * sizeof(C));
      }
      write_edges(p, o, first, count, of_base.data, 1, p.base_weight_gradient);
      if (M > 0 && !in_place) write_edges(p, o, first, count, line.data, M, p.spline_weight_gradient);
    }
  }

 private:
  void spread_bases(int64_t first, int64_t count) {
    const bool spreads_nan = inputs.layer.live > 0 && inputs.layer.tables.degree > 0;
    __builtin_memset(bases.data, 0, size_t(p.N * count * lanes * M) * sizeof(C));
    for (int64_t n = 0; n < p.N; ++n)
      for (int64_t b = 0; b < count; ++b) {
        const int32_t* row = &inputs.first_rows[(n * inputs.blocks + first + b) * lanes];
        for (int64_t f = 0; f < inputs.features_of(first + b); ++f) {
          C* to = &bases[((n * count + b) * lanes + f) * M];
          const C* value = inputs.value(n, first + b) + f * inputs.record;
          for (int k = 0; k < inputs.layer.live; ++k) to[row[f] + k] = value[k];
          // If x is not finite, every basis of the dense formula is NaN, not only the rows read here.
          const bool is_nan = spreads_nan && inputs.finite[n * inputs.blocks + first + b] == 0 && value[0] != value[0];
          for (int64_t m = 0; is_nan && m < M; ++m) to[m] = value[0];
        }
      }
  }

  void fill_base(int64_t block, int64_t b, const C* gradient) {
    V<C> sum = {};
    for (int64_t n = 0; n < p.N; ++n) sum += broadcast(gradient[n]) * load(inputs.base_value(n, block));
    store<C>(&of_base[b * lanes], sum);
  }

  // The M coefficients of as many features as there are lanes fill M vectors.
  void fill_block(int64_t o, int64_t block, int64_t b, int64_t count, const C* gradient, C* to) {
    edges.at(block);
    const V<C> scale = edges.scale(o);
    C factor[kFewRows * lanes];
    const int64_t rows = p.N, row_size = count * lanes * M;
    const C* const from = &bases[b * lanes * M];
    for (int64_t n = 0; n < rows; ++n) store<C>(factor + n * lanes, broadcast(gradient[n]) * scale);
    const auto fill = [&](auto factor_of) __attribute__((always_inline)) {
      for (int64_t k = 0; k < M * lanes; k += lanes) {
        V<C> value = {};
#pragma GCC unroll 1  // unrolling for kFewRows rows would compute all addresses even for one row
        for (int64_t n = 0; n < rows; ++n) value += factor_of(factor + n * lanes, k) * load(from + n * row_size + k);
        store<C>(to + k, value);
      }
    };
    if (M % lanes == 0)
      fill([&](const C* factors, int64_t k) __attribute__((always_inline)) { return broadcast(factors[lane[k]]); });
    else
      fill([&](const C* factors, int64_t k) __attribute__((always_inline)) { return lookup<C, 1>(factors, load_index<C>(&lane[k])); });
  }
};

template <class C>
void few_rows_backward(const TiledLayer<C>& layer, ParallelFor parallel_for) {
  const Problem& p = layer.problem;
  const FewRowsInputs<C> inputs(layer, parallel_for);
  const int64_t rows = at_least_one(p.N);
  with_record_size<C>(layer.live, [&](auto record) {
    using Reader = FewRowsReader<C, decltype(record)::value>;
    // The edges are read before the gradients are written: interleaved, loads would wait for stores at a multiple of 4 KiB away, which
    // is where the edges of the next output often are.
    if (p.input_gradient != nullptr || p.spline_scaler_gradient != nullptr) {
      const int64_t size = Reader::sums_per_block(inputs);
      Buffer<C> along(p.input_gradient != nullptr ? divide_up(p.O, kOutputGroup) * p.N * inputs.blocks * size : 0);
      C* const sums = p.input_gradient != nullptr ? along.data : nullptr;
      const int64_t chunk = at_least_one(kReadSums / (rows * size));
      for_output_groups<C>(inputs, parallel_for, chunk, p.N * (2 * inputs.record + 2), [&] { return Reader(inputs, chunk, sums); });
      if (sums != nullptr) few_rows_input_gradient<C, decltype(record)::value>(inputs, sums, parallel_for);
    }
    if (p.spline_weight_gradient != nullptr || p.base_weight_gradient != nullptr) {
      const int64_t chunk = at_least_one(kWrittenBases / (rows * Simd<C>::lanes * (p.G + p.K)));
      for_output_groups<C>(inputs, parallel_for, chunk, p.N + p.G + p.K, [&] { return FewRowsWriter<C, decltype(record)::value>(inputs, chunk); });
    }
  });
}

}  // namespace
}  // namespace KAN_NAMESPACE
