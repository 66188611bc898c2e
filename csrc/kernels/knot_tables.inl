// Prepares the knots of a layer for finding intervals and for evaluating bases on them.
//
// On one interval every live basis is a polynomial of degree K. Its coefficients are prepared once per call, in a wider type,
// around a representable point near the middle of the interval, where the power basis is well conditioned. An input then costs one
// search and K+1 short Horner chains, for uniform and adaptive knots, and x - centre is exact. Rows outside 0..M-1 have zero
// coefficients. Inputs outside the extended knots use one more interval, whose coefficients are all zero.
#pragma once

#include "namespace.inl"
#include "simd.inl"
#include "double_double.inl"

namespace KAN_NAMESPACE {
namespace {

constexpr int ceil_pow2(int n) { return n <= 1 ? 1 : 2 * ceil_pow2((n + 1) / 2); }

// Computes the coefficients of the live bases N_r, r = 0..K, of one interval as polynomials in u, where x = centre + width * u. If
// T is a vector, each lane holds one interval. t[0..2K-1] are the knots from K-1 before the start of the interval to K-1 after its
// end. The scheme is A2.2 of "The NURBS Book", applied to polynomials instead of numbers. A quotient over an empty span counts as
// 0.
template <int K, class T>
inline void local_polynomials(const T* t, T centre, T width, T (*n)[K + 1]) {
  for (int r = 0; r <= K; ++r)
    for (int p = 0; p <= K; ++p) n[r][p] = T{};
  n[0][0] = T{} + 1;
  for (int d = 1; d <= K; ++d) {
    T saved[K + 1] = {};
    for (int r = 0; r < d; ++r) {
      const T right = t[K + r], left = t[K - d + r];
      const T span = right - left;
      const T inverse = span > T{} ? 1 / span : T{};
      const T falling = (right - centre) * inverse, rising = (centre - left) * inverse, slope = width * inverse;
      T risen[K + 1];
      for (int p = 0; p <= d; ++p) {
        const T same = p < d ? n[r][p] : T{}, below = p > 0 ? n[r][p - 1] : T{};
        risen[p] = rising * same + slope * below;
        saved[p] += falling * same - slope * below;
      }
      for (int p = 0; p <= d; ++p) {
        n[r][p] = saved[p];
        saved[p] = risen[p];
      }
    }
    for (int p = 0; p <= d; ++p) n[d][p] = saved[p];
  }
}

// The type in which the polynomials of compute type C are prepared, and the number of intervals prepared at once. Preparing the
// coefficients of float64 in float64 would lose the last digits of the higher derivatives.
template <class C>
struct Preparation;
template <>
struct Preparation<float> {
  using Number = double;
  using Lanes = V<double>;
  static constexpr int lanes = Simd<double>::lanes;
  typedef float Narrow __attribute__((vector_size(KAN_VECTOR_BYTES / 2)));
  typedef float UnalignedNarrow __attribute__((vector_size(KAN_VECTOR_BYTES / 2), aligned(4), may_alias));
  static Lanes load(const double* p) { return KAN_NAMESPACE::load(p); }
  static Lanes rounded(Lanes v) { return __builtin_convertvector(__builtin_convertvector(v, Narrow), Lanes); }
  static void store(float* p, Lanes v) { *reinterpret_cast<UnalignedNarrow*>(p) = __builtin_convertvector(v, Narrow); }
};
template <>
struct Preparation<double> {
#ifdef __x86_64__
  using Number = long double;
#else
  using Number = DoubleDouble;
#endif
  using Lanes = Number;
  static constexpr int lanes = 1;
  static Lanes load(const Number* p) { return *p; }
  static Lanes rounded(Lanes v) { return double(v); }
  static void store(double* p, Lanes v) { *p = double(v); }
};

// Returns, per lane, the first of the K+1 consecutive coefficient rows that an input in interval j reads.
template <class C>
inline Index<C> first_row_of(Index<C> j, int K, int G) {
  using Int = typename Simd<C>::Int;
  const Index<C> zero = {};
  return min_of<C>(max_of<C>(j - Int(K), zero), zero + Int(G - 1));
}

// All data about the knots that an evaluation needs.
template <class C>
struct KnotTables {
  int64_t I, G;
  int K, derivative;
  int intervals;  // J = G + 2K; interval J is the empty one
  int padded;     // knots per feature: a power of two, at least a vector; at least one +inf follows the last knot
  int slots;      // entries of one table row: J + 1, padded to vectors
  int live;       // rows that an input reads: K + 1, or 0 if the derivative order exceeds K
  int degree;     // degree of the polynomials: K - derivative
  int width;      // entries of a record row: K + 1 rounded up to a power of two
  // The number of vectors that hold a table row, so that a lookup is one permutation of registers. 0 if a row is longer or the
  // instruction set has no such permutation; the coefficients of an interval are then stored together in a record.
  int row_vectors;
  Buffer<C> knots;                 // (I, padded)
  // The range of the knots is divided into `padded` cells of equal width. A search begins at the interval in which the input's cell
  // starts and takes cell_steps steps, the largest number of knots in a cell: one if the knots are uniform. cell_steps is 0 if
  // there are too many.
  Buffer<C> cells_per_unit;        // (I)
  Buffer<C> cell_start;            // (I, padded)
  Buffer<uint8_t> cell_steps;      // (I)
  Buffer<int64_t> table_of;        // (I): the feature with the same knots whose tables this one uses
  Buffer<C> centre, inverse_width; // (I, slots)
  Buffer<C> coefficients;          // (I, degree+1, K+1, slots)
  Buffer<C> records;               // (I, J+1, degree+1, width)

  explicit KnotTables(const Problem& problem)
      : I(problem.I), G(problem.G), K(problem.K), derivative(problem.derivative), intervals(int(G) + 2 * K),
        padded(ceil_pow2(intervals + 2 > Simd<C>::lanes ? intervals + 2 : Simd<C>::lanes)),
        slots(padded <= 2 * Simd<C>::lanes ? padded : (intervals + Simd<C>::lanes) / Simd<C>::lanes * Simd<C>::lanes),
        live(derivative > K ? 0 : K + 1), degree(K - derivative), width(ceil_pow2(K + 1)),
        row_vectors(KAN_VECTOR_BYTES == 64 && padded <= 2 * Simd<C>::lanes ? padded / Simd<C>::lanes : 0) {}
  void allocate() {
    knots.allocate(I * padded);
    cells_per_unit.allocate(I);
    cell_start.allocate(I * padded);
    cell_steps.allocate(I);
    table_of.allocate(I);
    if (!specialised()) return;
    centre.allocate(I * slots);
    inverse_width.allocate(I * slots);
    if (row_vectors > 0)
      coefficients.allocate(I * table_size());
    else
      records.allocate(I * (intervals + 1) * record_size());
  }
  bool specialised() const { return live > 0 && (KAN_ALL_DEGREES ? K >= 1 && K <= 7 : K == 3); }

  // Calls f with K as a Constant if K is specialised.
  template <class F>
  void with_specialisation(F f) const {
    switch (K) {
      case 3: return f(Constant<3>{});
#if KAN_ALL_DEGREES
      case 1: return f(Constant<1>{});
      case 2: return f(Constant<2>{});
      case 4: return f(Constant<4>{});
      case 5: return f(Constant<5>{});
      case 6: return f(Constant<6>{});
      case 7: return f(Constant<7>{});
#endif
    }
  }

  int64_t table_size() const { return int64_t(degree + 1) * (K + 1) * slots; }
  int64_t record_size() const { return int64_t(degree + 1) * width; }

  void read_knots(const Problem& problem, int64_t i) {
    C* t = &knots[i * padded];
    with_storage(problem.grid_storage, [&](auto tag) {
      const auto* source = static_cast<const decltype(tag)*>(problem.grid.data) + i * problem.grid.stride[0];
      for (int m = 0; m <= intervals; ++m) t[m] = widen<C>(source[m * problem.grid.stride[1]]);
    });
    for (int m = intervals + 1; m < padded; ++m) t[m] = C(__builtin_inf());
  }

  // Counts the knots in the cells of feature i. For any values of the knots, a search ends at the +inf after them.
  void find_cells(int64_t i) {
    if (table_of[i] != i) return;
    const C* t = &knots[i * padded];
    C* start = &cell_start[i * padded];
    const C range = t[intervals] - t[0];
    cell_steps[i] = 0;
    cells_per_unit[i] = C(padded) / range;
    if (!(range > 0 && cells_per_unit[i] > 0 && cells_per_unit[i] < C(__builtin_inf()))) return;
    for (int c = 0; c < padded; ++c) start[c] = 0;
    int steps = 0;
    for (int m = 1; m <= intervals; ++m) {
      const C place = (t[m] - t[0]) * cells_per_unit[i];  // rounded like an input's: a point in an earlier cell is smaller
      const int cell = !(place > 0) ? 0 : place < C(padded) ? int(place) : padded - 1;
      start[cell] += 1;
      if (start[cell] > steps) steps = int(start[cell]);
    }
    C before = 0;
    for (int c = 0; c < padded; ++c) {
      const C own = start[c];
      start[c] = before;
      before += own;
    }
    if (steps <= 8 && (2 << steps) <= padded) cell_steps[i] = uint8_t(steps);  // otherwise a binary search takes fewer lookups
  }

  // A feature with the same knots as the previous one shares its tables. If the grid was never adapted, all features share them.
  void share_tables() {
    for (int64_t i = 0; i < I; ++i) {
      const C* t = &knots[i * padded];
      const bool same = i > 0 && __builtin_memcmp(t, t - padded, size_t(intervals + 1) * sizeof(C)) == 0;
      table_of[i] = same ? table_of[i - 1] : i;
    }
  }

  // Fills the tables of feature i. Row (p, k) holds coefficient p of live basis k for all intervals.
  template <int DEGREE>
  void tabulate(int64_t i) {
    using P = Preparation<C>;
    using Number = typename P::Number;
    using Lanes = typename P::Lanes;
    const C* t = &knots[i * padded];
    Buffer<C> own_table(row_vectors > 0 ? 0 : table_size());  // other threads fill other features' tables
    C* table = row_vectors > 0 ? &coefficients[i * table_size()] : own_table.data;
    C *c = &centre[i * slots], *s = &inverse_width[i * slots];
    // Knots beyond either end belong to bases that do not exist; any increasing continuation works.
    Buffer<Number> extended(slots + 2 * DEGREE + P::lanes);
    const Number first = t[0], last = t[intervals], step = last - first;
    for (int m = -DEGREE; m < slots + DEGREE + P::lanes; ++m)
      extended[m + DEGREE] = m < 0 ? first + m * step : m > intervals ? last + (m - intervals) * step : Number(t[m]);

    for (int j = 0; j < intervals; j += P::lanes) {
      Lanes near[2 * DEGREE];
      for (int r = 0; r < 2 * DEGREE; ++r) near[r] = P::load(&extended[j + 1 + r]);
      const Lanes start = near[DEGREE - 1], end = near[DEGREE], width_here = end - start;
      const Lanes inverse = P::rounded(width_here > Lanes{} ? 1 / width_here : Lanes{} + 1);
      const Lanes middle = P::rounded((start + end) / 2);
      P::store(c + j, middle);
      P::store(s + j, inverse);
      Lanes values[DEGREE + 1][DEGREE + 1];
      local_polynomials<DEGREE, Lanes>(near, middle, 1 / inverse, values);
      for (int p = derivative; p <= DEGREE; ++p) {
        Lanes factor = width_here > Lanes{} ? Lanes{} + 1 : Lanes{};
        for (int n = 0; n < derivative; ++n) factor *= inverse * (p - n);
        for (int r = 0; r <= DEGREE; ++r)
          P::store(table + ((p - derivative) * (DEGREE + 1) + r) * slots + j, factor * values[r][p]);
      }
    }
    for (int j = intervals; j < slots; ++j) {
      c[j] = 0;
      s[j] = 1;
      for (int row = 0; row < (degree + 1) * (DEGREE + 1); ++row) table[row * slots + j] = 0;
    }
    for (int j = 0; j < intervals; ++j) keep_existing_rows(table, j);
    if (row_vectors == 0)
      for (int j = 0; j <= intervals; ++j)
        for (int p = 0; p <= degree; ++p)
          for (int k = 0; k <= DEGREE; ++k)
            records[(i * (intervals + 1) + j) * record_size() + p * width + k] = table[(p * (DEGREE + 1) + k) * slots + j];
  }

  // Moves the values of interval j from bases j-K..j to rows first_row(j)..first_row(j)+K. Near the ends some of those bases do not
  // exist.
  void keep_existing_rows(C* table, int j) const {
    const int shift = j - K - first_row(j);
    if (shift == 0) return;
    for (int p = 0; p <= degree; ++p) {
      C* column = table + p * (K + 1) * slots + j;
      for (int step = 0; step <= K; ++step) {
        const int k = shift < 0 ? step : K - step, from = k - shift;
        column[k * slots] = from >= 0 && from <= K ? column[from * slots] : C(0);
      }
    }
  }

  void tabulate(int64_t i) {
    if (!specialised() || table_of[i] != i) return;
    with_specialisation([&](auto degree) { tabulate<decltype(degree)::value>(i); });
  }

  // Returns knot m of a feature. Knots beyond either end belong to bases that do not exist; any increasing continuation works.
  C knot_beyond(const C* t, int m) const {
    const C range = t[intervals] - t[0];
    return m < 0 ? t[0] + C(m) * range : m > intervals ? t[intervals] + C(m - intervals) * range : t[m];
  }

  // Returns whether all K+1 bases exist on interval j.
  bool is_interior(int j) const { return j >= K && j < int(G) + K; }

  // Returns the first of the K+1 consecutive coefficient rows that an input in interval j reads.
  int first_row(int j) const { return j < K ? 0 : j - K < int(G) - 1 ? j - K : int(G) - 1; }

  // What an evaluation of one feature reads, by value, so that the compiler knows that no store changes it.
  struct Feature {
    int G, K, intervals, degree, padded;
    int cell_steps;
    C first, last, cells_per_unit;
    const C *knots, *cell_start, *centre, *inverse_width, *coefficients, *records;

    Index<C> first_row(Index<C> j) const { return first_row_of<C>(j, K, G); }

    // Returns the interval of each lane, J outside the knots and for NaN. For any x and knots, the result is in 0..J.
    template <int ROW_VECTORS>
    Index<C> find_interval(V<C> x) const {
      using Int = typename Simd<C>::Int;
      const Index<C> zero = {}, empty = zero + Int(intervals);
      const auto inside = (x >= broadcast(first)) & (x < broadcast(last));
      Index<C> j = zero;
      if (cell_steps > 0) {
        const V<C> point = min_of<C>(x, broadcast(last)), place = (point - first) * cells_per_unit;
        const V<C> cell = min_of<C>(max_of<C>(place, V<C>{}), broadcast(C(padded - 1)));
        j = __builtin_convertvector(lookup<C, ROW_VECTORS>(cell_start, __builtin_convertvector(cell, Index<C>)), Index<C>);
        for (int step = 0; step < cell_steps; ++step) j -= (Index<C>)(point >= lookup<C, ROW_VECTORS>(knots, j + 1));  // true is -1
      } else {
        for (Int step = padded / 2; step > 0; step /= 2) {
          const Index<C> further = j + step;
          j = x >= lookup<C, ROW_VECTORS>(knots, further) ? further : j;
        }
      }
      j = inside ? j : empty;
      return min_of<C>(max_of<C>(j, zero), empty);  // in case the knots are not in order
    }
  };
  Feature feature(int64_t i) const {
    const C* t = knots.data + i * padded;
    const bool has_tables = specialised();
    return {int(G), K, intervals, degree, padded, cell_steps[i], t[0], t[intervals], cells_per_unit[i], t, cell_start.data + i * padded,
            has_tables ? centre.data + i * slots : nullptr,
            has_tables ? inverse_width.data + i * slots : nullptr,
            has_tables && row_vectors > 0 ? coefficients.data + i * table_size() : nullptr,
            has_tables && row_vectors == 0 ? records.data + i * (intervals + 1) * record_size() : nullptr};
  }

  // Finds the interval of each of `count` inputs of feature i. `count` is a multiple of the vector length.
  void find_intervals(int64_t i, const C* x, int count, int32_t* intervals_of) const {
    const Feature knots = feature(table_of[i]);
    const auto find = [=](auto row_vectors) __attribute__((always_inline)) {
      for (int b = 0; b < count; b += Simd<C>::lanes)
        store_index(intervals_of + b, knots.template find_interval<decltype(row_vectors)::value>(load(x + b)));
    };
    // On AVX2, looking up knots in registers takes 2 cycles per input, gathering them 4 (Zen 3, grid size 5).
    constexpr bool permutes = KAN_VECTOR_BYTES == 32 && sizeof(C) == 4;
    if (permutes && padded == Simd<C>::lanes) return find(Constant<1>{});
    if (permutes && padded == 2 * Simd<C>::lanes) return find(Constant<2>{});
    find(Constant<0>{});
  }
};

}  // namespace
}  // namespace KAN_NAMESPACE
