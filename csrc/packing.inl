// Operands of any strides and storage type to padded rows of the compute type, and back. Included by kernels.inl inside its namespace.

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
        for_each_tile(layer, widest, [&](const Tile& tile) {
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
        });
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
