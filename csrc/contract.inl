// The inner loops: live values x coefficient rows. Included by kernels.inl inside its namespace.
//
// LIVE is the number of live rows where it is known at compile time, else -1 and `live` counts them. R is a tile's width in
// vectors; Q rows are interleaved so that Q * R independent sums hide the latency of a multiply-add (4 cycles, 2 a cycle).
// The base activation is row `live` of `values`, and has coefficients of its own.

// Where a tile finds its coefficients: spline row m of feature i at coef + i * feature_stride + m * row_stride.
template <class C>
struct CoefTile {
  const C* coef;
  int64_t feature_stride, row_stride;
  const C* base;  // null without a base activation
  int64_t base_stride;
  const C* scale;  // of the spline rows; null where they are scaled already
  int64_t scale_stride;
};

// The evaluated inputs of a chunk of features: value k of (feature f, row b) at values[(f * (live + 1) + k) * stride + b].
template <class C>
struct Evaluated {
  const C* values;
  const int32_t* rows;  // first live coefficient row of (f, b) at rows[f * stride + b]
  int64_t stride;
  int features, live;
};

// y[b, tile] += sum over the chunk's features of values x coefficients. A chunk is summed by itself before it is added, so that
// rounding errors grow with the chunk and the number of chunks, not with their product.
template <class C, int LIVE, int R, int Q>
void forward_tile(const Evaluated<C>& e, const CoefTile<C>& tile, int row_count, C* y, int64_t y_stride) {
  constexpr int lanes = Simd<C>::lanes;
  const int live = LIVE >= 0 ? LIVE : e.live;
  const int64_t next_row = tile.row_stride;
  for (int b = 0; b < row_count; b += Q) {
    V<C> sum[Q][R] = {};
    const C* value = e.values + b;
    const C* coef = tile.coef;
    const C* base = tile.base;
    for (int f = 0; f < e.features; ++f) {
      const C* row[Q];
      for (int q = 0; q < Q; ++q) row[q] = coef + e.rows[f * e.stride + b + q] * next_row;
      for (int k = 0; k < live; ++k)
        for (int q = 0; q < Q; ++q) {
          const V<C> factor = broadcast(value[k * e.stride + q]);
          for (int r = 0; r < R; ++r) sum[q][r] += factor * load(row[q] + k * next_row + r * lanes);
        }
      if (base != nullptr) {
        V<C> weight[R];
        for (int r = 0; r < R; ++r) weight[r] = load(base + r * lanes);
        for (int q = 0; q < Q; ++q) {
          const V<C> factor = broadcast(value[live * e.stride + q]);
          for (int r = 0; r < R; ++r) sum[q][r] += factor * weight[r];
        }
        base += tile.base_stride;
      }
      value += (live + 1) * e.stride;
      coef += tile.feature_stride;
    }
    for (int q = 0; q < Q; ++q)
      for (int r = 0; r < R; ++r) {
        C* to = y + (b + q) * y_stride + r * lanes;
        store<C>(to, load(to) + sum[q][r]);
      }
  }
}

// The same where the coefficients stand as the caller stores them, for few rows: one row at a time, scaled on the way.
template <class C, int LIVE, int R>
void forward_tile_in_place(const Evaluated<C>& e, const CoefTile<C>& tile, int row_count, C* y, int64_t y_stride) {
  constexpr int lanes = Simd<C>::lanes;
  const int live = LIVE >= 0 ? LIVE : e.live;
  for (int b = 0; b < row_count; ++b) {
    V<C> sum[R];
    for (int r = 0; r < R; ++r) sum[r] = load(y + b * y_stride + r * lanes);
    for (int f = 0; f < e.features; ++f) {
      const C* value = e.values + f * (live + 1) * e.stride + b;
      const C* row = tile.coef + f * tile.feature_stride + e.rows[f * e.stride + b] * tile.row_stride;
      V<C> spline[R] = {};
      for (int k = 0; k < live; ++k)
        for (int r = 0; r < R; ++r) spline[r] += broadcast(value[k * e.stride]) * load(row + k * tile.row_stride + r * lanes);
      for (int r = 0; r < R; ++r)
        sum[r] += tile.scale == nullptr ? spline[r] : spline[r] * load(tile.scale + f * tile.scale_stride + r * lanes);
      if (tile.base != nullptr)
        for (int r = 0; r < R; ++r)
          sum[r] += broadcast(value[live * e.stride]) * load(tile.base + f * tile.base_stride + r * lanes);
    }
    for (int r = 0; r < R; ++r) store<C>(y + b * y_stride + r * lanes, sum[r]);
  }
}

// result[f * stride + b] += sum over the tile of (values x coefficients) g.
template <class C, int LIVE, int R, int Q>
void backward_input_tile(const Evaluated<C>& e, const CoefTile<C>& tile, int row_count, const C* g, int64_t g_stride,
                         C* result) {
  constexpr int lanes = Simd<C>::lanes;
  const int live = LIVE >= 0 ? LIVE : e.live;
  const int64_t next_row = tile.row_stride;
  for (int b = 0; b < row_count; b += Q) {
    V<C> gradient[Q][R];
    for (int q = 0; q < Q; ++q)
      for (int r = 0; r < R; ++r) gradient[q][r] = load(g + (b + q) * g_stride + r * lanes);
    const C* value = e.values + b;
    const C* coef = tile.coef;
    const C* base = tile.base;
    for (int f = 0; f < e.features; ++f) {
      for (int q = 0; q < Q; ++q) {
        const C* row = coef + e.rows[f * e.stride + b + q] * next_row;
        V<C> slope[R] = {};
        if (base != nullptr) {
          const V<C> factor = broadcast(value[live * e.stride + q]);
          for (int r = 0; r < R; ++r) slope[r] = factor * load(base + r * lanes);
        }
        for (int k = 0; k < live; ++k) {
          const V<C> factor = broadcast(value[k * e.stride + q]);
          for (int r = 0; r < R; ++r) slope[r] += factor * load(row + k * next_row + r * lanes);
        }
        V<C> sum = slope[0] * gradient[q][0];
        for (int r = 1; r < R; ++r) sum += slope[r] * gradient[q][r];
        result[f * e.stride + b + q] += sum_lanes<C>(sum);
      }
      if (base != nullptr) base += tile.base_stride;
      value += (live + 1) * e.stride;
      coef += tile.feature_stride;
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
template <class C, int LIVE, int R>
void backward_coef_tile(const C* values, int64_t stride, const Buckets& buckets, const C* g, int64_t g_stride,
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
        const V<C> factor = broadcast(value[k * stride]);
        for (int r = 0; r < R; ++r) sum[k][r] += factor * gv[r];
      }
      const V<C> factor = broadcast(value[LIVE * stride]);
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
