// The operator that runs over features: spline_backward_coef. Included by kernels.inl inside its namespace.

#if KAN_VECTOR_BYTES == 64
// Up to this many buckets the sort goes bucket by bucket, 16 rows at a time: a counter's increments would wait for each other.
constexpr int kFewBuckets = 10;

inline void sort_into_few_buckets(const int32_t* rows, int count, int buckets, int32_t* start, int32_t* order) {
  const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
  const auto members = [&](int b, int m) {
    const __mmask16 valid = count - b >= 16 ? 0xffff : __mmask16((1u << (count - b)) - 1);
    return _mm512_mask_cmpeq_epi32_mask(valid, _mm512_loadu_si512(rows + b), _mm512_set1_epi32(m));
  };
  int position = 0;
  for (int m = 0; m < buckets; ++m) {
    start[m] = position;
    for (int b = 0; b < count; b += 16) {
      const __mmask16 mask = members(b, m);
      const __m512i index = _mm512_add_epi32(lane, _mm512_set1_epi32(b));
      _mm512_storeu_si512(order + position, _mm512_maskz_compress_epi32(mask, index));
      position += __builtin_popcount(mask);
    }
  }
  start[buckets] = position;
}
#endif

// Orders a feature's inputs by their first live row: a counting sort, stable, so that sums run in the order of the rows.
// `order` has room for kRowMultiple more.
inline Buckets sort_into_buckets(const int32_t* rows, int count, int buckets, int32_t* start, int32_t* order) {
#if KAN_VECTOR_BYTES == 64
  if (buckets <= kFewBuckets) {
    sort_into_few_buckets(rows, count, buckets, start, order);
    return {order, start, buckets};
  }
#endif
  for (int m = 0; m <= buckets; ++m) start[m] = 0;
  for (int b = 0; b < count; ++b) ++start[rows[b] + 1];
  for (int m = 0; m < buckets; ++m) start[m + 1] += start[m];
  for (int b = 0; b < count; ++b) order[start[rows[b]]++] = b;
  for (int m = buckets; m > 0; --m) start[m] = start[m - 1];  // start[m] had moved on to the bucket's end
  start[0] = 0;
  return {order, start, buckets};
}

// `sums` (M, row_length) is the gradient with respect to the scaled coefficients of feature i; overwritten.
template <class C>
void write_spline_gradients(const Problem& p, int64_t i, C* sums, int64_t row_length) {
  const int64_t M = p.G + p.K;
  if (p.scaler.data != nullptr) {
    Buffer<C> scale(row_length), scale_gradient(row_length), coef(row_length);
    pack_rows(p.storage, p.scaler, i, 1, p.O, p.scaler.stride[0], p.scaler.stride[1], scale.data, row_length);
    __builtin_memset(scale_gradient.data, 0, size_t(row_length) * sizeof(C));
    for (int64_t m = 0; m < M; ++m) {
      C* sum = sums + m * row_length;
      if (p.scaler_gradient != nullptr) {
        Operand row = p.coef;
        row.stride[0] = 0;
        with_storage(p.storage, [&](auto tag) {
          row.data = static_cast<const decltype(tag)*>(p.coef.data) + i * p.coef.stride[0] + m * p.coef.stride[1];
        });
        pack_rows(p.storage, row, 0, 1, p.O, 0, p.coef.stride[2], coef.data, row_length);
        for (int64_t o = 0; o < row_length; ++o) scale_gradient[o] += sum[o] * coef[o];
      }
      for (int64_t o = 0; o < row_length; ++o) sum[o] *= scale[o];
    }
    if (p.scaler_gradient != nullptr)
      write_rows(p.storage, scale_gradient.data, row_length, 1, p.O, p.scaler_gradient, i, p.O);
  }
  if (p.coef_gradient != nullptr) write_rows(p.storage, sums, row_length, M, p.O, p.coef_gradient, i * M, p.O);
}

inline void write_zero_gradients(const Problem& p, int64_t i) {
  with_storage(p.storage, [&](auto tag) {
    using S = decltype(tag);
    const int64_t M = p.G + p.K;
    for (int64_t k = 0; p.coef_gradient != nullptr && k < M * p.O; ++k)
      static_cast<S*>(p.coef_gradient)[i * M * p.O + k] = narrow<S>(0.0);
    for (int64_t o = 0; p.scaler_gradient != nullptr && o < p.O; ++o)
      static_cast<S*>(p.scaler_gradient)[i * p.O + o] = narrow<S>(0.0);
  });
}

constexpr int kLargestCoefBlock = 2048;            // rows
constexpr int kCoefStride = kLargestCoefBlock + 16;  // a row's values are then not all in one cache set

template <class C>
void backward_coef(const Problem& p, ParallelFor parallel_for) {
  const Layer<C> layer(p, parallel_for);
  const int64_t row_length = layer.padded_outputs, feature_size = (layer.spline_rows + 1) * row_length;
  const int bucket_count = layer.live > 0 ? int(p.G) : 1;
  // Enough rows at once to give a bucket some 16 of them.
  int64_t block = 256;
  while (block < kLargestCoefBlock && block < 16 * p.G && block < p.N) block *= 2;
  const int64_t chunk =
      smaller(at_least_one(p.I / 8), at_least_one(smaller(16, 262144 / (feature_size * int64_t(sizeof(C))))));
  const int64_t chunks = divide_up(p.I, chunk);
  // Few features: the rows are split too, by the shape alone, and the partial sums added in order.
  const int64_t splits = chunks >= 8 ? 1 : smaller(divide_up(8, chunks), at_least_one(p.N / (4 * block)));
  const int64_t split_rows = divide_up(divide_up(p.N, splits), block) * block;
  const bool direct = is_stored_as<C>(p.storage) && p.g.stride[1] == 1 && p.O == layer.padded_outputs;
  const bool spreads_nan = layer.live > 0 && layer.tables.degree > 0;
  Buffer<C> partial(splits * p.I * feature_size);
  Buffer<uint8_t> not_finite(splits * p.I);

  run_parallel(parallel_for, chunks * splits, smaller(split_rows, p.N) * chunk * layer.work_per_input(), [&](int64_t begin, int64_t end) {
    EvaluationScratch<C, kCoefStride> scratch(layer, chunk, 1);
    Buffer<C> packed(direct ? 0 : block * row_length);
    Buffer<int32_t> start(bucket_count + 1), order(block + kRowMultiple);
    for (int64_t task = begin; task < end; ++task) {
      const int64_t split = task / chunks, i0 = task % chunks * chunk, i1 = smaller(i0 + chunk, p.I);
      C* sums = &partial[(split * p.I + i0) * feature_size];
      __builtin_memset(sums, 0, size_t((i1 - i0) * feature_size) * sizeof(C));
      for (int64_t i = i0; i < i1; ++i) not_finite[split * p.I + i] = 0;
      for (int64_t n0 = split * split_rows; n0 < smaller((split + 1) * split_rows, p.N); n0 += block) {
        const int64_t rows = smaller(block, p.N - n0);
        const C* g = packed.data;
        int64_t g_stride = row_length;
        if (direct) {
          g = static_cast<const C*>(p.g.data) + n0 * p.g.stride[0];
          g_stride = p.g.stride[0];
        } else {
          pack_rows(p.storage, p.g, n0, rows, p.O, p.g.stride[0], p.g.stride[1], packed.data, row_length);
        }
        scratch.read(n0, rows, i0, i1 - i0);
        for (int64_t i = i0; i < i1; ++i) {
          const auto e = scratch.evaluate(i - i0, 1);
          not_finite[split * p.I + i] |= !scratch.is_finite(i - i0);
          const Buckets buckets = sort_into_buckets(e.rows, int(rows), bucket_count, start.data, order.data);
          C* gradient = sums + (i - i0) * feature_size;
          C* base = gradient + layer.spline_rows * row_length;
          with_live_rows(layer.live, [&](auto live) {
            constexpr int LIVE = decltype(live)::value;
            // K + 2 rows of a tile stay in registers: 4 vectors wide where they fit, else 2.
            constexpr int widest = KAN_VECTOR_BYTES == 64 && LIVE <= 4 ? 4 : LIVE <= 4 ? 2 : KAN_VECTOR_BYTES == 64 ? 2 : 1;
            for_each_tile(layer, LIVE < 0 ? 1 : widest, [&](const Tile& tile) {
              C *to = gradient + tile.first, *to_base = base + tile.first;
              const C* from = g + tile.first;
              if constexpr (LIVE < 0) {
                backward_coef_tile_general(e.values, kCoefStride, e.live, buckets, from, g_stride, to, row_length, to_base);
              } else {
                if constexpr (widest >= 4)
                  if (tile.vectors == 4)
                    backward_coef_tile<C, LIVE, 4, kCoefStride>(e.values, buckets, from, g_stride, to, row_length, to_base);
                if constexpr (widest >= 2)
                  if (tile.vectors == 2)
                    backward_coef_tile<C, LIVE, 2, kCoefStride>(e.values, buckets, from, g_stride, to, row_length, to_base);
                if (tile.vectors == 1)
                  backward_coef_tile<C, LIVE, 1, kCoefStride>(e.values, buckets, from, g_stride, to, row_length, to_base);
              }
            });
          });
        }
      }
    }
  });

  run_parallel(parallel_for, p.I, splits * feature_size / 4, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      C* sums = &partial[i * feature_size];
      bool finite = not_finite[i] == 0;
      for (int64_t split = 1; split < splits; ++split) {
        const C* more = &partial[(split * p.I + i) * feature_size];
        for (int64_t k = 0; k < feature_size; ++k) sums[k] += more[k];
        finite &= not_finite[split * p.I + i] == 0;
      }
      // Every basis of the dense formula is NaN where x is not finite, not only the rows read here.
      if (spreads_nan && !finite)
        for (int64_t k = 0; k < layer.spline_rows * row_length; ++k) sums[k] = C(__builtin_nan(""));
      if (layer.spline_rows > 0)
        write_spline_gradients(p, i, sums, row_length);
      else
        write_zero_gradients(p, i);
      if (p.base_gradient != nullptr)
        write_rows(p.storage, sums + layer.spline_rows * row_length, row_length, 1, p.O, p.base_gradient, i, p.O);
    }
  });
}
