// Divides a problem into blocks of rows, chunks of features and tiles of outputs.
#pragma once

#include "namespace.inl"
#include "simd.inl"
#include "activation.inl"
#include "knot_tables.inl"
#include "contract.inl"

namespace KAN_NAMESPACE {
namespace {

constexpr int kSmallestBlock = 32;  // rows evaluated together: at least this, at most kLargestBlock

constexpr int kChunkFeatures = 32;  // summed separately: rounding errors grow with the chunk size and the number of chunks

constexpr int64_t kFewOutputs = 12;  // up to this many outputs, vectors run over rows instead of outputs (row ten-outputs)
constexpr int kFewOutputsMostLive = 6;          // live rows: up to this many, their values stay in registers

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t at_least_zero(int64_t n) { return n > 0 ? n : 0; }
inline int64_t at_least_one(int64_t n) { return n > 1 ? n : 1; }
inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

template <class C>
void add_to(C* __restrict sums, const C* __restrict terms, int64_t count) {
  for (int64_t k = 0; k < count; ++k) sums[k] += terms[k];
}

// Runs body(begin, end) over [0, count). `work` is the cost of an item in vector operations. Waking a thread costs about 10
// microseconds, so each thread gets at least 32768 operations.
template <class F>
void run_parallel(ParallelFor parallel_for, int64_t count, int64_t work, const F& body) {
  parallel_for(
      count, at_least_one(32768 / at_least_one(work)),
      [](int64_t begin, int64_t end, void* f) { (*static_cast<const F*>(f))(begin, end); }, (void*)&body);
}

// Calls f with the number of live rows as a Constant if it is specialised, else with Constant<-1>.
template <class F>
void with_live_rows(int live, F f) {
  switch (live) {
    case 4: return f(Constant<4>{});
#if KAN_ALL_DEGREES
    case 2: return f(Constant<2>{});
    case 3: return f(Constant<3>{});
    case 5: return f(Constant<5>{});
    case 6: return f(Constant<6>{});
    case 7: return f(Constant<7>{});
    case 8: return f(Constant<8>{});
#endif
    default: return f(Constant<-1>{});
  }
}

// Calls f with the width of a tile as a Constant.
template <int WIDEST, class F>
void with_width(int vectors, F f) {
  if constexpr (WIDEST > 1)
    if (vectors < WIDEST) return with_width<WIDEST - 1>(vectors, f);
  f(Constant<WIDEST>{});
}

// One register tile: outputs first .. first + vectors * lanes - 1.
struct Tile {
  int64_t first;
  int vectors;
};

// A problem with its sizes rounded to vectors and, after `prepare`, the tables of its knots.
template <class C>
struct TiledLayer {
  static constexpr int lanes = Simd<C>::lanes;
  const Problem& problem;
  KnotTables<C> tables;
  BaseActivation<C> activation, next_activation;
  int live;
  int64_t spline_rows;  // coefficient rows per feature that can be touched: M, or 0 when the spline part vanishes
  int64_t vectors, padded_outputs;
  int64_t tiles;
  int tile_vectors;  // width of every tile but the last, which may be narrower

  explicit TiledLayer(const Problem& p)
      : problem(p), tables(p), activation(p.activation, p.derivative),
        next_activation(p.activation, p.derivative + 1), live(tables.live),
        spline_rows(live > 0 ? p.G + p.K : 0), vectors(divide_up(p.O, lanes)), padded_outputs(vectors * lanes) {
    with_live_rows(live, [&](auto rows) { tiles = divide_up(vectors, widest_tile<decltype(rows)::value>()); });
    tile_vectors = int(divide_up(vectors, tiles));
    tiles = divide_up(vectors, tile_vectors);
  }

  // Fills the tables that EvaluationScratch reads.
  void prepare(ParallelFor parallel_for) {
    if (live == 0) return;
    tables.allocate();
    run_parallel(parallel_for, problem.I, tables.intervals, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) tables.read_knots(problem, i);
    });
    tables.share_tables();
    run_parallel(parallel_for, problem.I, tables.intervals * (problem.K + 1) * 8, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        tables.find_cells(i);
        tables.tabulate(i);
      }
    });
  }

  Tile tile(int64_t t) const {
    const int64_t first = t * tile_vectors;
    return {first * lanes, int(smaller(tile_vectors, vectors - first))};
  }

  bool has_base() const {
    const Problem& p = problem;
    return p.base_weight.data != nullptr || p.base_weight_gradient != nullptr || p.moments != nullptr || p.moment_weight != nullptr;
  }

  // The number of coefficient rows that can be an input's first.
  int buckets() const { return live > 0 ? int(problem.G) : 1; }

  // Returns the number of rows of a block: enough to give a run of the sorted inputs about `per_run` of them, because the end of
  // every run is a mispredicted branch. A tile of y or g then no longer fits L1, which costs less than short runs do. With several
  // tiles the limit is lower, because they would no longer fit L2. A run is shorter work if vectors are short: with 256 rows
  // instead of 128, a forward takes 7% less on AVX2 (64 -> 64, 4096 rows, Zen 3).
  int64_t block_rows(int per_run) const {
    constexpr int64_t at_least = KAN_VECTOR_BYTES == 64 ? 128 : 256;
    int64_t rows = kSmallestBlock;
    const int64_t largest = tiles == 1 ? kLargestBlock : kLargestBlock / 2;
    while (2 * rows <= largest && rows < problem.N && (rows < at_least || rows < per_run * buckets())) rows *= 2;
    return rows;
  }

  // With shorter runs, sorting costs more than reading the coefficients anew for every input.
  bool worth_sorting(int64_t block) const { return live > 0 && block >= 8 * buckets(); }

  // Returns the number of vectors that hold the M coefficients of an edge, or 0 if the layer does not use the loops for few
  // outputs.
  int few_outputs_table_vectors() const {
    const int64_t bases = problem.G + problem.K;
    const bool has_few_outputs = KAN_VECTOR_BYTES == 64 && problem.O <= kFewOutputs && live > 1 && live <= kFewOutputsMostLive && bases <= 2 * lanes;
    return has_few_outputs ? int(divide_up(bases, lanes)) : 0;
  }

  // Vector operations per row and feature, for the evaluation and the contraction.
  int64_t work_per_input() const { return 16 + (live + 1) * vectors; }

  // Returns the number of features evaluated together. With a single tile, which uses them at once, it is small so that they stay
  // in L1.
  int64_t group_features(int64_t chunk) const { return tiles == 1 ? smaller(chunk, problem.G > 6 ? 4 : 1) : chunk; }
};

// A part of a sum over rows: rows n0 .. end-1 of features i0 .. i0 + features - 1.
struct RowPart {
  int64_t split, n0, end, i0, features;
};

// Divides sums over the rows into chunks of features and, if there are few chunks, also into parts of the rows. The division
// depends only on the shape. Callers must add the sums of the parts in order.
struct RowSplits {
  int64_t N, I, block, chunk, chunks, count, rows;

  // Several tiles share an evaluated chunk. It has at most 64 features, so that two threads have work at 256 features and few rows.
  template <class C>
  explicit RowSplits(const TiledLayer<C>& layer) : N(layer.problem.N), I(layer.problem.I), block(layer.block_rows(32)) {
    chunk = smaller(I, layer.tiles == 1 ? 16 : 64 * 128 / (block < 128 ? 128 : block));
    chunks = divide_up(I, chunk);
    count = chunks >= 8 ? 1 : smaller(divide_up(8, chunks), at_least_one(N / (4 * block)));
    rows = divide_up(divide_up(N, count), block) * block;
  }

  // make_worker() returns the function f(part) of one thread.
  template <class MakeWorker>
  void run(ParallelFor parallel_for, int64_t work_per_input, const MakeWorker& make_worker) const {
    run_parallel(parallel_for, chunks * count, smaller(rows, N) * chunk * work_per_input, [&](int64_t begin, int64_t end) {
      auto add_part = make_worker();
      for (int64_t task = begin; task < end; ++task) {
        const int64_t split = task / chunks, i0 = task % chunks * chunk;
        add_part(RowPart{split, smaller(split * rows, N), smaller((split + 1) * rows, N), i0, smaller(chunk, I - i0)});
      }
    });
  }
};

}  // namespace
}  // namespace KAN_NAMESPACE
