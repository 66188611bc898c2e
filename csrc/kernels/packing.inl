// Converts operands of any strides and storage type to padded rows of the compute type, and back.
#pragma once

#include "namespace.inl"
#include "simd.inl"
#include "tiling.inl"

namespace KAN_NAMESPACE {
namespace {

template <class C>
constexpr Storage storage_of() {
  return sizeof(C) == 4 ? Storage::float32 : Storage::float64;
}
template <class C>
bool is_stored_as(Storage storage) {
  return storage == storage_of<C>();
}

// Convert `count` elements to the type of `to`.
template <class C, class S>
inline void widen_row(const S* __restrict from, int64_t stride, int64_t count, C* __restrict to) {
  int64_t c = 0;
  for (; stride == 1 && c + Simd<C>::lanes <= count; c += Simd<C>::lanes) store<C>(to + c, load_as<C>(from + c));
  for (; c < count; ++c) to[c] = widen<C>(from[c * stride]);
}
template <class C, class S>
inline void few_outputs_row(const C* __restrict from, int64_t count, S* __restrict to) {
  int64_t c = 0;
  for (; c + Simd<C>::lanes <= count; c += Simd<C>::lanes) store_as<C>(to + c, load(from + c));
  for (; c < count; ++c) to[c] = narrow<S>(from[c]);
}

// Copies columns from first_column and rows from first_row of a strided operand to padded rows of the compute type. The padding is
// 0.
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

// Writes rows to a contiguous output, from row first_row and column first_column.
template <class C>
void write_rows(Storage storage, const C* source, int64_t source_stride, int64_t rows, int64_t columns, void* destination,
                int64_t first_row, int64_t first_column, int64_t destination_stride) {
  with_storage(storage, [&](auto tag) {
    auto* to = static_cast<decltype(tag)*>(destination) + first_row * destination_stride + first_column;
    for (int64_t r = 0; r < rows; ++r) few_outputs_row(source + r * source_stride, columns, to + r * destination_stride);
  });
}

// Writes rows n0 .. n0 + rows - 1 of y. The sums are stored tile by tile.
template <class C>
void write_tiles(const TiledLayer<C>& layer, const C* sums, int64_t n0, int64_t rows) {
  const Problem& p = layer.problem;
  for (int64_t t = 0; t < layer.tiles; ++t) {
    const Tile tile = layer.tile(t);
    const int64_t width = tile.vectors * Simd<C>::lanes;
    write_rows(p.storage, sums + rows * tile.first, width, rows, smaller(width, p.O - tile.first), p.y, n0, tile.first, p.O);
  }
}

// Copies rows x columns of a strided operand, transposed: row c of the destination is column first_column + c of the operand. The
// entries rows .. padded_rows - 1 of each row are 0.
template <class C>
void read_transposed(Storage storage, const Operand& source, int64_t first_row, int64_t rows, int64_t padded_rows,
                     int64_t first_column, int64_t columns, C* destination, int64_t destination_stride) {
  constexpr int lanes = Simd<C>::lanes;
  with_storage(storage, [&](auto tag) {
    using S = decltype(tag);
    const int64_t row_stride = source.stride[0], column_stride = source.stride[1];
    const S* from = static_cast<const S*>(source.data) + first_row * row_stride + first_column * column_stride;
    if (row_stride == 1 && column_stride != 1) {
      for (int64_t c = 0; c < columns; ++c) {
        C* to = destination + c * destination_stride;
        widen_row(from + c * column_stride, 1, rows, to);
        for (int64_t r = rows; r < padded_rows; ++r) to[r] = C(0);
      }
      return;
    }
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

// The inverse: entry (c, r) of the source becomes element (first_row + r, first_column + c) of a contiguous output.
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

}  // namespace
}  // namespace KAN_NAMESPACE
