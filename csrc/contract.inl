// The inner loops: live values x coefficient rows. Included by kernels.inl inside its namespace.
//
// LIVE is the number of live rows where it is known at compile time, else -1 and `live` counts them. R is a tile's width in
// vectors; Q rows are interleaved so that Q * R independent sums hide the latency of a multiply-add (4 cycles, 2 a cycle).
// The base activation is row `live` of `values`, and has coefficients of its own.

// The evaluated inputs of a chunk of features: value k of (feature f, row b) at values[(f * (live + 1) + k) * STRIDE + b]. The
// stride is a constant: with a variable one, the loops below run out of address registers.
template <class C, int STRIDE>
struct Evaluated {
  const C* values;
  const int32_t* rows;  // first live coefficient row of (f, b) at rows[f * STRIDE + b]
  int features, live;
};

// The coefficients of a tile packed for it: R vectors of row m of feature f at rows + (f * feature_rows + m) * R vectors.
template <class C>
struct CoefPanel {
  const C* rows;
  int64_t feature_rows;
  const C* base;  // the base row of the first feature; null without a base activation
};

// y[b, tile] += sum over the chunk's features of values x coefficients. A chunk is summed by itself before it is added, so that
// rounding errors grow with the chunk and the number of chunks, not with their product.
template <class C, int LIVE, int R, int Q, int STRIDE>
void forward_tile(const Evaluated<C, STRIDE>& e, const CoefPanel<C>& panel, int row_count, C* y, int64_t y_stride) {
  constexpr int lanes = Simd<C>::lanes, width = R * lanes;
  const int live = LIVE >= 0 ? LIVE : e.live;
  const int64_t next_feature = panel.feature_rows * width;
  for (int b = 0; b < row_count; b += Q) {
    V<C> sum[Q][R] = {};
    const C* value = e.values + b;
    const int32_t* first = e.rows + b;
    const C *coef = panel.rows, *base = panel.base;
    for (int f = 0; f < e.features; ++f) {
      const C* row[Q];
      for (int q = 0; q < Q; ++q) row[q] = coef + int64_t(first[q]) * width;
      for (int k = 0; k < live; ++k)
        for (int q = 0; q < Q; ++q) {
          const V<C> factor = broadcast(value[k * STRIDE + q]);
          for (int r = 0; r < R; ++r) sum[q][r] += factor * load(row[q] + k * width + r * lanes);
        }
      if (base != nullptr) {
        for (int q = 0; q < Q; ++q) {
          const V<C> factor = broadcast(value[live * STRIDE + q]);
          for (int r = 0; r < R; ++r) sum[q][r] += factor * load(base + r * lanes);
        }
        base += next_feature;
      }
      value += (live + 1) * STRIDE;
      first += STRIDE;
      coef += next_feature;
    }
    for (int q = 0; q < Q; ++q)
      for (int r = 0; r < R; ++r) {
        C* to = y + (b + q) * y_stride + r * lanes;
        store<C>(to, load(to) + sum[q][r]);
      }
  }
}

// Coefficients where the caller stores them: row m of feature f at coef + f * feature_stride + m * row_stride.
template <class C>
struct CoefInPlace {
  const C* coef;
  int64_t feature_stride, row_stride;
  const C* base;  // null without a base activation
  int64_t base_stride;
  const C* scale;  // of the spline rows, null where there is none
  int64_t scale_stride;
};

// The same for few rows: one at a time, scaled on the way.
template <class C, int LIVE, int R, int STRIDE>
void forward_tile_in_place(const Evaluated<C, STRIDE>& e, const CoefInPlace<C>& tile, int row_count, C* y, int64_t y_stride) {
  constexpr int lanes = Simd<C>::lanes;
  const int live = LIVE >= 0 ? LIVE : e.live;
  for (int b = 0; b < row_count; ++b) {
    V<C> sum[R];
    for (int r = 0; r < R; ++r) sum[r] = load(y + b * y_stride + r * lanes);
    for (int f = 0; f < e.features; ++f) {
      const C* value = e.values + f * (live + 1) * STRIDE + b;
      const C* row = tile.coef + f * tile.feature_stride + e.rows[f * STRIDE + b] * tile.row_stride;
      V<C> spline[R] = {};
      for (int k = 0; k < live; ++k)
        for (int r = 0; r < R; ++r) spline[r] += broadcast(value[k * STRIDE]) * load(row + k * tile.row_stride + r * lanes);
      for (int r = 0; r < R; ++r)
        sum[r] += tile.scale == nullptr ? spline[r] : spline[r] * load(tile.scale + f * tile.scale_stride + r * lanes);
      if (tile.base != nullptr)
        for (int r = 0; r < R; ++r)
          sum[r] += broadcast(value[live * STRIDE]) * load(tile.base + f * tile.base_stride + r * lanes);
    }
    for (int r = 0; r < R; ++r) store<C>(y + b * y_stride + r * lanes, sum[r]);
  }
}

// result[b * result_stride + f] += sum over the tile of (values x coefficients) g. The products of `lanes` features are kept as
// vectors and summed over their lanes together, by a transposition: a third of the instructions of a sum by itself.
template <class C, int LIVE, int R, int Q, int STRIDE>
void backward_input_tile(const Evaluated<C, STRIDE>& e, const CoefPanel<C>& panel, int row_count, const C* g,
                         int64_t g_stride, C* result, int64_t result_stride) {
  constexpr int lanes = Simd<C>::lanes, width = R * lanes;
  const int live = LIVE >= 0 ? LIVE : e.live;
  const int64_t next_feature = panel.feature_rows * width;
  V<C> products[Q][lanes];
  for (int b = 0; b < row_count; b += Q) {
    V<C> gradient[Q][R];
    for (int q = 0; q < Q; ++q)
      for (int r = 0; r < R; ++r) gradient[q][r] = load(g + (b + q) * g_stride + r * lanes);
    const C* value = e.values + b;
    const int32_t* first = e.rows + b;
    const C *coef = panel.rows, *base = panel.base;
    for (int f0 = 0; f0 < e.features; f0 += lanes) {
      const int group = e.features - f0 < lanes ? e.features - f0 : lanes;
      for (int f = 0; f < group; ++f) {
        for (int q = 0; q < Q; ++q) {
          const C* row = coef + int64_t(first[q]) * width;
          V<C> slope[R] = {};
          if (base != nullptr) {
            const V<C> factor = broadcast(value[live * STRIDE + q]);
            for (int r = 0; r < R; ++r) slope[r] = factor * load(base + r * lanes);
          }
          for (int k = 0; k < live; ++k) {
            const V<C> factor = broadcast(value[k * STRIDE + q]);
            for (int r = 0; r < R; ++r) slope[r] += factor * load(row + k * width + r * lanes);
          }
          V<C> sum = slope[0] * gradient[q][0];
          for (int r = 1; r < R; ++r) sum += slope[r] * gradient[q][r];
          products[q][f] = sum;
        }
        if (base != nullptr) base += next_feature;
        value += (live + 1) * STRIDE;
        first += STRIDE;
        coef += next_feature;
      }
      for (int q = 0; q < Q; ++q) {
        C* to = result + (b + q) * result_stride + f0;
        if (2 * group <= lanes) {
          for (int f = 0; f < group; ++f) to[f] += sum_lanes<C>(products[q][f]);
        } else {
          for (int f = group; f < lanes; ++f) products[q][f] = V<C>{};
          store<C>(to, load(to) + sum_each<C>(products[q]));
        }
      }
    }
  }
}

// One feature's inputs in the order of their first live row: bucket m holds order[start[m]] .. order[start[m+1]-1].
struct Buckets {
  const int32_t* order;
  const int32_t* start;
  int count;
};

// gradient[m, tile] += sum over the rows of values x g, for one feature; base_gradient likewise. A bucket's live rows of
// the gradient stay in registers while its inputs pass: no scatter, and one order of summation. As in forward_tile, what a
// block adds is summed by itself first.
template <class C, int LIVE, int R, int STRIDE>
void backward_coef_tile(const C* values, const Buckets& buckets, const C* g, int64_t g_stride,
                        C* gradient, int64_t gradient_stride, C* base_gradient) {
  constexpr int lanes = Simd<C>::lanes;
  V<C> base[R] = {};
  for (int m = 0; m < buckets.count; ++m) {
    if (buckets.start[m] == buckets.start[m + 1]) continue;
    V<C> sum[LIVE > 0 ? LIVE : 1][R] = {};
    for (int position = buckets.start[m]; position < buckets.start[m + 1]; ++position) {
      const int32_t b = buckets.order[position];
      const C* value = values + b;
      const C* source = g + b * g_stride;
      V<C> gv[R];
      for (int r = 0; r < R; ++r) gv[r] = load(source + r * lanes);
      for (int k = 0; k < LIVE; ++k) {
        const V<C> factor = broadcast(value[k * STRIDE]);
        for (int r = 0; r < R; ++r) sum[k][r] += factor * gv[r];
      }
      const V<C> factor = broadcast(value[LIVE * STRIDE]);
      for (int r = 0; r < R; ++r) base[r] += factor * gv[r];
    }
    for (int k = 0; k < LIVE; ++k)
      for (int r = 0; r < R; ++r) {
        C* to = gradient + (m + k) * gradient_stride + r * lanes;
        store<C>(to, load(to) + sum[k][r]);
      }
  }
  for (int r = 0; r < R; ++r) store<C>(base_gradient + r * lanes, load(base_gradient + r * lanes) + base[r]);
}

// The same for a degree without a specialisation: the gradient's rows live in L1 instead of registers.
template <class C>
void backward_coef_tile_general(const C* values, int64_t stride, int live, const Buckets& buckets, const C* g,
                                int64_t g_stride, C* gradient, int64_t gradient_stride, C* base_gradient) {
  for (int m = 0; m < buckets.count; ++m)
    for (int position = buckets.start[m]; position < buckets.start[m + 1]; ++position) {
      const int32_t b = buckets.order[position];
      const V<C> gv = load(g + b * g_stride);
      for (int k = 0; k <= live; ++k) {
        C* row = k < live ? gradient + (m + k) * gradient_stride : base_gradient;
        store<C>(row, load(row) + broadcast(values[k * stride + b]) * gv);
      }
    }
}
