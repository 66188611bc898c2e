// The inner loops, which multiply live values by coefficient rows, for the inputs of one feature and one tile of the outputs.
//
// Sorting groups the inputs into runs that read the same coefficient rows, which stay in registers during a run. Every input takes
// one multiply-add per value and vector of the tile, and fewer than half as many loads. LIVE is the number of live rows if it is
// known at compile time, else -1 and `live` holds it. R is the width of the tile in vectors. The base activation is row `live` of
// the values and has separate coefficients.
//
// If all K+1 bases of an input exist, their values sum to 1 and their derivatives to 0, so that with a pivot row p
//   sum_k v_k c_k = s c_p + sum_{k != p} v_k (c_k - c_p)      s = 1 or 0
// takes one multiply-add less. s = 1 takes an addition instead, but Zen 4 has separate units for additions: at K = 3 the loop takes
// 16 cycles instead of 20. Similarly, the gradient of c_p is s (sum of g) minus the gradients of the other rows. The pivot is the
// middle row, where values are largest.
#pragma once

#include "namespace.inl"
#include "simd.inl"
#include "row_sort.inl"

namespace KAN_NAMESPACE {
namespace {

constexpr int kLargestBlock = 2048;  // rows evaluated together (row grid-100)

// The distance between two values of an input. It is a constant, to save address registers, and not a multiple of the distance
// between lines of the same cache set.
constexpr int kValueStride = kLargestBlock + 16;

// Returns the number of entries that a feature takes in every row of values. Features of a small block share the rows, so that
// their values are on few pages.
inline int feature_room(int64_t block) { return block <= 256 ? 256 + 16 : kValueStride; }

// Returns the width in vectors of the widest tile whose live rows, base row and one input's vectors fit the registers.
template <int LIVE>
constexpr int widest_tile() {
  constexpr int registers = kVectorRegisters;
  int width = LIVE < 0 ? 1 : 4;
  while (width > 1 && (LIVE + 2) * width + 1 >= registers) --width;
  return width;
}

template <int LIVE>
constexpr int pivot_row() {
  return LIVE / 2;
}

// The sum of the values of the live bases.
enum class ValueSum { unknown, zero, one };

// The inputs of one feature. Row k of the values starts at values + k * kValueStride. Row `live`, the base activation, is indexed
// by input. In the other rows, place[position] is the entry of the input at that sorted position.
template <class C>
struct Inputs {
  const C* values;
  const int32_t* first_rows;  // indexed by input
  int count, live;
  Runs runs;
  const int32_t* place;
  int last_row;        // the largest possible first row of an input
  bool interior;       // whether every input has K+1 bases
  ValueSum value_sum;  // the sum of the values of an input that has K+1 bases

  // Returns the sum of each input's values in a run if it is one of USED, else unknown. Only the runs of the first and the last row
  // can have inputs near the ends of the knots.
  template <ValueSum... USED>
  ValueSum value_sum_of(int run) const {
    const bool has_all = interior || (runs.first[run] > 0 && runs.first[run] < last_row);
    return has_all && ((value_sum == USED) || ...) ? value_sum : ValueSum::unknown;
  }
};

// Calls f with `sum` as a Constant. `sum` is FIRST, one of USED or unknown.
template <ValueSum FIRST, ValueSum... USED, class F>
[[gnu::always_inline]] inline auto with_value_sum(ValueSum sum, F f) {
  if (sum == FIRST) return f(Constant<FIRST>{});
  if constexpr (sizeof...(USED) > 0)
    return with_value_sum<USED...>(sum, f);
  else
    return f(Constant<ValueSum::unknown>{});
}

template <class C, int R>
[[gnu::always_inline]] inline bool all_finite(const V<C>* v) {
  Index<C> bad = {};
  for (int r = 0; r < R; ++r) bad |= non_finite<C>(v[r]);
  return !any_lane<C>(bad);
}

// The coefficients of one feature and tile. Row m starts at rows + m * row_stride; `base` is the row of the base activation.
template <class C>
struct CoefTile {
  const C* rows;
  int64_t row_stride;
  const C* base;

  const C* row(int64_t m) const { return rows + m * row_stride; }
};

// The coefficient rows of a run, in registers.
template <class C, int LIVE, int R>
struct LiveRows {
  V<C> spline[LIVE > 0 ? LIVE : 1][R], base[R];

  [[gnu::always_inline]] explicit LiveRows(const CoefTile<C>& tile) { read_row(tile.base, base); }
  [[gnu::always_inline]] void read(const CoefTile<C>& tile, int32_t first) {
    for (int k = 0; k < LIVE; ++k) read_row(tile.row(first + k), spline[k]);
  }
  [[gnu::always_inline]] static void read_row(const C* from, V<C>* row) {
    for (int r = 0; r < R; ++r) row[r] = load(from + r * Simd<C>::lanes);
  }
  // Subtracts the pivot row from the other rows if `sum` is known. Returns the sum that the rows now assume. A pivot row that is
  // not finite is not subtracted, so that it spreads through its products.
  [[gnu::always_inline]] ValueSum subtract_pivot(ValueSum sum) {
    constexpr int pivot = pivot_row<LIVE>();
    if (LIVE < 2 || sum == ValueSum::unknown || !all_finite<C, R>(spline[pivot])) return ValueSum::unknown;
    for (int k = 0; k < LIVE; ++k) {
      if (k == pivot) continue;
      for (int r = 0; r < R; ++r) spline[k][r] -= spline[pivot][r];
    }
    return sum;
  }
};

// Calls finish(b, sum) for every input b, run by run, where `sum` is its values x coefficients in R vectors. The products of one
// feature are summed before they are added to other features, so that rounding errors grow with the number of features, not with
// the number of products.
template <class C, int LIVE, int R, class Finish>
[[gnu::always_inline]] inline void contract_runs(const Inputs<C>& inputs, const CoefTile<C>& tile, Finish finish) {
  constexpr int pivot = pivot_row<LIVE>();
  const Runs& runs = inputs.runs;
  const C* const values = inputs.values;
  LiveRows<C, LIVE, R> rows(tile);
  for (int run = 0; run < runs.count; ++run) {
    rows.read(tile, runs.first[run]);
    const ValueSum known_sum = rows.subtract_pivot(inputs.template value_sum_of<ValueSum::one>(run));
    const int64_t start = runs.start[run], count = runs.start[run + 1] - start;
    const int32_t *const order = runs.order + start, *const place = inputs.place + start;
    // By value: the store may change what a reference leads to, and every input would load it again.
    with_value_sum<ValueSum::one>(known_sum, [&, values, order, place, count, finish](auto known) __attribute__((always_inline)) {
      constexpr ValueSum value_sum = decltype(known)::value;
      for (int64_t position = 0; position < count; ++position) {
        const int64_t b = order[position];
        const C* value = values + place[position];
        V<C> sum[R];
        const V<C> base_factor = broadcast(values[LIVE * kValueStride + b]);
        for (int r = 0; r < R; ++r)
          sum[r] = value_sum == ValueSum::one ? rows.spline[pivot][r] + base_factor * rows.base[r] : base_factor * rows.base[r];
        for (int k = 0; k < LIVE; ++k) {
          if (value_sum != ValueSum::unknown && k == pivot) continue;
          const V<C> factor = broadcast(value[k * kValueStride]);
          for (int r = 0; r < R; ++r) sum[r] += factor * rows.spline[k][r];
        }
        finish(b, sum);
      }
    });
  }
}

// Computes y[b, tile] += values x coefficients. The function is not inlined, because its loop would then spill registers: on
// AVX2 a forward takes 11% less (64 -> 64, 4096 rows, Zen 3).
template <class C, int LIVE, int R>
[[gnu::noinline]] void forward_tile(const Inputs<C>& inputs, const CoefTile<C>& tile, C* y, int64_t y_stride) {
  contract_runs<C, LIVE, R>(inputs, tile, [y, y_stride](int64_t b, const V<C>* sum) __attribute__((always_inline)) {
    C* to = y + b * y_stride;
    for (int r = 0; r < R; ++r) store<C>(to + r * Simd<C>::lanes, load(to + r * Simd<C>::lanes) + sum[r]);
  });
}

// The same without sorting, one input after the other. The loads take 2.5 of 13.5 cycles more than the multiply-adds. Sorting costs
// as much, and more if runs are short.
template <class C, int LIVE, int R>
void forward_tile_unsorted(const Inputs<C>& inputs, const CoefTile<C>& tile, C* y, int64_t y_stride) {
  constexpr int lanes = Simd<C>::lanes;
  V<C> base[R];
  LiveRows<C, LIVE, R>::read_row(tile.base, base);
  for (int64_t b = 0; b < inputs.count; ++b) {
    const C *value = inputs.values + b, *row = tile.row(inputs.first_rows[b]);
    C* to = y + b * y_stride;
    V<C> sum[R];
    const V<C> base_factor = broadcast(value[LIVE * kValueStride]);
    for (int r = 0; r < R; ++r) sum[r] = base_factor * base[r];
    for (int k = 0; k < LIVE; ++k) {
      const V<C> factor = broadcast(value[k * kValueStride]);
      for (int r = 0; r < R; ++r) sum[r] += factor * load(row + k * tile.row_stride + r * lanes);
    }
    for (int r = 0; r < R; ++r) store<C>(to + r * lanes, load(to + r * lanes) + sum[r]);
  }
}

// Computes sum over the tile of (values x coefficients) g. products[b * lanes + l] is the part of that sum in lane l.
template <class C, int LIVE, int R>
void backward_input_tile(const Inputs<C>& inputs, const CoefTile<C>& tile, const C* g, int64_t g_stride, C* products) {
  constexpr int lanes = Simd<C>::lanes, pivot = pivot_row<LIVE>();
  const Runs& runs = inputs.runs;
  const C* const values = inputs.values;
  LiveRows<C, LIVE, R> rows(tile);
  for (int run = 0; run < runs.count; ++run) {
    rows.read(tile, runs.first[run]);
    const ValueSum known_sum = rows.subtract_pivot(inputs.template value_sum_of<ValueSum::zero, ValueSum::one>(run));
    const int64_t start = runs.start[run], count = runs.start[run + 1] - start;
    const int32_t *const order = runs.order + start, *const place = inputs.place + start;
    // By value, as in contract_runs. The sum over k is computed before the product with g, which takes fewer operations than a
    // product for each k: 10 instead of 12 at R = 2. Both together took 13% of spline_backward on AVX2 and 6% on AVX-512
    // (64 -> 64, 4096 rows, one thread).
    const auto add_products = [&, values, order, place, count](auto known) __attribute__((always_inline)) {
      constexpr ValueSum value_sum = decltype(known)::value;
      for (int64_t position = 0; position < count; ++position) {
        const int64_t b = order[position];
        const C* value = values + place[position];
        V<C> slope[R];
        const V<C> base_factor = broadcast(values[LIVE * kValueStride + b]);
        for (int r = 0; r < R; ++r)
          slope[r] = value_sum == ValueSum::one ? rows.spline[pivot][r] + base_factor * rows.base[r] : base_factor * rows.base[r];
        for (int k = 0; k < LIVE; ++k) {
          if (value_sum != ValueSum::unknown && k == pivot) continue;
          const V<C> factor = broadcast(value[k * kValueStride]);
          for (int r = 0; r < R; ++r) slope[r] += factor * rows.spline[k][r];
        }
        V<C> dot = slope[0] * load(g + b * g_stride);
        for (int r = 1; r < R; ++r) dot += slope[r] * load(g + b * g_stride + r * lanes);
        store<C>(products + b * lanes, dot);
      }
    };
    with_value_sum<ValueSum::zero, ValueSum::one>(known_sum, add_products);
  }
}

// Computes gradient[first row + k] += sum over inputs begin .. end-1 of a run of value k times g, and the same for base_gradient.
// These terms are summed before they are added to the gradient, so that rounding errors grow with the number of terms plus the
// number of sums, not with the product of the two. Returns false and adds nothing if an infinite g would cancel instead of
// spreading.
template <class C, int LIVE, int R, ValueSum SUM>
[[gnu::always_inline]] inline bool add_run(const Inputs<C>& inputs, int begin, int end, const C* g, int64_t g_stride,
                                           C* gradient, int64_t gradient_stride, C* base_gradient) {
  constexpr int lanes = Simd<C>::lanes, pivot = SUM == ValueSum::unknown ? -1 : pivot_row<LIVE>();
  const int32_t* const order = inputs.runs.order;
  V<C> sum[LIVE + 1][R], of_g[R];
  for (int r = 0; r < R; ++r) of_g[r] = V<C>{};
  for (int k = 0; k <= LIVE; ++k)
    for (int r = 0; r < R; ++r) sum[k][r] = V<C>{};
  for (int position = begin; position < end; ++position) {
    const int64_t b = order[position];
    const C *value = inputs.values + inputs.place[position], *base_value = inputs.values + LIVE * kValueStride + b;
    V<C> gv[R];
    for (int r = 0; r < R; ++r) gv[r] = load(g + b * g_stride + r * lanes);
    for (int k = 0; k <= LIVE; ++k) {
      if (k == pivot) continue;
      const V<C> factor = broadcast(k < LIVE ? value[k * kValueStride] : *base_value);
      for (int r = 0; r < R; ++r) sum[k][r] += factor * gv[r];
    }
    if constexpr (SUM == ValueSum::one)
      for (int r = 0; r < R; ++r) of_g[r] += gv[r];
  }
  if constexpr (pivot >= 0) {
    for (int k = 0; k < LIVE; ++k) {
      if (k == pivot) continue;
      for (int r = 0; r < R; ++r) of_g[r] -= sum[k][r];
    }
    if (!all_finite<C, R>(of_g)) return false;
    for (int r = 0; r < R; ++r) sum[pivot][r] = of_g[r];
  }
  for (int k = 0; k <= LIVE; ++k)
    for (int r = 0; r < R; ++r) {
      C* to = (k < LIVE ? gradient + k * gradient_stride : base_gradient) + r * lanes;
      store<C>(to, load(to) + sum[k][r]);
    }
  return true;
}

// Adds a run's terms in groups of `at_once` inputs. If `pivots`, the gradient of the pivot row may be computed from the other rows,
// with errors of the size of g instead of its products.
template <class C, int LIVE, int R>
void backward_coef_tile(const Inputs<C>& inputs, int at_once, bool pivots, const C* g, int64_t g_stride, C* gradient,
                        int64_t gradient_stride, C* base_gradient) {
  for (int run = 0; run < inputs.runs.count; ++run) {
    C* const to = gradient + inputs.runs.first[run] * gradient_stride;
    const ValueSum known_sum = LIVE > 1 && pivots ? inputs.template value_sum_of<ValueSum::one>(run) : ValueSum::unknown;
    const int run_end = inputs.runs.start[run + 1];
    for (int begin = inputs.runs.start[run]; begin < run_end; begin += at_once) {
      const int end = begin + at_once < run_end ? begin + at_once : run_end;
      const bool added = with_value_sum<ValueSum::one>(known_sum, [&](auto known) __attribute__((always_inline)) {
        return add_run<C, LIVE, R, decltype(known)::value>(inputs, begin, end, g, g_stride, to, gradient_stride, base_gradient);
      });
      if (!added) add_run<C, LIVE, R, ValueSum::unknown>(inputs, begin, end, g, g_stride, to, gradient_stride, base_gradient);
    }
  }
}

// The functions below do the same for degrees without a specialisation, one vector at a time. The rows stay in L1.

// Calls finish(b, values x coefficients) for every input.
template <class C, class Finish>
void contract_general(const Inputs<C>& inputs, const CoefTile<C>& tile, Finish finish) {
  const V<C> base = load(tile.base);
  for (int64_t b = 0; b < inputs.count; ++b) {
    V<C> spline = {};
    for (int k = 0; k < inputs.live; ++k)
      spline += broadcast(inputs.values[k * kValueStride + b]) * load(tile.row(inputs.first_rows[b] + k));
    finish(b, spline + broadcast(inputs.values[inputs.live * kValueStride + b]) * base);
  }
}

template <class C>
void forward_tile_general(const Inputs<C>& inputs, const CoefTile<C>& tile, C* y, int64_t y_stride) {
  contract_general(inputs, tile, [&](int64_t b, V<C> sum) { store<C>(y + b * y_stride, load(y + b * y_stride) + sum); });
}

template <class C>
void backward_input_tile_general(const Inputs<C>& inputs, const CoefTile<C>& tile, const C* g, int64_t g_stride,
                                 C* products) {
  const Runs& runs = inputs.runs;
  const V<C> base = load(tile.base);
  for (int run = 0; run < runs.count; ++run)
    for (int position = runs.start[run]; position < runs.start[run + 1]; ++position) {
      const int64_t b = runs.order[position];
      V<C> slope = {};
      for (int k = 0; k < inputs.live; ++k)
        slope += broadcast(inputs.values[k * kValueStride + b]) * load(tile.row(runs.first[run] + k));
      slope += broadcast(inputs.values[inputs.live * kValueStride + b]) * base;
      store<C>(products + b * Simd<C>::lanes, slope * load(g + b * g_stride));
    }
}

template <class C>
void backward_coef_tile_general(const Inputs<C>& inputs, int at_once, const C* g, int64_t g_stride, C* gradient,
                                int64_t gradient_stride, C* base_gradient) {
  const Runs& runs = inputs.runs;
  for (int run = 0; run < runs.count; ++run)
    for (int begin = runs.start[run]; begin < runs.start[run + 1]; begin += at_once) {
      const int end = begin + at_once < runs.start[run + 1] ? begin + at_once : runs.start[run + 1];
      for (int k = 0; k <= inputs.live; ++k) {
        V<C> sum = {};
        for (int position = begin; position < end; ++position) {
          const int64_t b = runs.order[position];
          sum += broadcast(inputs.values[k * kValueStride + b]) * load(g + b * g_stride);
        }
        C* row = k < inputs.live ? gradient + (runs.first[run] + k) * gradient_stride : base_gradient;
        store<C>(row, load(row) + sum);
      }
    }
}

}  // namespace
}  // namespace KAN_NAMESPACE
