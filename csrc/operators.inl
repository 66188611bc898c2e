// The operators: cut the work, pack operands, evaluate, contract, write. Included by kernels.inl inside its namespace.

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
    run_parallel(parallel_for, p.I, (tables.intervals + 1) * (p.K + 1) * 8, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) tables.prepare(p, i);
    });
  }

  // Rows evaluated and contracted together. Large grids want more, to reuse a feature's coefficients while they are in L1;
  // small batches fewer, so that there are blocks for several threads.
  int64_t block_rows() const {
    if (problem.G > 32 && problem.N >= 2048) return 256;
    int64_t rows = 64;
    while (rows > kRowMultiple && problem.N < 8 * rows) rows /= 2;
    return rows;
  }

  // Vector operations of one row with one feature: the evaluation and the contraction.
  int64_t work_per_input() const { return 16 + (live + 1) * vectors; }

  // Features evaluated together: their coefficients of one tile and their values share L1.
  int64_t chunk_features(int64_t rows, int tile_vectors) const {
    const int64_t coef_bytes = (spline_rows + 1) * tile_vectors * KAN_VECTOR_BYTES;
    const int64_t value_bytes = (live + 2) * rows * int64_t(sizeof(C));
    return smaller(problem.I, at_least_one(smaller(24576 / coef_bytes, 20480 / value_bytes)));
  }
};

// Inputs of a chunk of features, transposed to (feature, row), and their evaluation.
template <class C>
struct EvaluationScratch {
  int64_t stride;
  int live;
  Buffer<C> x, w, values, u;
  Buffer<int32_t> rows, interval;

  EvaluationScratch(const Layer<C>& layer, int64_t features, int64_t stride_)
      : stride(stride_), live(layer.live), x(features * stride), w(features * stride), values(features * (live + 1) * stride),
        u(stride), rows(features * stride), interval(stride) {}

  // Row b of feature f of the block is x[first_row + b, first_feature + f]; padding is 0.
  void read(const Problem& p, const Operand& source, Buffer<C>& destination, int64_t first_row, int64_t row_count,
            int64_t first_feature, int64_t features) {
    with_storage(p.storage, [&](auto tag) {
      const auto* from = static_cast<const decltype(tag)*>(source.data) + first_feature * source.stride[1];
      for (int64_t b = 0; b < row_count; ++b)
        for (int64_t f = 0; f < features; ++f)
          destination[f * stride + b] = widen<C>(from[(first_row + b) * source.stride[0] + f * source.stride[1]]);
    });
    for (int64_t f = 0; f < features; ++f)
      for (int64_t b = row_count; b < stride; ++b) destination[f * stride + b] = C(0);
  }

  Evaluated<C> evaluate(const Layer<C>& layer, int64_t first_row, int64_t row_count, int64_t first_feature,
                        int64_t features) {
    const Problem& p = layer.problem;
    const bool weighted = p.w.data != nullptr;
    read(p, p.x, x, first_row, row_count, first_feature, features);
    if (weighted) read(p, p.w, w, first_row, row_count, first_feature, features);
    const int count = int(divide_up(row_count, kRowMultiple) * kRowMultiple);
    for (int64_t f = 0; f < features; ++f) {
      const C* points = &x[f * stride];
      const C* weights = weighted ? &w[f * stride] : nullptr;
      C* destination = &values[f * (live + 1) * stride];
      evaluate_spline(layer.tables, first_feature + f, points, weights, count, destination, &rows[f * stride]);
      C* base = destination + live * stride;
      for (int b = 0; b < count; b += Simd<C>::lanes) {
        const V<C> value = layer.activation(load(points + b));
        store<C>(base + b, weighted ? value * load(weights + b) : value);
      }
    }
    return {values.data, rows.data, stride, int(features), live};
  }

 private:
  void evaluate_spline(const KnotTables<C>& tables, int64_t i, const C* points, const C* weights, int count, C* destination,
                       int32_t* row) {
    if (live == 0) {
      for (int b = 0; b < count; ++b) row[b] = 0;
      return;
    }
    switch (tables.specialised() ? tables.K : 0) {
#define KAN_EVALUATE(K) \
  case K: return evaluate_specialised<C, K>(tables, i, points, weights, count, destination, stride, row, u.data, interval.data)
      KAN_EVALUATE(1);
      KAN_EVALUATE(2);
      KAN_EVALUATE(3);
      KAN_EVALUATE(4);
      KAN_EVALUATE(5);
#undef KAN_EVALUATE
      default: return evaluate_general(tables, i, points, weights, count, destination, stride, row);
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

  CoefTile<C> tile(const Tile& t, int64_t first_feature) const {
    const Problem& p = layer.problem;
    const bool has_base = p.base_weight.data != nullptr;
    if (in_place) {
      const C* coef = static_cast<const C*>(p.coef.data) + first_feature * p.coef.stride[0] + t.first;
      const C* base = static_cast<const C*>(p.base_weight.data);
      if (has_base) base += first_feature * p.base_weight.stride[0] + t.first;
      const C* scale = static_cast<const C*>(p.scaler.data);
      if (scale != nullptr) scale += first_feature * p.scaler.stride[0] + t.first;
      return {coef, p.coef.stride[0], p.coef.stride[1], base, p.base_weight.stride[0], scale, p.scaler.stride[0]};
    }
    const int64_t width = t.vectors * Layer<C>::lanes;
    const C* coef = data.data + p.I * rows * t.first + first_feature * rows * width;
    return {coef, rows * width, width, has_base ? coef + layer.spline_rows * width : nullptr, rows * width, nullptr, 0};
  }
};

constexpr int kWidestTile = 8;  // vectors; 8 sums of one row or 2 rows x 4 fill the pipeline and leave registers free

template <class C>
void forward(const Problem& p, ParallelFor parallel_for) {
  const Layer<C> layer(p, parallel_for);
  const Panels<C> panels(layer, kWidestTile, true, parallel_for);
  const int64_t block = layer.block_rows(), chunk = layer.chunk_features(block, int(smaller(layer.vectors, kWidestTile)));
  const bool direct = is_stored_as<C>(p.storage) && p.O == layer.padded_outputs;
  run_parallel(parallel_for, divide_up(p.N, block), block * p.I * layer.work_per_input(), [&](int64_t begin, int64_t end) {
    EvaluationScratch<C> scratch(layer, chunk, block);
    Buffer<C> sums(block * layer.padded_outputs);
    for (int64_t n0 = begin * block; n0 < smaller(end * block, p.N); n0 += block) {
      const int64_t rows = smaller(block, p.N - n0);
      const int padded = int(divide_up(rows, kRowMultiple) * kRowMultiple);
      const bool in_output = direct && rows == padded;
      C* y = in_output ? static_cast<C*>(p.y) + n0 * p.O : sums.data;
      __builtin_memset(y, 0, size_t(padded * layer.padded_outputs) * sizeof(C));
      for (int64_t i0 = 0; i0 < p.I; i0 += chunk) {
        const Evaluated<C> e = scratch.evaluate(layer, n0, rows, i0, smaller(chunk, p.I - i0));
        with_live_rows(layer.live, [&](auto live) {
          constexpr int LIVE = decltype(live)::value;
          for (int64_t done = 0; done < layer.vectors;) {
            const Tile t = next_tile(done, layer.vectors, kWidestTile, Layer<C>::lanes);
            const CoefTile<C> coef = panels.tile(t, i0);
            C* to = y + t.first;
            if (panels.in_place) {
              switch (t.vectors) {
                case 8: forward_tile_in_place<C, LIVE, 8>(e, coef, int(rows), to, layer.padded_outputs); break;
                case 4: forward_tile_in_place<C, LIVE, 4>(e, coef, int(rows), to, layer.padded_outputs); break;
                case 2: forward_tile_in_place<C, LIVE, 2>(e, coef, int(rows), to, layer.padded_outputs); break;
                default: forward_tile_in_place<C, LIVE, 1>(e, coef, int(rows), to, layer.padded_outputs);
              }
            } else switch (t.vectors) {
              case 8: forward_tile<C, LIVE, 8, 1>(e, coef, padded, to, layer.padded_outputs); break;
              case 4: forward_tile<C, LIVE, 4, 2>(e, coef, padded, to, layer.padded_outputs); break;
              case 2: forward_tile<C, LIVE, 2, 4>(e, coef, padded, to, layer.padded_outputs); break;
              default: forward_tile<C, LIVE, 1, 4>(e, coef, padded, to, layer.padded_outputs);
            }
            done += t.vectors;
          }
        });
      }
      if (!in_output) write_rows(p.storage, y, layer.padded_outputs, rows, p.O, p.y, n0, p.O);
    }
  });
}

template <class C>
void backward_input(const Problem& p, ParallelFor parallel_for) {
  const Layer<C> layer(p, parallel_for);
  const Panels<C> panels(layer, kWidestTile, false, parallel_for);
  const int64_t block = layer.block_rows(), chunk = layer.chunk_features(block, int(smaller(layer.vectors, kWidestTile)));
  const bool direct = is_stored_as<C>(p.storage) && p.g.stride[1] == 1 && p.O == layer.padded_outputs;
  run_parallel(parallel_for, divide_up(p.N, block), block * p.I * layer.work_per_input(), [&](int64_t begin, int64_t end) {
    EvaluationScratch<C> scratch(layer, chunk, block);
    Buffer<C> packed(block * layer.padded_outputs), result(chunk * block);
    for (int64_t n0 = begin * block; n0 < smaller(end * block, p.N); n0 += block) {
      const int64_t rows = smaller(block, p.N - n0);
      const int padded = int(divide_up(rows, kRowMultiple) * kRowMultiple);
      const C* g = packed.data;
      int64_t g_stride = layer.padded_outputs;
      if (direct && rows == padded) {
        g = static_cast<const C*>(p.g.data) + n0 * p.g.stride[0];
        g_stride = p.g.stride[0];
      } else {
        pack_rows(p.storage, p.g, n0, rows, p.O, p.g.stride[0], p.g.stride[1], packed.data, layer.padded_outputs);
        __builtin_memset(&packed[rows * layer.padded_outputs], 0, size_t((padded - rows) * layer.padded_outputs) * sizeof(C));
      }
      for (int64_t i0 = 0; i0 < p.I; i0 += chunk) {
        const int64_t features = smaller(chunk, p.I - i0);
        const Evaluated<C> e = scratch.evaluate(layer, n0, rows, i0, features);
        __builtin_memset(result.data, 0, size_t(features * block) * sizeof(C));
        with_live_rows(layer.live, [&](auto live) {
          constexpr int LIVE = decltype(live)::value;
          for (int64_t done = 0; done < layer.vectors;) {
            const Tile t = next_tile(done, layer.vectors, kWidestTile, Layer<C>::lanes);
            const CoefTile<C> coef = panels.tile(t, i0);
            const C* from = g + t.first;
            switch (t.vectors) {
              case 8: backward_input_tile<C, LIVE, 8, 1>(e, coef, padded, from, g_stride, result.data); break;
              case 4: backward_input_tile<C, LIVE, 4, 2>(e, coef, padded, from, g_stride, result.data); break;
              case 2: backward_input_tile<C, LIVE, 2, 4>(e, coef, padded, from, g_stride, result.data); break;
              default: backward_input_tile<C, LIVE, 1, 4>(e, coef, padded, from, g_stride, result.data);
            }
            done += t.vectors;
          }
        });
        with_storage(p.storage, [&](auto tag) {
          using S = decltype(tag);
          for (int64_t b = 0; b < rows; ++b)
            for (int64_t f = 0; f < features; ++f)
              static_cast<S*>(p.input_gradient)[(n0 + b) * p.I + i0 + f] = narrow<S>(result[f * block + b]);
        });
      }
    }
  });
}

// Orders a feature's inputs by their first live row: a counting sort, stable, so that sums run in the order of the rows.
inline Buckets sort_into_buckets(const int32_t* rows, int count, int buckets, int32_t* start, int32_t* order) {
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

template <class C>
void backward_coef(const Problem& p, ParallelFor parallel_for) {
  const Layer<C> layer(p, parallel_for);
  const int64_t row_length = layer.padded_outputs, feature_size = (layer.spline_rows + 1) * row_length;
  const int bucket_count = layer.live > 0 ? int(p.G) : 1;
  // Enough rows at once to give a bucket some 16 of them.
  int64_t block = 256;
  while (block < 2048 && block < 16 * p.G && block < p.N) block *= 2;
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
    EvaluationScratch<C> scratch(layer, 1, block);
    Buffer<C> packed(direct ? 0 : block * row_length);
    Buffer<int32_t> start(bucket_count + 1), order(block);
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
        for (int64_t i = i0; i < i1; ++i) {
          const Evaluated<C> e = scratch.evaluate(layer, n0, rows, i, 1);
          bool finite = true;
          for (int64_t b = 0; b < rows; ++b) finite &= scratch.x[b] - scratch.x[b] == C(0);
          not_finite[split * p.I + i] |= !finite;
          const Buckets buckets = sort_into_buckets(e.rows, int(rows), bucket_count, start.data, order.data);
          C* gradient = sums + (i - i0) * feature_size;
          C* base = gradient + layer.spline_rows * row_length;
          with_live_rows(layer.live, [&](auto live) {
            constexpr int LIVE = decltype(live)::value;
            // K + 2 rows of a tile stay in registers: 4 vectors wide where they fit, else 2.
            constexpr int widest = KAN_VECTOR_BYTES == 64 && LIVE <= 4 ? 4 : LIVE <= 4 ? 2 : KAN_VECTOR_BYTES == 64 ? 2 : 1;
            for (int64_t done = 0; done < layer.vectors;) {
              const Tile t = next_tile(done, layer.vectors, LIVE < 0 ? 1 : widest, Layer<C>::lanes);
              C *to = gradient + t.first, *to_base = base + t.first;
              const C* from = g + t.first;
              if constexpr (LIVE < 0) {
                backward_coef_tile_general(e.values, e.stride, e.live, buckets, from, g_stride, to, row_length, to_base);
              } else {
                if constexpr (widest >= 4)
                  if (t.vectors == 4)
                    backward_coef_tile<C, LIVE, 4>(e.values, e.stride, buckets, from, g_stride, to, row_length, to_base);
                if constexpr (widest >= 2)
                  if (t.vectors == 2)
                    backward_coef_tile<C, LIVE, 2>(e.values, e.stride, buckets, from, g_stride, to, row_length, to_base);
                if (t.vectors == 1)
                  backward_coef_tile<C, LIVE, 1>(e.values, e.stride, buckets, from, g_stride, to, row_length, to_base);
              }
              done += t.vectors;
            }
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
