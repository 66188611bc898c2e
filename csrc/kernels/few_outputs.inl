// Handles layers of few outputs, where vectors over the outputs would be mostly empty. Vectors run over the inputs of a feature
// instead and look up their coefficients by permuting registers. Nothing is sorted.
#pragma once

#include "namespace.inl"
#include "simd.inl"
#include "contract.inl"
#include "tiling.inl"
#include "packing.inl"

namespace KAN_NAMESPACE {
namespace {

constexpr int64_t kFewOutputsMostProducts = 36;   // up to this (M + 1) * O, dense bases cost less than sorted rows (row one-output)

// Calls f with the number of live rows and the number of vectors of a table as Constants.
template <class F>
void with_few_outputs_table(int live, int table_vectors, F f) {
  with_live_rows(live, [&](auto rows) {
    if constexpr (decltype(rows)::value > 1 && decltype(rows)::value <= kFewOutputsMostLive)
      table_vectors == 1 ? f(rows, Constant<1>{}) : f(rows, Constant<2>{});
  });
}

template <class C>
struct FewOutputsReader;

// The coefficients multiplied by their scaler. The table of feature i and output o is the M coefficients of that edge, padded to
// whole vectors.
template <class C>
struct FewOutputsCoefficients {
  using Reader = FewOutputsReader<C>;
  const Problem& problem;
  const int table_vectors;
  const int64_t table_size;  // entries per output
  Buffer<C> tables, base;    // base: (I, O), zeros if there is no base activation

  FewOutputsCoefficients(const TiledLayer<C>& layer, bool are_read, ParallelFor parallel_for)
      : problem(layer.problem), table_vectors(layer.few_outputs_table_vectors()), table_size(table_vectors * Simd<C>::lanes) {
    if (!are_read) return;
    tables.allocate(problem.I * problem.O * table_size);
    base.allocate(problem.I * problem.O);
    run_parallel(parallel_for, problem.I, problem.O * table_size, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) read(i);
    });
  }

  const C* table(int64_t i) const { return &tables[i * problem.O * table_size]; }
  const C* base_weights(int64_t i) const { return &base[i * problem.O]; }

 private:
  void read(int64_t i) {
    const Problem& p = problem;
    with_storage(p.storage, [&](auto tag) {
      using S = decltype(tag);
      const auto element = [&](const Operand& matrix, int64_t o) {
        return static_cast<const S*>(matrix.data) + o * matrix.stride[0] + i * matrix.stride[1];
      };
      for (int64_t o = 0; o < p.O; ++o) {
        C* const own = &tables[(i * p.O + o) * table_size];
        widen_row(element(p.spline_weight, o), p.spline_weight.stride[2], p.G + p.K, own);
        const C scale = p.spline_scaler.data != nullptr ? widen<C>(*element(p.spline_scaler, o)) : C(1);
        for (int64_t m = 0; m < table_size; ++m) own[m] = m < p.G + p.K ? own[m] * scale : C(0);
        base[i * p.O + o] = p.base_weight.data != nullptr ? widen<C>(*element(p.base_weight, o)) : C(0);
      }
    });
  }
};

// Has the interface of PanelReader. `open` does nothing, because the tables of all features already exist.
template <class C>
struct FewOutputsReader {
  const FewOutputsCoefficients<C>& coefficients;

  FewOutputsReader(const FewOutputsCoefficients<C>& coefficients_, int64_t) : coefficients(coefficients_) {}
  void open(const Tile&, int64_t, int64_t) {}
};

// The values of as many inputs as there are lanes, and the rows of their coefficients.
template <class C, int LIVE>
struct LiveLanes {
  V<C> value[LIVE + 1];
  Index<C> row[LIVE];

  [[gnu::always_inline]] LiveLanes(const Inputs<C>& inputs, int b) {
    row[0] = load_index<C>(inputs.first_rows + b);
    for (int k = 1; k < LIVE; ++k) row[k] = row[0] + typename Simd<C>::Int(k);
    for (int k = 0; k <= LIVE; ++k) value[k] = load(inputs.values + k * kValueStride + b);
  }
};

// Calls visit(b, o, phi), where phi holds the values of the edge to output o for the inputs from b on, one per lane.
template <class C, int LIVE, int TABLE_VECTORS, class Visit>
[[gnu::always_inline]] inline void few_outputs_contract(const Inputs<C>& inputs, int padded, const C* table, const C* base,
                                                   int64_t O, Visit visit) {
  constexpr int64_t table_size = TABLE_VECTORS * Simd<C>::lanes;
  for (int b = 0; b < padded; b += Simd<C>::lanes) {
    const LiveLanes<C, LIVE> live(inputs, b);
    for (int64_t o = 0; o < O; ++o) {
      V<C> sum = live.value[LIVE] * base[o];
      for (int k = 0; k < LIVE; ++k) sum += live.value[k] * lookup<C, TABLE_VECTORS>(table + o * table_size, live.row[k]);
      visit(b, o, sum);
    }
  }
}

// Adds a feature's contribution to y[o * padded + b].
template <class C, int LIVE, int TABLE_VECTORS>
void few_outputs_forward(const Inputs<C>& inputs, int padded, const C* table, const C* base, int64_t O, C* y) {
  few_outputs_contract<C, LIVE, TABLE_VECTORS>(inputs, padded, table, base, O,
                                          [&](int b, int64_t o, V<C> sum) __attribute__((always_inline)) {
                                            C* to = y + o * padded + b;
                                            store<C>(to, load(to) + sum);
                                          });
}

// Computes result[b], the gradient of input b, from g[o * g_stride + b].
template <class C, int LIVE, int TABLE_VECTORS>
void few_outputs_backward_input(const Inputs<C>& inputs, int padded, const C* table, const C* base, int64_t O, const C* g,
                           int64_t g_stride, C* result) {
  constexpr int64_t table_size = TABLE_VECTORS * Simd<C>::lanes;
  for (int b = 0; b < padded; b += Simd<C>::lanes) {
    const LiveLanes<C, LIVE> live(inputs, b);
    V<C> along[LIVE + 1] = {};
    for (int64_t o = 0; o < O; ++o) {
      const V<C> gradient = load(g + o * g_stride + b);
      for (int k = 0; k < LIVE; ++k) along[k] += gradient * lookup<C, TABLE_VECTORS>(table + o * table_size, live.row[k]);
      along[LIVE] += gradient * base[o];
    }
    V<C> sum = live.value[LIVE] * along[LIVE];
    for (int k = 0; k < LIVE; ++k) sum += live.value[k] * along[k];
    store<C>(result + b, sum);
  }
}

// Computes the gradient of the coefficients as a product of all M bases, most of which are 0, with g.
template <class C>
struct DenseBases {
  static constexpr int kRows = 5, kOutputs = 3;  // of a register tile: 15 sums, which sum_each reduces 16 at a time
  const int64_t M, stride;  // stride: row stride of the values and of g
  Buffer<C> values;         // (M + 1, stride): the bases, then the base activation

  DenseBases(int64_t M_, int64_t stride_) : M(M_), stride(stride_), values((M + 1) * stride) {}

  template <int LIVE>
  void spread(const Inputs<C>& inputs, int padded) {
    for (int b = 0; b < padded; b += Simd<C>::lanes) {
      const LiveLanes<C, LIVE> live(inputs, b);
      for (int64_t m = 0; m < M; ++m) {
        V<C> value = {};
        for (int k = 0; k < LIVE; ++k) value = live.row[k] == Index<C>{} + typename Simd<C>::Int(m) ? live.value[k] : value;
        store<C>(&values[m * stride + b], value);
      }
      store<C>(&values[M * stride + b], live.value[LIVE]);
    }
  }

  // Adds the sums over b of values times g[o * stride + b] to gradient[m * gradient_stride + o] and base_gradient[o].
  void add_products(const C* g, int padded, int64_t O, C* gradient, int64_t gradient_stride, C* base_gradient) const {
    for (int64_t m = 0; m <= M; m += kRows)
      for (int64_t o = 0; o < O; o += kOutputs) {
        C sums[kRows * kOutputs];
        tile(g, padded, m, o, O, sums);
        for (int r = 0; r < kRows && m + r <= M; ++r)
          for (int c = 0; c < kOutputs && o + c < O; ++c)
            (m + r < M ? gradient[(m + r) * gradient_stride + o + c] : base_gradient[o + c]) += sums[r * kOutputs + c];
      }
  }

 private:
  void tile(const C* g, int padded, int64_t m0, int64_t o0, int64_t O, C* sums) const {
    // Rows and outputs beyond the last repeat the last one; their sums are not used.
    const C *row[kRows], *output[kOutputs];
    for (int r = 0; r < kRows; ++r) row[r] = &values[smaller(m0 + r, M) * stride];
    for (int c = 0; c < kOutputs; ++c) output[c] = g + smaller(o0 + c, O - 1) * stride;
    V<C> sum[kRows * kOutputs + 1] = {};
    for (int b = 0; b < padded; b += Simd<C>::lanes) {
      V<C> gradient[kOutputs];
      for (int c = 0; c < kOutputs; ++c) gradient[c] = load(output[c] + b);
      for (int r = 0; r < kRows; ++r) {
        const V<C> value = load(row[r] + b);
        for (int c = 0; c < kOutputs; ++c) sum[r * kOutputs + c] += value * gradient[c];
      }
    }
    if constexpr (Simd<C>::lanes == kRows * kOutputs + 1) {
      const V<C> each = sum_each<C>(sum);
      for (int s = 0; s < kRows * kOutputs; ++s) sums[s] = each[s];
    } else {
      for (int s = 0; s < kRows * kOutputs; ++s) sums[s] = sum_lanes<C>(sum[s]);
    }
  }
};

}  // namespace
}  // namespace KAN_NAMESPACE
