// Evaluates, at every input, derivative order n of the K+1 B-splines that are nonzero there, its live bases.
#pragma once

#include "namespace.inl"
#include "simd.inl"
#include "knot_tables.inl"

namespace KAN_NAMESPACE {
namespace {

// The inputs of one feature and the destination of their evaluation. `count` is a multiple of the vector length. Live value k of
// input b goes to values[k * stride + b] and its next derivative to slopes[k * stride + b] unless slopes is null, both multiplied
// by w unless w is null. rows[b] receives the first coefficient row that the input reads.
template <class C>
struct Evaluation {
  const C *x, *w;
  int count;
  C *values, *slopes;
  int64_t stride;
  int32_t* rows;

  void write(C* to, int k, int b, V<C> value) const {
    store<C>(to + k * stride + b, w == nullptr ? value : value * load(w + b));
  }
};

// The functions that evaluate the inputs in their own order return whether every input has K+1 bases; false is always safe.

// Used if the tables fit in registers: every lane looks up its coefficients by a permutation. POLYNOMIAL_DEGREE is -1 if the degree
// is only known at run time.
template <class C, int K, int ROW_VECTORS, int POLYNOMIAL_DEGREE, bool SLOPES>
inline bool evaluate_permuting(const typename KnotTables<C>::Feature knots, const Evaluation<C> e) {
  constexpr int lanes = Simd<C>::lanes;
  const int degree = POLYNOMIAL_DEGREE >= 0 ? POLYNOMIAL_DEGREE : knots.degree;
  const C* table = knots.coefficients;
  const int64_t slots = ROW_VECTORS * lanes;
  Index<C> margin = {};
  for (int b = 0; b < e.count; b += lanes) {
    const V<C> points = load(e.x + b);
    const Index<C> j = knots.template find_interval<ROW_VECTORS>(points);
    const Index<C> row = knots.first_row(j);
    margin |= row ^ (j - typename Simd<C>::Int(K));
    store_index(e.rows + b, row);
    const V<C> inverse = lookup<C, ROW_VECTORS>(knots.inverse_width, j);
    const V<C> u = (points - lookup<C, ROW_VECTORS>(knots.centre, j)) * inverse;
    for (int k = 0; k <= K; ++k) {
      V<C> value = lookup<C, ROW_VECTORS>(table + (degree * (K + 1) + k) * slots, j), slope = {};
      for (int p = degree - 1; p >= 0; --p) {
        if constexpr (SLOPES) slope = p == degree - 1 ? value : slope * u + value;
        value = value * u + lookup<C, ROW_VECTORS>(table + (p * (K + 1) + k) * slots, j);
      }
      e.write(e.values, k, b, value);
      if constexpr (SLOPES) e.write(e.slopes, k, b, slope * inverse);
    }
  }
  return !any_lane<C>(margin);
}

// Used if the tables are longer: the coefficients of one interval form a record of degree + 1 rows of K+1 entries, padded to a
// power of two. A vector holds the same row of several records.
template <class C, int K, int POLYNOMIAL_DEGREE, bool SLOPES>
inline bool evaluate_from_records(const typename KnotTables<C>::Feature knots, const Evaluation<C> e) {
  constexpr int lanes = Simd<C>::lanes, width = ceil_pow2(K + 1);
  const C* records = knots.records;
  const int degree = POLYNOMIAL_DEGREE >= 0 ? POLYNOMIAL_DEGREE : knots.degree, record_size = (degree + 1) * width;
  Index<C> margin = {};
  for (int b = 0; b < e.count; b += lanes) {
    const V<C> points = load(e.x + b);
    const Index<C> j = knots.template find_interval<0>(points);
    const Index<C> row = knots.first_row(j);
    margin |= row ^ (j - typename Simd<C>::Int(K));
    store_index(e.rows + b, row);
    const V<C> inverse = lookup<C, 0>(knots.inverse_width, j);
    const V<C> u = (points - lookup<C, 0>(knots.centre, j)) * inverse;
    int32_t offset[lanes];
    store_index(offset, j * typename Simd<C>::Int(record_size));
    V<C> values[width], slopes[width];
    if constexpr (width <= lanes) {
#pragma GCC unroll 8
      for (int v = 0; v < width; ++v) {
        const int32_t* first = offset + v * (lanes / width);
        const V<C> own_u = repeat_lanes<C, width>(u, v * (lanes / width));
        V<C> value = load_records<C, width>(records + degree * width, first), slope = {};
        for (int p = degree - 1; p >= 0; --p) {
          if constexpr (SLOPES) slope = slope * own_u + value;
          value = value * own_u + load_records<C, width>(records + p * width, first);
        }
        values[v] = value;
        slopes[v] = slope;
      }
      records_to_lanes<C, width>(values);
      if constexpr (SLOPES) records_to_lanes<C, width>(slopes);
    } else {
      for (int k = 0; k <= K; ++k)
        for (int lane = 0; lane < lanes; ++lane) {
          const C* coefficient = records + offset[lane] + k;
          C value = coefficient[degree * width], slope = 0;
          for (int p = degree - 1; p >= 0; --p) {
            slope = slope * u[lane] + value;
            value = value * u[lane] + coefficient[p * width];
          }
          values[k][lane] = value;
          slopes[k][lane] = slope;
        }
    }
    for (int k = 0; k <= K; ++k) {
      e.write(e.values, k, b, values[k]);
      if constexpr (SLOPES) e.write(e.slopes, k, b, slopes[k] * inverse);
    }
  }
  return !any_lane<C>(margin);
}

// Evaluates inputs begin .. end-1, which all lie in interval j and share its coefficients. Reads and writes up to a vector past the
// end.
template <class C, int K, int POLYNOMIAL_DEGREE, bool SLOPES>
inline void evaluate_run(const typename KnotTables<C>::Feature& knots, int j, const Evaluation<C> e, int begin, int end) {
  constexpr int width = ceil_pow2(K + 1);
  const int degree = POLYNOMIAL_DEGREE >= 0 ? POLYNOMIAL_DEGREE : knots.degree;
  const C* record = knots.records + int64_t(j) * (degree + 1) * width;
  const C centre = knots.centre[j], inverse = knots.inverse_width[j];
  for (int b = begin; b < end; b += Simd<C>::lanes) {
    const V<C> u = (load(e.x + b) - centre) * inverse;
    for (int k = 0; k <= K; ++k) {
      V<C> value = broadcast(record[degree * width + k]), slope = {};
      for (int p = degree - 1; p >= 0; --p) {
        if constexpr (SLOPES) slope = p == degree - 1 ? value : slope * u + value;
        value = value * u + record[p * width + k];
      }
      e.write(e.values, k, b, value);
      if constexpr (SLOPES) e.write(e.slopes, k, b, slope * inverse);
    }
  }
}

template <class C, int K, int POLYNOMIAL_DEGREE, bool SLOPES>
inline bool evaluate_by_degree(const KnotTables<C>& tables, int64_t i, const Evaluation<C>& e) {
#if KAN_VECTOR_BYTES == 64
  if (tables.row_vectors == 1) return evaluate_permuting<C, K, 1, POLYNOMIAL_DEGREE, SLOPES>(tables.feature(i), e);
  if (tables.row_vectors == 2) return evaluate_permuting<C, K, 2, POLYNOMIAL_DEGREE, SLOPES>(tables.feature(i), e);
#endif
  return evaluate_from_records<C, K, POLYNOMIAL_DEGREE, SLOPES>(tables.feature(i), e);
}

// Calls f with two Constants: the degree of the polynomials, or -1 if it is only known at run time, and whether slopes are needed.
// The degrees of the function and of its first derivative are common enough for specialised loops.
template <class C, int K, class F>
inline auto with_degree(const KnotTables<C>& tables, bool slopes, F f) {
  if (slopes) return tables.degree == K ? f(Constant<K>{}, Constant<true>{}) : f(Constant<-1>{}, Constant<true>{});
  if (tables.degree == K) return f(Constant<K>{}, Constant<false>{});
  return tables.degree == K - 1 ? f(Constant<K - 1>{}, Constant<false>{}) : f(Constant<-1>{}, Constant<false>{});
}

template <class C, int K>
inline bool evaluate_specialised(const KnotTables<C>& tables, int64_t i, const Evaluation<C>& e) {
  return with_degree<C, K>(tables, e.slopes != nullptr, [&](auto degree, auto slopes) {
    return evaluate_by_degree<C, K, decltype(degree)::value, decltype(slopes)::value>(tables, i, e);
  });
}

// Evaluates sorted inputs. Run r is inputs start[r] .. start[r + 1] - 1, which lie in interval intervals[r].
template <class C, int K>
inline void evaluate_runs(const KnotTables<C>& tables, int64_t i, const Evaluation<C>& e, const int32_t* intervals,
                          const int32_t* start, int count) {
  const auto knots = tables.feature(i);
  with_degree<C, K>(tables, e.slopes != nullptr, [&](auto degree, auto slopes) {
    for (int r = 0; r < count; ++r)
      evaluate_run<C, K, decltype(degree)::value, decltype(slopes)::value>(knots, intervals[r], e, start[r], start[r + 1]);
  });
}

// Computes derivative order n of the K+1 live bases of an interval, for any degree, by Cox-de Boor up to degree K - n and then n
// differences ("The NURBS Book", A2.2 and A2.3). T is C or a vector of C. near[0 .. 2K-1] are the knots from K-1 before the start
// of the interval to K-1 after its end. `basis` has room for K+1. A quotient over an empty span counts as 0.
template <class C, class T>
inline void general_values(int K, int derivative, const T* near, T x, T* basis) {
  const auto over_span = [](T numerator, T from, T to) {
    const T span = to - from;
    return span > T{} ? numerator / span : T{};
  };
  basis[0] = T{} + 1;
  for (int d = 1; d <= K - derivative; ++d) {
    T saved = {};
    for (int r = 0; r < d; ++r) {
      const T left = near[K - d + r], right = near[K + r];
      const T part = over_span(basis[r], left, right);
      basis[r] = saved + (right - x) * part;
      saved = (x - left) * part;
    }
    basis[d] = saved;
  }
  for (int d = K - derivative + 1; d <= K; ++d) {
    T saved = {};
    for (int r = 0; r < d; ++r) {
      const T part = over_span(basis[r] * C(d), near[K - d + r], near[K + r]);
      basis[r] = saved - part;
      saved = part;
    }
    basis[d] = saved;
  }
}

// Evaluates any degree, one input at a time.
template <class C>
inline bool evaluate_general(const KnotTables<C>& tables, int64_t i, const Evaluation<C>& e) {
  const auto knots = tables.feature(i);
  constexpr int lanes = Simd<C>::lanes;
  const int K = tables.K;
  Buffer<C> basis(K + 1), near(2 * K + 1);
  for (int b0 = 0; b0 < e.count; b0 += lanes) {
    const Index<C> interval = knots.template find_interval<0>(load(e.x + b0));
    for (int lane = 0; lane < lanes; ++lane) {
      const int b = b0 + lane, j = int(interval[lane]);
      e.rows[b] = tables.first_row(j);
      for (int r = 0; r < 2 * K; ++r) near[r] = tables.knot_beyond(knots.knots, j + 1 - K + r);
      for (int order = tables.derivative; order <= tables.derivative + (e.slopes != nullptr ? 1 : 0); ++order) {
        C* to = (order == tables.derivative ? e.values : e.slopes) + b;
        for (int k = 0; k <= K; ++k) to[k * e.stride] = order < K ? (e.x[b] - e.x[b]) * C(0) : C(0);
        if (j == tables.intervals || order > K) continue;
        general_values<C>(K, order, near.data, e.x[b], basis.data);
        for (int r = 0; r <= K; ++r) {
          const int k = j - K + r - e.rows[b];
          if (k >= 0 && k <= K) to[k * e.stride] = e.w != nullptr ? basis[r] * e.w[b] : basis[r];
        }
      }
    }
  }
  return false;
}

}  // namespace
}  // namespace KAN_NAMESPACE
