// Vectors of one instruction set: types, lookups, sums, conversions.
#pragma once

#include "namespace.inl"

namespace KAN_NAMESPACE {
namespace {

template <class C>
struct Simd;
template <>
struct Simd<float> {
  typedef float V __attribute__((vector_size(KAN_VECTOR_BYTES)));
  typedef float Unaligned __attribute__((vector_size(KAN_VECTOR_BYTES), aligned(4), may_alias));
  typedef int32_t Int;
  typedef int32_t Index __attribute__((vector_size(KAN_VECTOR_BYTES)));
  typedef int32_t UnalignedIndex __attribute__((vector_size(KAN_VECTOR_BYTES), aligned(4), may_alias));
  static constexpr int lanes = KAN_VECTOR_BYTES / 4;
};
template <>
struct Simd<double> {
  typedef double V __attribute__((vector_size(KAN_VECTOR_BYTES)));
  typedef double Unaligned __attribute__((vector_size(KAN_VECTOR_BYTES), aligned(8), may_alias));
  typedef int64_t Int;
  typedef int64_t Index __attribute__((vector_size(KAN_VECTOR_BYTES)));
  typedef int64_t UnalignedIndex __attribute__((vector_size(KAN_VECTOR_BYTES), aligned(8), may_alias));
  static constexpr int lanes = KAN_VECTOR_BYTES / 8;
};

template <class C>
using V = typename Simd<C>::V;
template <class C>
using Index = typename Simd<C>::Index;

template <class C>
inline V<C> load(const C* p) {
  return *reinterpret_cast<const typename Simd<C>::Unaligned*>(p);
}
template <class C>
inline void store(C* p, V<C> v) {
  *reinterpret_cast<typename Simd<C>::Unaligned*>(p) = v;
}
template <class C>
inline V<C> broadcast(C value) {
  return value - V<C>{};  // subtracting 0 is free; adding 0 takes an instruction, because it turns -0 into 0
}

// Return a < b ? a : b and a > b ? a : b, so b if a is NaN. On AVX-512 compilers turn these expressions into a comparison and a
// blend, hence the intrinsics.
template <class C>
inline V<C> min_of(V<C> a, V<C> b) {
#if KAN_VECTOR_BYTES == 64
  if constexpr (sizeof(C) == 4)
    return (V<C>)_mm512_min_ps((__m512)a, (__m512)b);
  else
    return (V<C>)_mm512_min_pd((__m512d)a, (__m512d)b);
#else
  return a < b ? a : b;
#endif
}
template <class C>
inline V<C> max_of(V<C> a, V<C> b) {
#if KAN_VECTOR_BYTES == 64
  if constexpr (sizeof(C) == 4)
    return (V<C>)_mm512_max_ps((__m512)a, (__m512)b);
  else
    return (V<C>)_mm512_max_pd((__m512d)a, (__m512d)b);
#else
  return a > b ? a : b;
#endif
}
template <class C>
inline Index<C> min_of(Index<C> a, Index<C> b) {
#if KAN_VECTOR_BYTES == 64
  if constexpr (sizeof(C) == 4)
    return (Index<C>)_mm512_min_epi32((__m512i)a, (__m512i)b);
  else
    return (Index<C>)_mm512_min_epi64((__m512i)a, (__m512i)b);
#else
  return a < b ? a : b;
#endif
}
template <class C>
inline Index<C> max_of(Index<C> a, Index<C> b) {
#if KAN_VECTOR_BYTES == 64
  if constexpr (sizeof(C) == 4)
    return (Index<C>)_mm512_max_epi32((__m512i)a, (__m512i)b);
  else
    return (Index<C>)_mm512_max_epi64((__m512i)a, (__m512i)b);
#else
  return a > b ? a : b;
#endif
}

// Indices are stored as 32-bit integers.
inline void store_index(int32_t* to, Index<float> row) { *reinterpret_cast<Simd<float>::UnalignedIndex*>(to) = row; }
inline void store_index(int32_t* to, Index<double> row) {
  for (int lane = 0; lane < Simd<double>::lanes; ++lane) to[lane] = int32_t(row[lane]);
}
template <class C>
inline Index<C> load_index(const int32_t* from) {
  if constexpr (sizeof(C) == 4) return *reinterpret_cast<const typename Simd<C>::UnalignedIndex*>(from);
  Index<C> index;
  for (int lane = 0; lane < Simd<C>::lanes; ++lane) index[lane] = from[lane];
  return index;
}
template <class C>
inline bool any_lane(Index<C> mask) {
#if KAN_VECTOR_BYTES == 64
  return _mm512_test_epi32_mask((__m512i)mask, (__m512i)mask) != 0;
#else
  bool any = false;
  for (int lane = 0; lane < Simd<C>::lanes; ++lane) any |= mask[lane] != 0;
  return any;
#endif
}

// Lane l of the result is lane index[l] of the concatenation of a and b. The index must be a constant after inlining. Clang has no
// shuffle by a vector, but compiles the loop to one instruction as well.
template <class C>
[[gnu::always_inline]] inline V<C> shuffle(V<C> a, V<C> b, Index<C> index) {
#ifdef __clang__
  constexpr int lanes = Simd<C>::lanes;
  V<C> result;
#pragma unroll
  for (int l = 0; l < lanes; ++l) result[l] = index[l] < lanes ? a[index[l]] : b[index[l] - lanes];
  return result;
#else
  return __builtin_shuffle(a, b, index);
#endif
}

// Returns the mask of the lanes that are infinite or NaN.
template <class C>
inline Index<C> non_finite(V<C> v) {
  return (Index<C>)(v - v != V<C>{});
}

// Returns table[index] per lane. If ROW_VECTORS > 0, the table is that many vectors long, and AVX-512 permutes registers instead of
// gathering.
template <class C, int ROW_VECTORS>
inline V<C> lookup(const C* table, Index<C> index) {
#if KAN_VECTOR_BYTES == 64
  if constexpr (ROW_VECTORS == 1 && sizeof(C) == 4)
    return (V<C>)_mm512_permutexvar_ps((__m512i)index, (__m512)load(table));
  else if constexpr (ROW_VECTORS == 1)
    return (V<C>)_mm512_permutexvar_pd((__m512i)index, (__m512d)load(table));
  else if constexpr (ROW_VECTORS == 2 && sizeof(C) == 4)
    return (V<C>)_mm512_permutex2var_ps((__m512)load(table), (__m512i)index, (__m512)load(table + 16));
  else if constexpr (ROW_VECTORS == 2)
    return (V<C>)_mm512_permutex2var_pd((__m512d)load(table), (__m512i)index, (__m512d)load(table + 8));
  else if constexpr (sizeof(C) == 4)
    return (V<C>)_mm512_i32gather_ps((__m512i)index, table, 4);
  else
    return (V<C>)_mm512_i64gather_pd((__m512i)index, table, 8);
#elif KAN_VECTOR_BYTES == 32
  if constexpr (ROW_VECTORS == 1 && sizeof(C) == 4) {
    return (V<C>)_mm256_permutevar8x32_ps((__m256)load(table), (__m256i)index);
  } else if constexpr (ROW_VECTORS == 2 && sizeof(C) == 4) {
    const __m256 low = _mm256_permutevar8x32_ps((__m256)load(table), (__m256i)index);
    const __m256 high = _mm256_permutevar8x32_ps((__m256)load(table + 8), (__m256i)index);
    return (V<C>)_mm256_blendv_ps(low, high, (__m256)_mm256_slli_epi32((__m256i)index, 28));  // bit 3 selects the vector
  } else if constexpr (sizeof(C) == 4)
    return (V<C>)_mm256_i32gather_ps(table, (__m256i)index, 4);
  else
    return (V<C>)_mm256_i64gather_pd(table, (__m256i)index, 8);
#else
  V<C> result;
  for (int lane = 0; lane < Simd<C>::lanes; ++lane) result[lane] = table[index[lane]];
  return result;
#endif
}

// Returns 1 / v to about an ulp, for v in the normal range.
inline V<float> reciprocal(V<float> v) {
#if KAN_VECTOR_BYTES == 64
  const V<float> guess = (V<float>)_mm512_rcp14_ps((__m512)v);  // a division would occupy a multiply port for 16 cycles
  return guess + guess * (1.0f - v * guess);
#else
  return 1.0f / v;
#endif
}
inline V<double> reciprocal(V<double> v) { return 1.0 / v; }

// Adds in a fixed tree, so that the same input gives the same bits.
template <class C>
inline C sum_lanes(V<C> v) {
#if KAN_VECTOR_BYTES == 64
  if constexpr (sizeof(C) == 4)
    return _mm512_reduce_add_ps((__m512)v);
  else
    return _mm512_reduce_add_pd((__m512d)v);
#else
  C lane[Simd<C>::lanes];
  store<C>(lane, v);
  for (int width = Simd<C>::lanes / 2; width > 0; width /= 2)
    for (int l = 0; l < width; ++l) lane[l] += lane[l + width];
  return lane[0];
#endif
}

// A shuffle index that interleaves the even blocks of HALF lanes of two vectors. Adding HALF to it selects the odd blocks.
template <class C, int HALF>
inline Index<C> interleaved_halves() {
  Index<C> index = {};
#pragma GCC unroll 16
  for (int l = 0; l < Simd<C>::lanes; ++l)
    index[l] = (l / HALF / 2) * 2 * HALF + l % HALF + (l / HALF % 2 == 1 ? Simd<C>::lanes : 0);
  return index;
}
// Returns the mask of the lanes in odd blocks of HALF lanes.
template <class C, int HALF>
inline Index<C> second_halves() {
  Index<C> mask = {};
#pragma GCC unroll 16
  for (int l = 0; l < Simd<C>::lanes; ++l) mask[l] = l / HALF % 2 == 1 ? -1 : 0;
  return mask;
}
// For each pair of vectors v[f], v[f + HALF], adds the two halves of every 2 HALF lanes: the sums of the first vector go to the low
// halves of v[f], those of the second to the high halves. This takes one shuffle and one blend, because two shuffles would compete
// for the single shuffle port.
template <class C, int HALF>
inline void add_halves(V<C>* v) {
  const Index<C> second = second_halves<C, HALF>();
  const Index<C> crosswise = interleaved_halves<C, HALF>() + (second ? Index<C>{} : Index<C>{} + HALF);
#pragma GCC unroll 16
  for (int f = 0; f < HALF; ++f) {
    const V<C> kept = second ? v[f + HALF] : v[f];
    v[f] = kept + shuffle<C>(v[f], v[f + HALF], crosswise);
  }
}
// Lane f of the result is the sum of the lanes of v[f]. v holds as many vectors as there are lanes and is overwritten.
template <class C>
inline V<C> sum_each(V<C>* v) {
  constexpr int lanes = Simd<C>::lanes;
  if constexpr (lanes >= 16) add_halves<C, 8>(v);
  if constexpr (lanes >= 8) add_halves<C, 4>(v);
  if constexpr (lanes >= 4) add_halves<C, 2>(v);
  add_halves<C, 1>(v);
  return v[0];
}

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};
template <class S>
constexpr bool is_float16(S) { return false; }
constexpr bool is_float16(Float16) { return true; }

inline float bits_to_float(uint32_t bits) {
  float value;
  __builtin_memcpy(&value, &bits, 4);
  return value;
}
inline uint32_t float_to_bits(float value) {
  uint32_t bits;
  __builtin_memcpy(&bits, &value, 4);
  return bits;
}

// Convert one element from a storage type to the compute type and back, rounding to nearest even.
template <class C>
inline C widen(double value) { return static_cast<C>(value); }
template <class C>
inline C widen(float value) { return static_cast<C>(value); }
template <class C>
inline C widen(BFloat16 value) { return static_cast<C>(bits_to_float(uint32_t(value.bits) << 16)); }
template <class C>
inline C widen(Float16 value) {
  // The shift leaves the exponent 112 too small. The multiplication corrects it, for subnormals as well.
  const uint32_t sign = uint32_t(value.bits & 0x8000) << 16;
  const uint32_t magnitude = uint32_t(value.bits & 0x7fff) << 13;
  const float scaled = bits_to_float(magnitude) * 0x1p112f;
  const uint32_t special = (value.bits & 0x7c00) == 0x7c00 ? 0x7f800000u | magnitude : float_to_bits(scaled);
  return static_cast<C>(bits_to_float(special | sign));
}

template <class S>
S round_to(float value);
template <>
inline BFloat16 round_to<BFloat16>(float value) {
  const uint32_t bits = float_to_bits(value);
  const uint32_t quiet_nan = (bits >> 16) | 0x40, rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return {uint16_t((bits & 0x7fffffff) > 0x7f800000 ? quiet_nan : rounded)};
}
template <>
inline Float16 round_to<Float16>(float value) {
  const uint32_t bits = float_to_bits(value);
  const uint16_t sign = uint16_t((bits >> 16) & 0x8000);
  const uint32_t magnitude = bits & 0x7fffffff;
  // Adding 0.5 makes the float addition round to the spacing of subnormal halves, 2^-24.
  const uint32_t subnormal = float_to_bits(bits_to_float(magnitude) + 0.5f) - float_to_bits(0.5f);
  const uint32_t normal = (magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  uint32_t half = magnitude < 0x38800000 ? subnormal : normal;
  half = magnitude >= 0x477ff000 ? 0x7c00 : half;
  half = magnitude > 0x7f800000 ? 0x7e00 : half;
  return {uint16_t(sign | half)};
}

// Rounds a vector of floats, given as bits, to bfloat16. The results are in the low halves of the lanes; the high halves are 0.
inline Index<float> bfloat16_bits(Index<float> bits) {
  const Index<float> high = (bits >> 16) & 0xffff, rounded = ((bits + 0x7fff + (high & 1)) >> 16) & 0xffff;
  return (bits & 0x7fffffff) > 0x7f800000 ? high | 0x40 : rounded;
}

template <class S, class C>
inline S narrow(C value) {
  if constexpr (sizeof(S) == 2)
    return round_to<S>(static_cast<float>(value));
  else
    return static_cast<S>(value);
}

// Load and store a vector of compute type C as consecutive elements of a storage type.
template <class C, class S>
inline V<C> load_as(const S* from) {
  if constexpr (sizeof(S) == sizeof(C)) return load(reinterpret_cast<const C*>(from));
#if KAN_VECTOR_BYTES == 64
  if constexpr (sizeof(S) == 2 && sizeof(C) == 4) {
    const __m256i bits = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    if constexpr (is_float16(S{}))
      return (V<C>)_mm512_cvtph_ps(bits);
    else
      return (V<C>)_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16);
  }
#elif KAN_VECTOR_BYTES == 32
  if constexpr (sizeof(S) == 2 && sizeof(C) == 4) {
    const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    if constexpr (is_float16(S{}))
      return (V<C>)_mm256_cvtph_ps(bits);
    else
      return (V<C>)_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16);
  }
#endif
  V<C> result;
  for (int lane = 0; lane < Simd<C>::lanes; ++lane) result[lane] = widen<C>(from[lane]);
  return result;
}
template <class C, class S>
inline void store_as(S* to, V<C> v) {
  if constexpr (sizeof(S) == sizeof(C)) return store<C>(reinterpret_cast<C*>(to), v);
#if KAN_VECTOR_BYTES == 64
  if constexpr (sizeof(S) == 2 && sizeof(C) == 4) {
    __m256i* const half = reinterpret_cast<__m256i*>(to);
    if constexpr (is_float16(S{}))
      return _mm256_storeu_si256(half, _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
    else
      return _mm256_storeu_si256(half, _mm512_cvtepi32_epi16((__m512i)bfloat16_bits((Index<float>)v)));
  }
#elif KAN_VECTOR_BYTES == 32
  if constexpr (sizeof(S) == 2 && sizeof(C) == 4) {
    __m128i* const half = reinterpret_cast<__m128i*>(to);
    if constexpr (is_float16(S{})) return _mm_storeu_si128(half, _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
    const __m256i bits = (__m256i)bfloat16_bits((Index<float>)v);
    return _mm_storeu_si128(half, _mm_packus_epi32(_mm256_castsi256_si128(bits), _mm256_extracti128_si256(bits, 1)));
  }
#endif
  for (int lane = 0; lane < Simd<C>::lanes; ++lane) to[lane] = narrow<S>(v[lane]);
}

// Exchanges the off-diagonal quarters of every block of 2 HALF x 2 HALF.
template <class C, int HALF>
inline void exchange_quarters(V<C>* v) {
  const Index<C> low = interleaved_halves<C, HALF>();
#pragma GCC unroll 16
  for (int r = 0; r < Simd<C>::lanes; ++r)
    if ((r & HALF) == 0) {
      const V<C> top = v[r], bottom = v[r + HALF];
      v[r] = shuffle<C>(top, bottom, low);
      v[r + HALF] = shuffle<C>(top, bottom, low + HALF);
    }
}
// Exchanges lane c of v[r] with lane r of v[c], for as many vectors as there are lanes.
template <class C>
inline void transpose_square(V<C>* v) {
  constexpr int lanes = Simd<C>::lanes;
  if constexpr (lanes >= 16) exchange_quarters<C, 8>(v);
  if constexpr (lanes >= 8) exchange_quarters<C, 4>(v);
  if constexpr (lanes >= 4) exchange_quarters<C, 2>(v);
  exchange_quarters<C, 1>(v);
}
// Computes to[c * to_stride + r] = from[r * from_stride + c] for a square of vectors of compute type C.
template <class C, class From, class To>
inline void transpose_block(const From* from, int64_t from_stride, To* to, int64_t to_stride) {
  constexpr int lanes = Simd<C>::lanes;
  V<C> v[lanes];
#pragma GCC unroll 16
  for (int r = 0; r < lanes; ++r) v[r] = load_as<C>(from + r * from_stride);
  transpose_square<C>(v);
#pragma GCC unroll 16
  for (int r = 0; r < lanes; ++r) store_as<C>(to + r * to_stride, v[r]);
}

// Loads the records of W entries that start at at(0), at(1), ... into one vector, side by side.
template <class C, int W, class At>
[[gnu::always_inline]] inline V<C> load_records(const At& at) {
  constexpr int bytes = W * int(sizeof(C));
  if constexpr (bytes == KAN_VECTOR_BYTES) return load(at(0));
#if KAN_VECTOR_BYTES == 64
  const auto quarter = [&](int r) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(at(r))); };
  const auto half = [&](int r) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(at(r))); };
  if constexpr (bytes == 32) return (V<C>)_mm512_inserti64x4(_mm512_castsi256_si512(half(0)), half(1), 1);
  if constexpr (bytes == 16)
    return (V<C>)_mm512_inserti32x4(
        _mm512_inserti32x4(_mm512_inserti32x4(_mm512_castsi128_si512(quarter(0)), quarter(1), 1), quarter(2), 2), quarter(3), 3);
#elif KAN_VECTOR_BYTES == 32
  const auto half = [&](int r) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(at(r))); };
  if constexpr (bytes == 16) return (V<C>)_mm256_inserti128_si256(_mm256_castsi128_si256(half(0)), half(1), 1);
#endif
  if constexpr (bytes == 8) {
    Index<double> pairs;
    for (int r = 0; r < Simd<double>::lanes; ++r) {
      int64_t pair;
      __builtin_memcpy(&pair, at(r), 8);
      pairs[r] = pair;
    }
    return (V<C>)pairs;
  }
  V<C> records;
  for (int lane = 0; lane < Simd<C>::lanes; ++lane) records[lane] = at(lane / W)[lane % W];
  return records;
}
// The same, for records that start at base + offset[0], base + offset[1], ...
template <class C, int W>
[[gnu::always_inline]] inline V<C> load_records(const C* base, const int32_t* offset) {
#if KAN_VECTOR_BYTES == 64
  if constexpr (W * sizeof(C) == 8)
    return (V<C>)_mm512_i32gather_epi64(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(offset)), base, sizeof(C));
#elif KAN_VECTOR_BYTES == 32
  if constexpr (W * sizeof(C) == 8)
    return (V<C>)_mm256_i32gather_epi64(reinterpret_cast<const long long*>(base),
                                        _mm_loadu_si128(reinterpret_cast<const __m128i*>(offset)), sizeof(C));
#endif
  return load_records<C, W>([&](int r) { return base + offset[r]; });
}
// The inverse of load_records, for the records r < count.
template <class C, int W, class At>
[[gnu::always_inline]] inline void store_records(const At& at, V<C> records, int count) {
  constexpr int bytes = W * int(sizeof(C)), in_vector = Simd<C>::lanes / W;
  if constexpr (bytes == KAN_VECTOR_BYTES) {
    if (count > 0) store<C>(at(0), records);
    return;
  }
#if KAN_VECTOR_BYTES == 64
  if constexpr (bytes == 32) {
    if (count > 0) _mm256_storeu_si256(reinterpret_cast<__m256i*>(at(0)), _mm512_castsi512_si256((__m512i)records));
    if (count > 1) _mm256_storeu_si256(reinterpret_cast<__m256i*>(at(1)), _mm512_extracti64x4_epi64((__m512i)records, 1));
    return;
  }
#elif KAN_VECTOR_BYTES == 32
  if constexpr (bytes == 16) {
    if (count > 0) _mm_storeu_si128(reinterpret_cast<__m128i*>(at(0)), _mm256_castsi256_si128((__m256i)records));
    if (count > 1) _mm_storeu_si128(reinterpret_cast<__m128i*>(at(1)), _mm256_extracti128_si256((__m256i)records, 1));
    return;
  }
#endif
  C entry[Simd<C>::lanes];
  store<C>(entry, records);
  for (int r = 0; r < in_vector && r < count; ++r)
    for (int k = 0; k < W; ++k) at(r)[k] = entry[r * W + k];
}
// Returns lanes first, first + 1, ... of v, each repeated W times.
template <class C, int W>
inline V<C> repeat_lanes(V<C> v, int first) {
  Index<C> index = {};
#pragma GCC unroll 16
  for (int l = 0; l < Simd<C>::lanes; ++l) index[l] = l / W;
  return shuffle<C>(v, v, index + typename Simd<C>::Int(first));
}
// Takes W vectors that hold as many records of W entries as there are lanes. On return, v[k] holds entry k of every record.
template <class C, int W>
inline void records_to_lanes(V<C>* v) {
  if constexpr (W == Simd<C>::lanes) {
    transpose_square<C>(v);
  } else {
    Index<C> even;
#pragma GCC unroll 16
    for (int l = 0; l < Simd<C>::lanes; ++l) even[l] = 2 * l;
#pragma GCC unroll 4
    for (int step = 1; step < W; step *= 2)
#pragma GCC unroll 8
      for (int r = 0; r < W; ++r)
        if ((r & step) == 0) {
          const V<C> low = v[r], high = v[r + step];
          v[r] = shuffle<C>(low, high, even);
          v[r + step] = shuffle<C>(low, high, even + 1);
        }
  }
}
// The inverse of records_to_lanes.
template <class C, int W>
inline void lanes_to_records(V<C>* v) {
  if constexpr (W == Simd<C>::lanes) {
    transpose_square<C>(v);
  } else {
    constexpr int lanes = Simd<C>::lanes;
    Index<C> first_half;
#pragma GCC unroll 16
    for (int l = 0; l < lanes; ++l) first_half[l] = l / 2 + (l % 2 == 1 ? lanes : 0);
#pragma GCC unroll 4
    for (int step = W / 2; step > 0; step /= 2)
#pragma GCC unroll 8
      for (int r = 0; r < W; ++r)
        if ((r & step) == 0) {
          const V<C> even = v[r], odd = v[r + step];
          v[r] = shuffle<C>(even, odd, first_half);
          v[r + step] = shuffle<C>(even, odd, first_half + lanes / 2);
        }
  }
}

// Passes a compile-time value as a function argument.
template <auto Value>
struct Constant {
  static constexpr auto value = Value;
};

// Calls f with a value of the C++ type for `storage`.
template <class F>
inline void with_storage(Storage storage, F f) {
  switch (storage) {
    case Storage::float64: return f(double{});
    case Storage::float32: return f(float{});
    case Storage::bfloat16: return f(BFloat16{});
    case Storage::float16: return f(Float16{});
  }
}

// Scratch memory that is released at the end of a scope. Its alignment keeps every vector of a padded row within one cache line.
template <class T>
struct Buffer {
  T* data = nullptr;
  Buffer() = default;
  explicit Buffer(int64_t count) { allocate(count); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() {
    if (data != nullptr) kan::release_scratch(data);
  }
  void allocate(int64_t count) { data = static_cast<T*>(kan::take_scratch(size_t(count) * sizeof(T))); }
  T& operator[](int64_t k) { return data[k]; }
  const T& operator[](int64_t k) const { return data[k]; }
};

}  // namespace
}  // namespace KAN_NAMESPACE
