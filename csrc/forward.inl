// The two operators that run over blocks of rows: spline_forward and spline_backward_input. Included by kernels.inl inside its namespace.

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
