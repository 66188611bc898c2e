// Interval search and the K+1 live B-spline values of derivative order n. Included by kernels.inl inside its namespace.
//
// On one interval every live basis is a polynomial of degree K. Its coefficients are prepared once per call, in a wider type,
// around a representable point near the interval's middle, where the power basis is well conditioned; an input then costs
// one search and K+1 short Horner chains, uniform and adaptive knots alike, and x - centre is exact. Rows that would lie
// outside 0..M-1 have zero coefficients there, and one more interval, all zeros, takes what lies outside the extended knots.

constexpr int ceil_pow2(int n) { return n <= 1 ? 1 : 2 * ceil_pow2((n + 1) / 2); }

// Coefficients of the live bases N_r, r = 0..K, of one interval as polynomials in u, x = centre + width * u, where
// t[0..2K-1] are the knots K-1 before the interval's start up to K-1 after its end. The triangular scheme of "The NURBS
// Book", A2.2, on polynomials instead of numbers. An empty span's quotient counts as 0.
template <int K, class Wide>
inline void local_polynomials(const Wide* t, Wide centre, Wide width, Wide (*out)[K + 1]) {
  Wide n[K + 1][K + 1] = {{1}};
  for (int d = 1; d <= K; ++d) {
    Wide saved[K + 1] = {};
    for (int r = 0; r < d; ++r) {
      const Wide right = t[K + r], left = t[K - 1 - (d - 1) + r];
      const Wide span = right - left;
      const Wide inverse = span > 0 ? 1 / span : 0;
      const Wide falling = (right - centre) * inverse, rising = (centre - left) * inverse, slope = width * inverse;
      Wide risen[K + 1];
      for (int p = 0; p <= d; ++p) {
        const Wide same = p < d ? n[r][p] : 0, below = p > 0 ? n[r][p - 1] : 0;
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
  for (int r = 0; r <= K; ++r)
    for (int p = 0; p <= K; ++p) out[r][p] = n[r][p];
}

// Everything about the knots that an evaluation needs.
template <class C>
struct KnotTables {
  // float64's coefficients prepared in double would lose the last digits of the higher derivatives.
  using Wide = std::conditional_t<sizeof(C) == 4, double, long double>;

  int64_t I, G;
  int K, derivative;
  int intervals;       // J = G + 2K; interval J is the empty one
  int padded;          // knots per feature, a power of two, +inf after the last
  int live;            // rows an input touches: K + 1, or 0 when the derivative order exceeds K
  int degree;          // of the polynomials: K - derivative
  int width;           // K + 1 rounded up to a power of two: one record row
  int64_t record;      // (degree + 1) * width
  Buffer<C> knots;     // (I, padded)
  Buffer<C> origin, inverse_step;  // (I): guess of the interval on uniform knots
  Buffer<uint8_t> uniform;         // (I): the guess is at most one interval off
  Buffer<C> centre, inverse_width; // (I, J+1)
  Buffer<C> polynomial;            // (I, J+1, degree+1, width)

  explicit KnotTables(const Problem& problem)
      : I(problem.I), G(problem.G), K(problem.K), derivative(problem.derivative), intervals(int(G) + 2 * K),
        padded(ceil_pow2(intervals + 2)), live(derivative > K ? 0 : K + 1), degree(K - derivative),
        width(ceil_pow2(K + 1)), record(int64_t(degree + 1) * width), knots(I * padded), origin(I), inverse_step(I),
        uniform(I) {
    if (specialised()) {
      centre.allocate(I * (intervals + 1));
      inverse_width.allocate(I * (intervals + 1));
      polynomial.allocate(I * (intervals + 1) * record);
    }
  }
  bool specialised() const { return live > 0 && K >= 1 && K <= 5; }

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

  template <int DEGREE>
  void tabulate(int64_t i) {
    const C* t = &knots[i * padded];
    // Knots beyond either end belong to bases that do not exist; any increasing continuation serves.
    Buffer<Wide> extended(intervals + 1 + 2 * DEGREE);
    const Wide first = t[0], last = t[intervals], step = last - first;
    for (int m = -DEGREE; m <= intervals + DEGREE; ++m)
      extended[m + DEGREE] = m < 0 ? first + m * step : m > intervals ? last + (m - intervals) * step : Wide(t[m]);
    for (int j = 0; j <= intervals; ++j) {
      C* destination = &polynomial[(i * (intervals + 1) + j) * record];
      for (int64_t k = 0; k < record; ++k) destination[k] = 0;
      C& c = centre[i * (intervals + 1) + j];
      C& s = inverse_width[i * (intervals + 1) + j];
      c = 0;
      s = 1;
      if (j == intervals || !(t[j] < t[j + 1])) continue;
      c = C((Wide(t[j]) + Wide(t[j + 1])) / 2);
      s = C(1 / (Wide(t[j + 1]) - Wide(t[j])));
      Wide values[DEGREE + 1][DEGREE + 1];
      local_polynomials<DEGREE, Wide>(&extended[j + 1], c, 1 / Wide(s), values);
      const int shift = j - DEGREE - first_row(j);
      for (int r = 0; r <= DEGREE; ++r) {
        const int row = r + shift;
        if (row < 0 || row > DEGREE) continue;
        for (int p = derivative; p <= DEGREE; ++p) {
          Wide factor = 1;
          for (int n = 0; n < derivative; ++n) factor *= (p - n) * Wide(s);
          destination[(p - derivative) * width + row] = C(factor * values[r][p]);
        }
      }
    }
  }

  void prepare(const Problem& problem, int64_t i) {
    read_knots(problem, i);
    if (!specialised()) return;
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

  // The interval of each lane; J outside the knots and for NaN. Whatever x holds, the result is within 0..J.
  Index<C> find_interval(int64_t i, V<C> x) const {
    using Int = typename Simd<C>::Int;
    const C* t = &knots[i * padded];
    Index<C> j = {};
    if (uniform[i]) {
      V<C> guess = (x - origin[i]) * inverse_step[i];
      guess = guess > V<C>{} ? guess : V<C>{};  // false for NaN
      const V<C> last = broadcast<C>(C(intervals - 1));
      guess = guess < last ? guess : last;
      j = __builtin_convertvector(guess, Index<C>);
      const V<C> start = lookup<C>(t, j), end = lookup<C>(t, j + 1);
      j += (Index<C>)(x < start) - (Index<C>)(x >= end);  // a true lane is -1
    } else {
      for (Int step = padded / 2; step > 0; step /= 2) {
        const V<C> knot = lookup<C>(t, j + step);
        j += (Index<C>)(x >= knot) & (Index<C>{} + step);
      }
    }
    const Index<C> inside = (Index<C>)(x >= broadcast(t[0])) & (Index<C>)(x < broadcast(t[intervals]));
    const Index<C> empty = Index<C>{} + Int(intervals);
    const Index<C> safe = inside & (Index<C>)(j >= Index<C>{}) & (Index<C>)(j <= empty);
    return safe ? j : empty;
  }
};

// The live values of `count` inputs of one feature (a multiple of the vector length): values[k * stride + b], k < live,
// times w where given, and rows[b], the first coefficient row that input b reads.
template <class C, int K>
inline void evaluate_specialised(const KnotTables<C>& tables, int64_t i, const C* x, const C* w, int count, C* values,
                                 int64_t stride, int32_t* rows, C* u, int32_t* interval) {
  constexpr int lanes = Simd<C>::lanes;
  constexpr int width = ceil_pow2(K + 1);
  typedef C Row __attribute__((vector_size(width * sizeof(C))));
  typedef C UnalignedRow __attribute__((vector_size(width * sizeof(C)), aligned(alignof(C)), may_alias));
  const int64_t first = i * (tables.intervals + 1);
  for (int b = 0; b < count; b += lanes) {
    const V<C> points = load(x + b);
    const Index<C> j = tables.find_interval(i, points);
    const V<C> centre = lookup<C>(&tables.centre[first], j), scale = lookup<C>(&tables.inverse_width[first], j);
    store<C>(u + b, (points - centre) * scale);
    for (int lane = 0; lane < lanes; ++lane) interval[b + lane] = int32_t(j[lane]);
  }
  const C* records = &tables.polynomial[first * tables.record];
  const int degree = tables.degree;
  for (int b = 0; b < count; ++b) {
    const C* record = records + interval[b] * tables.record;
    rows[b] = tables.first_row(interval[b]);
    Row value = *reinterpret_cast<const UnalignedRow*>(record + degree * width);
    for (int p = degree - 1; p >= 0; --p)
      value = value * u[b] + *reinterpret_cast<const UnalignedRow*>(record + p * width);
    for (int k = 0; k <= K; ++k) values[k * stride + b] = value[k];
  }
  if (w != nullptr)
    for (int k = 0; k <= K; ++k)
      for (int b = 0; b < count; b += lanes) store<C>(values + k * stride + b, load(values + k * stride + b) * load(w + b));
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
    const Index<C> interval = tables.find_interval(i, load(x + b0));
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
