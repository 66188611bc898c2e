// Operands of any strides and storage type to padded rows of the compute type, and back. Included by kernels.inl inside its namespace.

template <class C>
constexpr Storage storage_of() {
  return sizeof(C) == 4 ? Storage::float32 : Storage::float64;
}
template <class C>
bool is_stored_as(Storage storage) {
  return storage == storage_of<C>();
}

// `count` elements, as the other type.
template <class C, class S>
inline void widen_row(const S* __restrict from, int64_t stride, int64_t count, C* __restrict to) {
  int64_t c = 0;
  for (; stride == 1 && c + Simd<C>::lanes <= count; c += Simd<C>::lanes) store<C>(to + c, load_as<C>(from + c));
  for (; c < count; ++c) to[c] = widen<C>(from[c * stride]);
}
template <class C, class S>
inline void narrow_row(const C* __restrict from, int64_t count, S* __restrict to) {
  int64_t c = 0;
  for (; c + Simd<C>::lanes <= count; c += Simd<C>::lanes) store_as<C>(to + c, load(from + c));
  for (; c < count; ++c) to[c] = narrow<S>(from[c]);
}

// Copies columns first_column.. of rows first_row.. of a strided operand to padded rows of the compute type; what lies beyond is 0.
template <class C>
void pack_rows(Storage storage, const Operand& source, int64_t first_row, int64_t rows, int64_t first_column, int64_t columns,
               C* destination, int64_t padded_columns) {
  with_storage(storage, [&](auto tag) {
    for (int64_t r = 0; r < rows; ++r) {
      const auto* from = static_cast<const decltype(tag)*>(source.data) + (first_row + r) * source.stride[0];
      C* to = destination + r * padded_columns;
      widen_row(from + first_column * source.stride[1], source.stride[1], columns, to);
      for (int64_t c = columns; c < padded_columns; ++c) to[c] = C(0);
    }
  });
}

// Writes rows to columns first_column.. of rows first_row.. of a contiguous output.
template <class C>
void write_rows(Storage storage, const C* source, int64_t source_stride, int64_t rows, int64_t columns, void* destination,
                int64_t first_row, int64_t first_column, int64_t destination_stride) {
  with_storage(storage, [&](auto tag) {
    auto* to = static_cast<decltype(tag)*>(destination) + first_row * destination_stride + first_column;
    for (int64_t r = 0; r < rows; ++r) narrow_row(source + r * source_stride, columns, to + r * destination_stride);
  });
}

// Writes rows n0.. of y, from sums tile by tile.
template <class C>
void write_tiles(const Layer<C>& layer, const C* sums, int64_t n0, int64_t rows) {
  const Problem& p = layer.problem;
  for (int64_t t = 0; t < layer.tiles; ++t) {
    const Tile tile = layer.tile(t);
    const int64_t width = tile.vectors * Simd<C>::lanes;
    write_rows(p.storage, sums + rows * tile.first, width, rows, smaller(width, p.O - tile.first), p.y, n0, tile.first, p.O);
  }
}

// Copies rows x columns of a strided operand to a matrix whose row c is the operand's column first_column + c; its entries
// rows .. padded_rows are 0.
template <class C>
void read_transposed(Storage storage, const Operand& source, int64_t first_row, int64_t rows, int64_t padded_rows,
                     int64_t first_column, int64_t columns, C* destination, int64_t destination_stride) {
  constexpr int lanes = Simd<C>::lanes;
  with_storage(storage, [&](auto tag) {
    using S = decltype(tag);
    const int64_t row_stride = source.stride[0], column_stride = source.stride[1];
    const S* from = static_cast<const S*>(source.data) + first_row * row_stride + first_column * column_stride;
    int64_t whole_rows = 0, whole_columns = 0;
    if (column_stride == 1) {
      whole_rows = rows / lanes * lanes;
      whole_columns = columns / lanes * lanes;
      for (int64_t r = 0; r < whole_rows; r += lanes)
        for (int64_t c = 0; c < whole_columns; c += lanes)
          transpose_block<C>(from + r * row_stride + c, row_stride, destination + c * destination_stride + r, destination_stride);
    }
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = r < whole_rows ? whole_columns : 0; c < columns; ++c)
        destination[c * destination_stride + r] = widen<C>(from[r * row_stride + c * column_stride]);
    for (int64_t c = 0; c < columns; ++c)
      for (int64_t r = rows; r < padded_rows; ++r) destination[c * destination_stride + r] = C(0);
  });
}

// The way back: entry (c, r) of the source becomes element (first_row + r, first_column + c) of a contiguous output.
template <class C>
void write_transposed(Storage storage, const C* source, int64_t source_stride, int64_t rows, int64_t columns, void* destination,
                      int64_t first_row, int64_t first_column, int64_t destination_stride) {
  constexpr int lanes = Simd<C>::lanes;
  with_storage(storage, [&](auto tag) {
    using S = decltype(tag);
    S* to = static_cast<S*>(destination) + first_row * destination_stride + first_column;
    const int64_t whole_rows = rows / lanes * lanes, whole_columns = columns / lanes * lanes;
    for (int64_t c = 0; c < whole_columns; c += lanes)
      for (int64_t r = 0; r < whole_rows; r += lanes)
        transpose_block<C>(source + c * source_stride + r, source_stride, to + r * destination_stride + c, destination_stride);
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = r < whole_rows ? whole_columns : 0; c < columns; ++c)
        to[r * destination_stride + c] = narrow<S>(source[c * source_stride + r]);
  });
}

// Element k of an array, without a branch per storage type.
inline const void* element_of(const void* start, Storage storage, int64_t k) {
  return static_cast<const char*>(start) + k * (storage == Storage::float64 ? 8 : storage == Storage::float32 ? 4 : 2);
}

// The matrix (M, O) of feature i.
inline Operand coef_of_feature(const Problem& p, int64_t i) {
  Operand matrix;
  matrix.data = element_of(p.coef.data, p.storage, i * p.coef.stride[0]);
  matrix.stride[0] = p.coef.stride[1];
  matrix.stride[1] = p.coef.stride[2];
  return matrix;
}

constexpr int64_t kRowsWorthScaling = 512;

// Whether the inner loops can read the coefficients where they stand: of any storage type once for a run of inputs, of the
// compute type for every input.
template <class C>
bool coefficients_can_stay(const Problem& p, bool once_for_run) {
  return (once_for_run || is_stored_as<C>(p.storage)) && p.O % Simd<C>::lanes == 0 && p.coef.stride[2] == 1 &&
         (p.base_weight.data == nullptr || p.base_weight.stride[1] == 1) &&
         (p.scaler.data == nullptr || (p.scaler.stride[1] == 1 && p.N < kRowsWorthScaling));
}
template <class C>
CoefTile<C> coefficients_in_place(const Problem& p, int64_t i, int64_t first_output) {
  const auto at = [&](const Operand& operand) {
    return operand.data == nullptr ? nullptr : element_of(operand.data, p.storage, i * operand.stride[0] + first_output);
  };
  return {at(p.coef), p.coef.stride[1], at(p.base_weight), at(p.scaler), p.storage};
}

// The coefficients as the inner loops read them: where they stand, or packed (tile, feature, row, tile width) where they need a
// conversion, padding, or a product with the scaler that is cheaper once than in every block.
template <class C>
struct Coefficients {
  const Layer<C>& layer;
  const int64_t rows;  // per feature: the spline rows, then the base row
  const bool in_place;
  Buffer<C> packed;

  Coefficients(const Layer<C>& layer_, bool are_read, bool once_for_run, ParallelFor parallel_for)
      : layer(layer_), rows(layer.spline_rows + 1), in_place(!are_read || coefficients_can_stay<C>(layer.problem, once_for_run)) {
    if (in_place) return;
    const Problem& p = layer.problem;
    packed.allocate(p.I * rows * layer.padded_outputs);
    run_parallel(parallel_for, p.I, 2 * rows * layer.vectors, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) pack(i);
    });
  }

  CoefTile<C> tile(const Tile& t, int64_t i) const {
    const Problem& p = layer.problem;
    if (!in_place) {
      const int64_t width = t.vectors * Layer<C>::lanes;
      const C* start = packed.data + p.I * rows * t.first + i * rows * width;
      return {start, width, p.base_weight.data != nullptr ? start + layer.spline_rows * width : nullptr, nullptr, storage_of<C>()};
    }
    return coefficients_in_place<C>(p, i, t.first);
  }

 private:
  void pack(int64_t i) {
    const Problem& p = layer.problem;
    for (int64_t t = 0; t < layer.tiles; ++t) {
      const Tile tile = layer.tile(t);
      const int64_t width = tile.vectors * Layer<C>::lanes, valid = smaller(width, p.O - tile.first);
      C* to = &packed[p.I * rows * tile.first + i * rows * width];
      if (layer.spline_rows > 0) pack_rows(p.storage, coef_of_feature(p, i), 0, layer.spline_rows, tile.first, valid, to, width);
      if (p.base_weight.data != nullptr)
        pack_rows(p.storage, p.base_weight, i, 1, tile.first, valid, to + layer.spline_rows * width, width);
      if (p.scaler.data != nullptr) scale(i, tile, to, width, valid);
    }
  }

  void scale(int64_t i, const Tile& tile, C* to, int64_t width, int64_t valid) const {
    Buffer<C> factors(width);
    pack_rows(layer.problem.storage, layer.problem.scaler, i, 1, tile.first, valid, factors.data, width);
    for (int64_t m = 0; m < layer.spline_rows; ++m)
      for (int64_t c = 0; c < width; ++c) to[m * width + c] *= factors[c];
  }
};
