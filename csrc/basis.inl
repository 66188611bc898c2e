// Interval search and the K+1 live B-spline values of derivative order n. Included by kernels.inl inside its namespace.
//
// On one interval every live basis is a polynomial of degree K. Its coefficients are prepared once per call, in a wider type,
// around a representable point near the interval's middle, where the power basis is well conditioned; an input then costs
// one search and K+1 short Horner chains, uniform and adaptive knots alike, and x - centre is exact. Rows that would lie
// outside 0..M-1 have zero coefficients there, and one more interval, all zeros, takes what lies outside the extended knots.

constexpr int ceil_pow2(int n) { return n <= 1 ? 1 : 2 * ceil_pow2((n + 1) / 2); }

// Coefficients of the live bases N_r, r = 0..K, of one interval (or, T being a vector, of one interval per lane) as polynomials
// in u, x = centre + width * u, where t[0..2K-1] are the knots K-1 before the interval's start up to K-1 after its end. The
// triangular scheme of "The NURBS Book", A2.2, on polynomials instead of numbers. An empty span's quotient counts as 0.
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

// The type in which the polynomials of compute type C are prepared, and how many intervals at once. float64's coefficients
// prepared in float64 would lose the last digits of the higher derivatives.
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
  using Number = long double;
  using Lanes = long double;
  static constexpr int lanes = 1;
  static Lanes load(const long double* p) { return *p; }
  static Lanes rounded(Lanes v) { return double(v); }
  static void store(double* p, Lanes v) { *p = double(v); }
};

// Everything about the knots that an evaluation needs.
template <class C>
struct KnotTables {
  int64_t I, G;
  int K, derivative;
  int intervals;  // J = G + 2K; interval J is the empty one
  int slots;      // J + 1, padded to vectors: entries of one table row
  int padded;     // knots per feature: a power of two of at least a vector, +inf after the last
  int live;       // rows an input touches: K + 1, or 0 when the derivative order exceeds K
  int degree;     // of the polynomials: K - derivative
  int width;      // of a record row: K + 1 rounded up to a power of two
  // Vectors that hold a table row, so that a lookup is one permutation of registers; 0: a row is longer, or the instruction
  // set has no such permutation, and an interval's coefficients are kept together in a record.
  int row_vectors;
  Buffer<C> knots;                 // (I, padded)
  Buffer<C> origin, inverse_step;  // (I): guess of the interval on uniform knots
  Buffer<uint8_t> uniform;         // (I): the guess is at most one interval off
  Buffer<int64_t> table_of;        // (I): the feature whose tables serve this one, which has the same knots
  Buffer<C> centre, inverse_width; // (I, slots)
  Buffer<C> coefficients;          // (I, degree+1, K+1, slots)
  Buffer<C> records;               // (I, J+1, degree+1, width)

  explicit KnotTables(const Problem& problem)
      : I(problem.I), G(problem.G), K(problem.K), derivative(problem.derivative), intervals(int(G) + 2 * K),
        slots((intervals + 1 + Simd<C>::lanes - 1) / Simd<C>::lanes * Simd<C>::lanes),
        padded(ceil_pow2(intervals + 1 > Simd<C>::lanes ? intervals + 1 : Simd<C>::lanes)),
        live(derivative > K ? 0 : K + 1), degree(K - derivative), width(ceil_pow2(K + 1)),
        row_vectors(KAN_VECTOR_BYTES == 64 && slots <= 2 * Simd<C>::lanes ? slots / Simd<C>::lanes : 0),
        knots(I * padded), origin(I), inverse_step(I), uniform(I), table_of(I) {
    if (!specialised()) return;
    centre.allocate(I * slots);
    inverse_width.allocate(I * slots);
    coefficients.allocate((row_vectors > 0 ? I : 1) * table_size());
    if (row_vectors == 0) records.allocate(I * (intervals + 1) * record_size());
  }
  bool specialised() const { return live > 0 && K >= 1 && K <= 5; }
  int64_t table_size() const { return int64_t(degree + 1) * (K + 1) * slots; }
  int64_t record_size() const { return int64_t(degree + 1) * width; }

  // Reads the knots of feature i and recognises uniform ones.
  void read_knots(const Problem& problem, int64_t i) {
    C* t = &knots[i * padded];
    with_storage(problem.grid_storage, [&](auto tag) {
      const auto* source = static_cast<const decltype(tag)*>(problem.grid.data) + i * problem.grid.stride[0];
      for (int m = 0; m <= intervals; ++m) t[m] = widen<C>(source[m * problem.grid.stride[1]]);
    });
    for (int m = intervals + 1; m < padded; ++m) t[m] = C(__builtin_inf());
    const double step = (double(t[intervals]) - double(t[0])) / intervals;
    bool is_uniform = step > 0 && step < __builtin_inf();
    for (int m = 0; m <= intervals; ++m) is_uniform &= __builtin_fabs(t[m] - (t[0] + m * step)) < 0.25 * step;
    uniform[i] = is_uniform;
    origin[i] = t[0];
    inverse_step[i] = C(1.0 / step);
  }

  // Features with the knots of the one before, all of them in a layer whose grid was never adapted, share its tables.
  void share_tables() {
    for (int64_t i = 0; i < I; ++i) {
      const C* t = &knots[i * padded];
      const bool same = i > 0 && __builtin_memcmp(t, t - padded, size_t(intervals + 1) * sizeof(C)) == 0;
      table_of[i] = same ? table_of[i - 1] : i;
    }
  }

  // Fills the tables of feature i: rows (p, k) of coefficient p of the live basis k, over the intervals.
  template <int DEGREE>
  void tabulate(int64_t i) {
    using P = Preparation<C>;
    using Number = typename P::Number;
    using Lanes = typename P::Lanes;
    const C* t = &knots[i * padded];
    C* table = &coefficients[row_vectors > 0 ? i * table_size() : 0];
    C *c = &centre[i * slots], *s = &inverse_width[i * slots];
    // Knots beyond either end belong to bases that do not exist; any increasing continuation serves.
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

  // Moves interval j's values from the bases j-K..j to the rows first_row(j)..+K: some of those bases do not exist near the ends.
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
    switch (K) {
      case 1: return tabulate<1>(i);
      case 2: return tabulate<2>(i);
      case 3: return tabulate<3>(i);
      case 4: return tabulate<4>(i);
      case 5: return tabulate<5>(i);
    }
  }

  // The first of the K+1 consecutive coefficient rows that an input of interval j reads.
  int first_row(int j) const {
    const int row = j - K;
    return row < 0 || j >= intervals ? 0 : row < int(G) - 1 ? row : int(G) - 1;
  }
  Index<C> first_row(Index<C> j) const {
    using Int = typename Simd<C>::Int;
    const Index<C> zero = {}, last = zero + Int(G - 1);
    Index<C> row = j - Int(K);
    row = row < last ? row : last;
    return ((row < zero) | (j >= zero + Int(intervals))) ? zero : row;
  }

  // The interval of each lane; J outside the knots and for NaN. Whatever x and the knots hold, the result is within 0..J.
  template <int ROW_VECTORS>
  Index<C> find_interval(int64_t i, V<C> x) const {
    using Int = typename Simd<C>::Int;
    const C* t = &knots[i * padded];
    const Index<C> zero = {}, empty = zero + Int(intervals);
    Index<C> j = zero;
    if (uniform[i]) {
      V<C> guess = (x - origin[i]) * inverse_step[i];
      guess = guess > V<C>{} ? guess : V<C>{};  // false for NaN
      const V<C> last = broadcast<C>(C(intervals - 1));
      guess = guess < last ? guess : last;
      j = __builtin_convertvector(guess, Index<C>);
      const V<C> start = lookup<C, ROW_VECTORS>(t, j), end = lookup<C, ROW_VECTORS>(t, j + 1);
      j += (Index<C>)(x < start) - (Index<C>)(x >= end);  // a true lane is -1
    } else {
      for (Int step = padded / 2; step > 0; step /= 2) {
        const Index<C> further = j + step;
        j = x >= lookup<C, ROW_VECTORS>(t, further) ? further : j;
      }
    }
    const Index<C> inside = (Index<C>)(x >= broadcast(t[0])) & (Index<C>)(x < broadcast(t[intervals])) & (Index<C>)(j >= zero) &
                            (Index<C>)(j <= empty);
    return inside ? j : empty;
  }
};

inline void store_rows(int32_t* to, Index<float> row) { *reinterpret_cast<Simd<float>::UnalignedIndex*>(to) = row; }
inline void store_rows(int32_t* to, Index<double> row) {
  for (int lane = 0; lane < Simd<double>::lanes; ++lane) to[lane] = int32_t(row[lane]);
}

// The live values of `count` inputs of one feature (a multiple of the vector length): values[k * stride + b], k < live,
// times w where given, and rows[b], the first coefficient row that input b reads. Here the tables fit in registers: every lane
// looks its coefficients up by a permutation. POLYNOMIAL_DEGREE is -1 where it is only known at run time.
template <class C, int K, int ROW_VECTORS, int POLYNOMIAL_DEGREE>
inline void evaluate_permuting(const KnotTables<C>& tables, int64_t i, const C* x, const C* w, int count, C* values,
                               int64_t stride, int32_t* rows) {
  constexpr int lanes = Simd<C>::lanes;
  const int degree = POLYNOMIAL_DEGREE >= 0 ? POLYNOMIAL_DEGREE : tables.degree;
  const C *centre = &tables.centre[i * tables.slots], *inverse_width = &tables.inverse_width[i * tables.slots];
  const C* table = &tables.coefficients[i * tables.table_size()];
  const int64_t slots = ROW_VECTORS * lanes;
  for (int b = 0; b < count; b += lanes) {
    const V<C> points = load(x + b);
    const Index<C> j = tables.template find_interval<ROW_VECTORS>(i, points);
    store_rows(rows + b, tables.first_row(j));
    const V<C> u = (points - lookup<C, ROW_VECTORS>(centre, j)) * lookup<C, ROW_VECTORS>(inverse_width, j);
    for (int k = 0; k <= K; ++k) {
      V<C> value = lookup<C, ROW_VECTORS>(table + (degree * (K + 1) + k) * slots, j);
      for (int p = degree - 1; p >= 0; --p)
        value = value * u + lookup<C, ROW_VECTORS>(table + (p * (K + 1) + k) * slots, j);
      store<C>(values + k * stride + b, w == nullptr ? value : value * load(w + b));
    }
  }
}

// The same where tables are longer: an input's coefficients are one record, its K+1 values one short vector.
template <class C, int K>
inline void evaluate_from_records(const KnotTables<C>& tables, int64_t i, const C* x, const C* w, int count, C* values,
                                  int64_t stride, int32_t* rows) {
  constexpr int lanes = Simd<C>::lanes, width = ceil_pow2(K + 1);
  typedef C Row __attribute__((vector_size(width * sizeof(C))));
  typedef C UnalignedRow __attribute__((vector_size(width * sizeof(C)), aligned(alignof(C)), may_alias));
  const C *centre = &tables.centre[i * tables.slots], *inverse_width = &tables.inverse_width[i * tables.slots];
  const C* records = &tables.records[i * (tables.intervals + 1) * tables.record_size()];
  const int degree = tables.degree;
  for (int b0 = 0; b0 < count; b0 += lanes) {
    const V<C> points = load(x + b0);
    const Index<C> j = tables.template find_interval<0>(i, points);
    store_rows(rows + b0, tables.first_row(j));
    const V<C> u = (points - lookup<C, 0>(centre, j)) * lookup<C, 0>(inverse_width, j);
    C points_u[lanes], transposed[width][lanes];
    int32_t interval[lanes];
    store<C>(points_u, u);
    store_rows(interval, j);
    for (int lane = 0; lane < lanes; ++lane) {
      const C* record = records + interval[lane] * tables.record_size();
      Row value = *reinterpret_cast<const UnalignedRow*>(record + degree * width);
      for (int p = degree - 1; p >= 0; --p)
        value = value * points_u[lane] + *reinterpret_cast<const UnalignedRow*>(record + p * width);
      for (int k = 0; k <= K; ++k) transposed[k][lane] = value[k];
    }
    for (int k = 0; k <= K; ++k) {
      const V<C> value = load(transposed[k]);
      store<C>(values + k * stride + b0, w == nullptr ? value : value * load(w + b0));
    }
  }
}

template <class C, int K>
inline void evaluate_specialised(const KnotTables<C>& tables, int64_t i, const C* x, const C* w, int count, C* values,
                                 int64_t stride, int32_t* rows) {
#if KAN_VECTOR_BYTES == 64
#define KAN_EVALUATE(ROW_VECTORS, DEGREE) \
  return evaluate_permuting<C, K, ROW_VECTORS, DEGREE>(tables, i, x, w, count, values, stride, rows)
  if (tables.row_vectors == 1) {
    if (tables.degree == K) KAN_EVALUATE(1, K);
    if (tables.degree == K - 1) KAN_EVALUATE(1, K - 1);
    KAN_EVALUATE(1, -1);
  }
  if (tables.row_vectors == 2) {
    if (tables.degree == K) KAN_EVALUATE(2, K);
    if (tables.degree == K - 1) KAN_EVALUATE(2, K - 1);
    KAN_EVALUATE(2, -1);
  }
#undef KAN_EVALUATE
#endif
  evaluate_from_records<C, K>(tables, i, x, w, count, values, stride, rows);
}

// The same for any degree, one input at a time: Cox-de Boor up to degree K - n, then n differences (A2.2 and A2.3).
template <class C>
inline void evaluate_general(const KnotTables<C>& tables, int64_t i, const C* x, const C* w, int count, C* values,
                             int64_t stride, int32_t* rows) {
  constexpr int lanes = Simd<C>::lanes;
  const int K = tables.K, J = tables.intervals;
  const C* t = &tables.knots[i * tables.padded];
  const C range = t[J] - t[0];
  // Knots beyond either end belong to bases that do not exist; any increasing continuation serves.
  const auto knot = [&](int m) { return m < 0 ? t[0] + C(m) * range : m > J ? t[J] + C(m - J) * range : t[m]; };
  const auto over_span = [&](C numerator, int from, int to) {
    const C span = knot(to) - knot(from);
    return span > 0 ? numerator / span : C(0);
  };
  Buffer<C> n(K + 1);
  for (int b0 = 0; b0 < count; b0 += lanes) {
    const Index<C> interval = tables.template find_interval<0>(i, load(x + b0));
    for (int lane = 0; lane < lanes; ++lane) {
      const int b = b0 + lane, j = int(interval[lane]);
      rows[b] = tables.first_row(j);
      for (int k = 0; k <= K; ++k) values[k * stride + b] = tables.degree > 0 ? (x[b] - x[b]) * C(0) : C(0);
      if (j == J) continue;
      n[0] = 1;
      for (int d = 1; d <= tables.degree; ++d) {
        C saved = 0;
        for (int r = 0; r < d; ++r) {
          const int left = j + 1 - d + r, right = j + r + 1;
          const C part = over_span(n[r], left, right);
          n[r] = saved + (knot(right) - x[b]) * part;
          saved = (x[b] - knot(left)) * part;
        }
        n[d] = saved;
      }
      for (int d = tables.degree + 1; d <= K; ++d) {
        C saved = 0;
        for (int r = 0; r < d; ++r) {
          const int m = j - d + 1 + r;  // the basis of degree d - 1 that n[r] belongs to
          const C part = over_span(C(d) * n[r], m, m + d);
          n[r] = saved - part;
          saved = part;
        }
        n[d] = saved;
      }
      for (int r = 0; r <= K; ++r) {
        const int k = j - K + r - rows[b];
        if (k >= 0 && k <= K) values[k * stride + b] = w != nullptr ? n[r] * w[b] : n[r];
      }
    }
  }
}
