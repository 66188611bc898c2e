// spline_forward, over blocks of rows. Included by kernels.inl inside its namespace.

// y (tile by tile, each rows x width) += the inputs' part.
template <class C, int STRIDE>
void forward_features(const EvaluationScratch<C, STRIDE>& inputs, int64_t first_feature, int64_t features,
                      const Coefficients<C>& coefficients, C* y, int64_t rows) {
  const Layer<C>& layer = inputs.layer;
  with_live_rows(layer.live, [&](auto live) {
    constexpr int LIVE = decltype(live)::value;
    for (int64_t t = 0; t < layer.tiles; ++t) {
      const Tile tile = layer.tile(t);
      C* to = y + rows * tile.first;
      with_width<widest_tile<LIVE>()>(tile.vectors, [&](auto width) {
        constexpr int R = decltype(width)::value;
        for (int64_t f = 0; f < features; ++f) {
          const CoefTile<C> coef = coefficients.tile(tile, first_feature + f);
          if constexpr (LIVE < 0)
            forward_tile_general(inputs.inputs(f), coef, to, Simd<C>::lanes);
          else if (inputs.sorts)
            forward_tile<C, LIVE, R>(inputs.inputs(f), coef, to, R * Simd<C>::lanes);
          else if (coef.scale == nullptr)
            forward_tile_unsorted<C, LIVE, R, false>(inputs.inputs(f), coef, to, R * Simd<C>::lanes);
          else
            forward_tile_unsorted<C, LIVE, R, true>(inputs.inputs(f), coef, to, R * Simd<C>::lanes);
        }
      });
    }
  });
}

// Rows that are written later: fetched while other work goes on, they cost a tenth of a narrow layer's time less.
inline void prefetch_output(const Problem& p, int64_t first_row, int64_t end_row) {
  with_storage(p.storage, [&](auto tag) {
    const auto* y = static_cast<const decltype(tag)*>(p.y);
    for (int64_t k = first_row * p.O; k < end_row * p.O; k += 64 / int64_t(sizeof(tag))) __builtin_prefetch(y + k, 1, 2);
  });
}

template <class C>
void forward(const Problem& p, ParallelFor parallel_for) {
  const Layer<C> layer(p, parallel_for);
  const Coefficients<C> coefficients(layer, true, parallel_for);
  const int64_t block = layer.block_rows(), chunk = smaller(p.I, kChunkFeatures), group = layer.group_features(chunk);
  const int64_t block_size = block * layer.padded_outputs;
  // Elsewhere runs are too short: their ends are branches mispredicted.
  const bool sorts = layer.live > 0 && layer.buckets() <= 8 && block >= 8 * layer.buckets();
  run_parallel(parallel_for, divide_up(p.N, block), block * p.I * layer.work_per_input(), [&](int64_t begin, int64_t end) {
    EvaluationScratch<C, kBlockRows> scratch(layer, chunk, group, false, sorts);
    Buffer<C> sums(block_size), part(p.I > chunk ? block_size : 0);
    for (int64_t n0 = begin * block; n0 < smaller(end * block, p.N); n0 += block) {
      const int64_t rows = smaller(block, p.N - n0), size = rows * layer.padded_outputs;
      for (int64_t i0 = 0; i0 < p.I; i0 += chunk) {
        const int64_t features = smaller(chunk, p.I - i0);
        C* y = i0 == 0 ? sums.data : part.data;
        __builtin_memset(y, 0, size_t(size) * sizeof(C));
        scratch.read(n0, rows, i0, features);
        for (int64_t f = 0; f < features; f += group) {
          scratch.evaluate(f, smaller(group, features - f));
          forward_features(scratch, i0 + f, smaller(group, features - f), coefficients, y, rows);
        }
        for (int64_t k = 0; i0 > 0 && k < size; ++k) sums[k] += part[k];
      }
      for (int64_t t = 0; t < layer.tiles; ++t) {
        const Tile tile = layer.tile(t);
        const int64_t width = tile.vectors * Simd<C>::lanes;
        write_rows(p.storage, &sums[rows * tile.first], width, rows, smaller(width, p.O - tile.first), p.y, n0, tile.first, p.O);
      }
    }
  });
}
