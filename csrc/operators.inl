// The operators: cut the work, pack operands, evaluate, contract, write. Included by kernels.inl inside its namespace.

constexpr int kSubBlock = 64;  // rows evaluated together
constexpr int kRowMultiple = 16;  // blocks are padded to it: a multiple of every vector length and of every Q

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t at_least_one(int64_t n) { return n > 1 ? n : 1; }
inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Runs body(begin, end) over [0, count). `work` is an item's cost in vector operations: waking a thread costs some
// 10 microseconds, so each one gets at least 32768 of them.
template <class F>
void run_parallel(ParallelFor parallel_for, int64_t count, int64_t work, const F& body) {
  parallel_for(
      count, at_least_one(32768 / at_least_one(work)),
      [](int64_t begin, int64_t end, void* f) { (*static_cast<const F*>(f))(begin, end); }, (void*)&body);
}

template <int Value>
struct Constant {
  static constexpr int value = Value;
};

// Calls f with the number of live rows as a Constant where there is a specialisation, Constant<-1> elsewhere.
template <class F>
void with_live_rows(int live, F f) {
  switch (live) {
    case 0: return f(Constant<0>{});
    case 2: return f(Constant<2>{});
    case 3: return f(Constant<3>{});
    case 4: return f(Constant<4>{});
    case 5: return f(Constant<5>{});
    case 6: return f(Constant<6>{});
    default: return f(Constant<-1>{});
  }
}

// Outputs first .. first + vectors * lanes, one register tile.
struct Tile {
  int64_t first;
  int vectors;
};

// The tiles that cover `vectors` vectors: as many of the widest as fit, then 4, 2, 1.
inline Tile next_tile(int64_t done, int64_t vectors, int widest, int lanes) {
  int width = widest;
  while (width > vectors - done) width /= 2;
  return {done * lanes, width};
}

// Copies rows x columns of a strided operand to padded rows of the compute type; what lies beyond is 0.
template <class C>
void pack_rows(Storage storage, const Operand& source, int64_t first_row, int64_t rows, int64_t columns, int64_t row_stride,
               int64_t column_stride, C* destination, int64_t padded_columns) {
  with_storage(storage, [&](auto tag) {
    for (int64_t r = 0; r < rows; ++r) {
      const auto* from = static_cast<const decltype(tag)*>(source.data) + (first_row + r) * row_stride;
      C* to = destination + r * padded_columns;
      if (column_stride == 1)
        for (int64_t c = 0; c < columns; ++c) to[c] = widen<C>(from[c]);
      else
        for (int64_t c = 0; c < columns; ++c) to[c] = widen<C>(from[c * column_stride]);
      for (int64_t c = columns; c < padded_columns; ++c) to[c] = C(0);
    }
  });
}

template <class C>
void write_rows(Storage storage, const C* source, int64_t source_stride, int64_t rows, int64_t columns, void* destination,
                int64_t first_row, int64_t destination_stride) {
  with_storage(storage, [&](auto tag) {
    using S = decltype(tag);
    for (int64_t r = 0; r < rows; ++r) {
      S* to = static_cast<S*>(destination) + (first_row + r) * destination_stride;
      for (int64_t c = 0; c < columns; ++c) to[c] = narrow<S>(source[r * source_stride + c]);
    }
  });
}

template <class C>
bool is_stored_as(Storage storage) {
  return storage == (sizeof(C) == 4 ? Storage::float32 : Storage::float64);
}

// A problem with its knots prepared and its sizes rounded to vectors.
template <class C>
struct Layer {
  static constexpr int lanes = Simd<C>::lanes;
  const Problem& problem;
  KnotTables<C> tables;
  BaseActivation<C> activation;
  int live;
  int64_t spline_rows;  // coefficient rows per feature that can be touched: M, or 0 when the spline part vanishes
  int64_t vectors, padded_outputs;

  Layer(const Problem& p, ParallelFor parallel_for)
      : problem(p), tables(p), activation(p.activation, p.derivative), live(tables.live),
        spline_rows(live > 0 ? p.G + p.K : 0), vectors(divide_up(p.O, lanes)), padded_outputs(vectors * lanes) {
    if (live == 0) return;
    run_parallel(parallel_for, p.I, tables.intervals, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) tables.read_knots(p, i);
    });
    tables.share_tables();
    run_parallel(parallel_for, p.I, tables.intervals * (p.K + 1) * 8, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) tables.tabulate(i);
    });
  }

  // Rows of a block, contracted in sub-blocks of kSubBlock. Large grids want many, to reuse a feature's coefficients while they
  // are in L1; small batches few, so that there are blocks for several threads.
  int64_t block_rows() const {
    if (problem.G > 32 && problem.N >= 2048) return 4 * kSubBlock;
    int64_t rows = kSubBlock;
    while (rows > kRowMultiple && problem.N < 8 * rows) rows /= 2;
    return rows;
  }

  // Vector operations of one row with one feature: the evaluation and the contraction.
  int64_t work_per_input() const { return 16 + (live + 1) * vectors; }

  // Features evaluated together: their coefficients of one tile and their values share L1.
  int64_t chunk_features(int tile_vectors) const {
    const int64_t coef_bytes = (spline_rows + 1) * tile_vectors * KAN_VECTOR_BYTES;
    const int64_t value_bytes = (live + 2) * kSubBlock * int64_t(sizeof(C));
    return smaller(problem.I, at_least_one(smaller(24576 / coef_bytes, 20480 / value_bytes)));
  }
};

// Inputs of a chunk of features, transposed to (feature, row), and their evaluation; at most STRIDE rows.
template <class C, int STRIDE>
struct EvaluationScratch {
  const Layer<C>& layer;
  const int live;
  Buffer<C> x, w, values;
  Buffer<int32_t> rows;
  int64_t first_feature = 0;
  int count = 0;  // of rows, padded

  // Reads `read_features` at a time and keeps the evaluation of `evaluated_features`.
  EvaluationScratch(const Layer<C>& layer_, int64_t read_features, int64_t evaluated_features)
      : layer(layer_), live(layer.live), x(read_features * STRIDE), w(read_features * STRIDE),
        values(evaluated_features * (live + 1) * STRIDE), rows(evaluated_features * STRIDE) {}

  void read(int64_t first_row, int64_t row_count, int64_t first_feature_, int64_t features) {
    first_feature = first_feature_;
    count = int(divide_up(row_count, kRowMultiple) * kRowMultiple);
    read_operand(layer.problem.x, x, first_row, row_count, features);
    if (layer.problem.w.data != nullptr) read_operand(layer.problem.w, w, first_row, row_count, features);
  }

  // The evaluation of the features from..from + features of those read.
  Evaluated<C, STRIDE> evaluate(int64_t from, int64_t features) {
    for (int64_t f = 0; f < features; ++f) {
      const C* points = &x[(from + f) * STRIDE];
      const C* weights = layer.problem.w.data != nullptr ? &w[(from + f) * STRIDE] : nullptr;
      C* destination = &values[f * (live + 1) * STRIDE];
      evaluate_spline(layer.tables, layer.tables.table_of[first_feature + from + f], points, weights, destination, &rows[f * STRIDE]);
      C* base = destination + live * STRIDE;
      for (int b = 0; b < count; b += Simd<C>::lanes) {
        const V<C> value = layer.activation(load(points + b));
        store<C>(base + b, weights != nullptr ? value * load(weights + b) : value);
      }
    }
    return {values.data, rows.data, int(features), live};
  }

  bool is_finite(int64_t feature) const {
    Index<C> bad = {};
    for (int b = 0; b < count; b += Simd<C>::lanes) {
      const V<C> points = load(&x[feature * STRIDE + b]);
      bad |= (Index<C>)(points - points != V<C>{});
    }
    bool finite = true;
    for (int lane = 0; lane < Simd<C>::lanes; ++lane) finite &= bad[lane] == 0;
    return finite;
  }

 private:
  // Row b of feature f is element (first_row + b, first_feature + f); padding is 0.
  void read_operand(const Operand& source, Buffer<C>& destination, int64_t first_row, int64_t row_count, int64_t features) {
    with_storage(layer.problem.storage, [&](auto tag) {
      const auto* from = static_cast<const decltype(tag)*>(source.data) + first_feature * source.stride[1];
      for (int64_t b = 0; b < row_count; ++b)
        for (int64_t f = 0; f < features; ++f)
          destination[f * STRIDE + b] = widen<C>(from[(first_row + b) * source.stride[0] + f * source.stride[1]]);
    });
    for (int64_t f = 0; f < features; ++f)
      for (int64_t b = row_count; b < count; ++b) destination[f * STRIDE + b] = C(0);
  }

  void evaluate_spline(const KnotTables<C>& tables, int64_t i, const C* points, const C* weights, C* destination,
                       int32_t* row) {
    if (live == 0) {
      for (int b = 0; b < count; ++b) row[b] = 0;
      return;
    }
    switch (tables.specialised() ? tables.K : 0) {
#define KAN_EVALUATE(K) \
  case K: return evaluate_specialised<C, K>(tables, i, points, weights, count, destination, STRIDE, row)
      KAN_EVALUATE(1);
      KAN_EVALUATE(2);
      KAN_EVALUATE(3);
      KAN_EVALUATE(4);
      KAN_EVALUATE(5);
#undef KAN_EVALUATE
      default: return evaluate_general(tables, i, points, weights, count, destination, STRIDE, row);
    }
  }
};

// The coefficients as the inner loops read them. Packing into panels (tile, feature, row, tile width) aligns every vector
// and spreads the rows over all cache sets: 1.3-1.5x in the loops for one pass over the parameters, so few rows read the
// coefficients where they stand.
template <class C>
struct Panels {
  const Layer<C>& layer;
  const int64_t rows;  // per feature: the spline rows, then the base row
  bool in_place;
  Buffer<C> data;

  Panels(const Layer<C>& layer_, int widest, bool may_stay_in_place, ParallelFor parallel_for)
      : layer(layer_), rows(layer.spline_rows + 1) {
    const Problem& p = layer.problem;
    in_place = may_stay_in_place && is_stored_as<C>(p.storage) && p.O % Layer<C>::lanes == 0 && p.coef.stride[2] == 1 &&
               (p.base_weight.data == nullptr || p.base_weight.stride[1] == 1) &&
               (p.scaler.data == nullptr || p.scaler.stride[1] == 1) && p.N * (layer.live + 1) <= 6 * rows;
    if (in_place) return;
    data.allocate(p.I * rows * layer.padded_outputs);
    run_parallel(parallel_for, p.I, 2 * rows * layer.vectors, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) pack(i, widest);
    });
  }

  void pack(int64_t i, int widest) {
    const Problem& p = layer.problem;
    with_storage(p.storage, [&](auto tag) {
      using S = decltype(tag);
      for (int64_t m = 0; m < rows; ++m) {
        const bool is_base = m == layer.spline_rows;
        const Operand& source = is_base ? p.base_weight : p.coef;
        const int64_t column_stride = source.stride[is_base ? 1 : 2];
        const S* from = static_cast<const S*>(source.data);
        if (from != nullptr) from += i * source.stride[0] + (is_base ? 0 : m * source.stride[1]);
        for (int64_t done = 0; done < layer.vectors;) {
          const Tile tile = next_tile(done, layer.vectors, widest, Layer<C>::lanes);
          const int64_t width = tile.vectors * Layer<C>::lanes;
          C* to = &data[p.I * rows * tile.first + (i * rows + m) * width];
          const int64_t valid = from == nullptr ? 0 : smaller(width, p.O - tile.first);
          if (column_stride == 1)
            for (int64_t c = 0; c < valid; ++c) to[c] = widen<C>(from[tile.first + c]);
          else
            for (int64_t c = 0; c < valid; ++c) to[c] = widen<C>(from[(tile.first + c) * column_stride]);
          for (int64_t c = valid; c < width; ++c) to[c] = C(0);
          if (!is_base && p.scaler.data != nullptr) {
            const S* scale = static_cast<const S*>(p.scaler.data) + i * p.scaler.stride[0];
            for (int64_t c = 0; c < valid; ++c) to[c] *= widen<C>(scale[(tile.first + c) * p.scaler.stride[1]]);
          }
          done += tile.vectors;
        }
      }
    });
  }

  CoefInPlace<C> where_it_stands(const Tile& t, int64_t first_feature) const {
    const Problem& p = layer.problem;
    const auto at = [&](const Operand& operand) {
      const C* start = static_cast<const C*>(operand.data);
      return start == nullptr ? nullptr : start + first_feature * operand.stride[0] + t.first;
    };
    return {at(p.coef), p.coef.stride[0], p.coef.stride[1], at(p.base_weight), p.base_weight.stride[0], at(p.scaler),
            p.scaler.stride[0]};
  }

  CoefPanel<C> packed(const Tile& t, int64_t first_feature) const {
    const int64_t width = t.vectors * Layer<C>::lanes;
    const C* start = data.data + layer.problem.I * rows * t.first + first_feature * rows * width;
    return {start, rows, layer.problem.base_weight.data != nullptr ? start + layer.spline_rows * width : nullptr};
  }
};

constexpr int kWidestTile = 8;  // vectors; 8 sums of one row or 2 rows x 4 fill the pipeline and leave registers free

// Calls f(tile) for the tiles that cover a row.
template <class C, class F>
void for_each_tile(const Layer<C>& layer, int widest, F f) {
  for (int64_t done = 0; done < layer.vectors;) {
    const Tile tile = next_tile(done, layer.vectors, widest, Layer<C>::lanes);
    f(tile);
    done += tile.vectors;
  }
}

template <class C, int LIVE, int STRIDE>
void forward_chunk(const Evaluated<C, STRIDE>& e, const Panels<C>& panels, int64_t first_feature, int rows, int padded, C* y,
                   int64_t y_stride) {
  for_each_tile(panels.layer, kWidestTile, [&](const Tile& tile) {
    C* to = y + tile.first;
    if (panels.in_place) {
      const CoefInPlace<C> coef = panels.where_it_stands(tile, first_feature);
      switch (tile.vectors) {
        case 8: return forward_tile_in_place<C, LIVE, 8>(e, coef, rows, to, y_stride);
        case 4: return forward_tile_in_place<C, LIVE, 4>(e, coef, rows, to, y_stride);
        case 2: return forward_tile_in_place<C, LIVE, 2>(e, coef, rows, to, y_stride);
        default: return forward_tile_in_place<C, LIVE, 1>(e, coef, rows, to, y_stride);
      }
    }
    const CoefPanel<C> coef = panels.packed(tile, first_feature);
    switch (tile.vectors) {
      case 8: return forward_tile<C, LIVE, 8, 1>(e, coef, padded, to, y_stride);
      case 4: return forward_tile<C, LIVE, 4, 2>(e, coef, padded, to, y_stride);
      case 2: return forward_tile<C, LIVE, 2, 4>(e, coef, padded, to, y_stride);
      default: return forward_tile<C, LIVE, 1, 4>(e, coef, padded, to, y_stride);
    }
  });
}

template <class C>
void forward(const Problem& p, ParallelFor parallel_for) {
  const Layer<C> layer(p, parallel_for);
  const Panels<C> panels(layer, kWidestTile, true, parallel_for);
  const int64_t block = layer.block_rows(), chunk = layer.chunk_features(int(smaller(layer.vectors, kWidestTile)));
  const int64_t row_length = layer.padded_outputs;
  const bool direct = is_stored_as<C>(p.storage) && p.O == row_length;
  run_parallel(parallel_for, divide_up(p.N, block), block * p.I * layer.work_per_input(), [&](int64_t begin, int64_t end) {
    EvaluationScratch<C, kSubBlock> scratch(layer, chunk, chunk);
    Buffer<C> sums(block * row_length);
    for (int64_t n0 = begin * block; n0 < smaller(end * block, p.N); n0 += block) {
      const int64_t rows = smaller(block, p.N - n0), padded = divide_up(rows, kRowMultiple) * kRowMultiple;
      const bool in_output = direct && rows == padded;
      C* y = in_output ? static_cast<C*>(p.y) + n0 * p.O : sums.data;
      __builtin_memset(y, 0, size_t(padded * row_length) * sizeof(C));
      for (int64_t i0 = 0; i0 < p.I; i0 += chunk)
        for (int64_t b0 = 0; b0 < rows; b0 += kSubBlock) {
          const int64_t count = smaller(kSubBlock, rows - b0);
          const int64_t features = smaller(chunk, p.I - i0);
          scratch.read(n0 + b0, count, i0, features);
          const auto e = scratch.evaluate(0, features);
          const int padded_count = int(smaller(kSubBlock, padded - b0));
          with_live_rows(layer.live, [&](auto live) {
            forward_chunk<C, decltype(live)::value>(e, panels, i0, int(count), padded_count, y + b0 * row_length, row_length);
          });
        }
      if (!in_output) write_rows(p.storage, y, row_length, rows, p.O, p.y, n0, p.O);
    }
  });
}

template <class C, int LIVE, int STRIDE>
void backward_input_chunk(const Evaluated<C, STRIDE>& e, const Panels<C>& panels, int64_t first_feature, int padded, const C* g,
                          int64_t g_stride, C* result, int64_t result_stride) {
  for_each_tile(panels.layer, kWidestTile, [&](const Tile& tile) {
    const CoefPanel<C> coef = panels.packed(tile, first_feature);
    const C* from = g + tile.first;
    switch (tile.vectors) {
      case 8: return backward_input_tile<C, LIVE, 8, 1>(e, coef, padded, from, g_stride, result, result_stride);
      case 4: return backward_input_tile<C, LIVE, 4, 2>(e, coef, padded, from, g_stride, result, result_stride);
      case 2: return backward_input_tile<C, LIVE, 2, 2>(e, coef, padded, from, g_stride, result, result_stride);
      default: return backward_input_tile<C, LIVE, 1, 2>(e, coef, padded, from, g_stride, result, result_stride);
    }
  });
}

template <class C>
void backward_input(const Problem& p, ParallelFor parallel_for) {
  const Layer<C> layer(p, parallel_for);
  const Panels<C> panels(layer, kWidestTile, false, parallel_for);
  const int64_t block = layer.block_rows(), chunk = layer.chunk_features(int(smaller(layer.vectors, kWidestTile)));
  const int64_t row_length = layer.padded_outputs, result_length = divide_up(chunk, Layer<C>::lanes) * Layer<C>::lanes;
  const bool direct = is_stored_as<C>(p.storage) && p.g.stride[1] == 1 && p.O == row_length;
  run_parallel(parallel_for, divide_up(p.N, block), block * p.I * layer.work_per_input(), [&](int64_t begin, int64_t end) {
    EvaluationScratch<C, kSubBlock> scratch(layer, chunk, chunk);
    Buffer<C> packed(block * row_length), result(kSubBlock * result_length);
    for (int64_t n0 = begin * block; n0 < smaller(end * block, p.N); n0 += block) {
      const int64_t rows = smaller(block, p.N - n0), padded = divide_up(rows, kRowMultiple) * kRowMultiple;
      const C* g = packed.data;
      int64_t g_stride = row_length;
      if (direct && rows == padded) {
        g = static_cast<const C*>(p.g.data) + n0 * p.g.stride[0];
        g_stride = p.g.stride[0];
      } else {
        pack_rows(p.storage, p.g, n0, rows, p.O, p.g.stride[0], p.g.stride[1], packed.data, row_length);
        __builtin_memset(&packed[rows * row_length], 0, size_t((padded - rows) * row_length) * sizeof(C));
      }
      for (int64_t i0 = 0; i0 < p.I; i0 += chunk)
        for (int64_t b0 = 0; b0 < rows; b0 += kSubBlock) {
          const int64_t count = smaller(kSubBlock, rows - b0), features = smaller(chunk, p.I - i0);
          scratch.read(n0 + b0, count, i0, features);
          const auto e = scratch.evaluate(0, features);
          const int padded_count = int(smaller(kSubBlock, padded - b0));
          __builtin_memset(result.data, 0, size_t(padded_count * result_length) * sizeof(C));
          with_live_rows(layer.live, [&](auto live) {
            backward_input_chunk<C, decltype(live)::value>(e, panels, i0, padded_count, g + b0 * g_stride, g_stride,
                                                           result.data, result_length);
          });
          with_storage(p.storage, [&](auto tag) {
            using S = decltype(tag);
            for (int64_t b = 0; b < count; ++b) {
              S* to = static_cast<S*>(p.input_gradient) + (n0 + b0 + b) * p.I + i0;
              for (int64_t f = 0; f < features; ++f) to[f] = narrow<S>(result[b * result_length + f]);
            }
          });
        }
    }
  });
}

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

// float64 computes in double, everything else in float.
void forward_any(const Problem& p, ParallelFor f) { p.storage == Storage::float64 ? forward<double>(p, f) : forward<float>(p, f); }
void backward_input_any(const Problem& p, ParallelFor f) {
  p.storage == Storage::float64 ? backward_input<double>(p, f) : backward_input<float>(p, f);
}
void backward_coef_any(const Problem& p, ParallelFor f) {
  p.storage == Storage::float64 ? backward_coef<double>(p, f) : backward_coef<float>(p, f);
}
