// Vectors of one instruction set: types, lookups, sums, conversions. Included by kernels.inl inside its namespace.

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
  return value - V<C>{};  // minus zero is no instruction, plus zero is one: it turns -0 into 0
}

// table[index] per lane. ROW_VECTORS > 0: the table is that many vectors long, and the lookup permutes registers.
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
  if constexpr (sizeof(C) == 4)
    return (V<C>)_mm256_i32gather_ps(table, (__m256i)index, 4);
  else
    return (V<C>)_mm256_i64gather_pd(table, (__m256i)index, 8);
#else
  V<C> result;
  for (int lane = 0; lane < Simd<C>::lanes; ++lane) result[lane] = table[index[lane]];
  return result;
#endif
}

// 1 / v to about an ulp, for v in the normal range.
inline V<float> reciprocal(V<float> v) {
#if KAN_VECTOR_BYTES == 64
  const V<float> guess = (V<float>)_mm512_rcp14_ps((__m512)v);  // a division would block a multiply port for 16 cycles
  return guess + guess * (1.0f - v * guess);
#else
  return 1.0f / v;
#endif
}
inline V<double> reciprocal(V<double> v) { return 1.0 / v; }

// A fixed tree, so that the same input gives the same bits.
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

// Which lanes of a pair of vectors sum_each adds: from blocks of `half` lanes, the low ones of both vectors in turn.
template <class C, int HALF>
inline Index<C> interleaved_halves() {
  Index<C> index = {};
#pragma GCC unroll 16
  for (int l = 0; l < Simd<C>::lanes; ++l)
    index[l] = (l / HALF / 2) * 2 * HALF + l % HALF + (l / HALF % 2 == 1 ? Simd<C>::lanes : 0);
  return index;
}
template <class C, int HALF>
inline void add_halves(V<C>* v) {
  const Index<C> low = interleaved_halves<C, HALF>();
#pragma GCC unroll 16
  for (int f = 0; f < HALF; ++f)
    v[f] = __builtin_shuffle(v[f], v[f + HALF], low) + __builtin_shuffle(v[f], v[f + HALF], low + HALF);
}
// Lane f of the result is the sum of the lanes of v[f], for as many vectors as there are lanes; v is used up.
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

// Reading and writing one element of a storage type as the compute type; rounding is to nearest even.
template <class C>
inline C widen(double value) { return static_cast<C>(value); }
template <class C>
inline C widen(float value) { return static_cast<C>(value); }
template <class C>
inline C widen(BFloat16 value) { return static_cast<C>(bits_to_float(uint32_t(value.bits) << 16)); }
template <class C>
inline C widen(Float16 value) {
  // Shifting the half's exponent into the float's place leaves it 112 too small; the product repairs it, subnormals too.
  const uint32_t sign = uint32_t(value.bits & 0x8000) << 16;
  const uint32_t magnitude = uint32_t(value.bits & 0x7fff) << 13;
  const float scaled = bits_to_float(magnitude) * 0x1p112f;
  const uint32_t special = (value.bits & 0x7c00) == 0x7c00 ? 0x7f800000u | magnitude : float_to_bits(scaled);
  return static_cast<C>(bits_to_float(special | sign));
}

template <class S>
inline S narrow(double value) { return static_cast<S>(value); }
template <>
inline BFloat16 narrow<BFloat16>(double value) {
  const uint32_t bits = float_to_bits(static_cast<float>(value));
  if ((bits & 0x7fffffff) > 0x7f800000) return {uint16_t((bits >> 16) | 0x40)};
  return {uint16_t((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}
template <>
inline Float16 narrow<Float16>(double value) {
  const uint32_t bits = float_to_bits(static_cast<float>(value));
  const uint16_t sign = uint16_t((bits >> 16) & 0x8000);
  const uint32_t magnitude = bits & 0x7fffffff;
  if (magnitude > 0x7f800000) return {uint16_t(sign | 0x7e00)};
  if (magnitude >= 0x477ff000) return {uint16_t(sign | 0x7c00)};
  if (magnitude < 0x38800000) {
    // Adding 0.5 lets the float unit round to the half's subnormal spacing of 2^-24.
    const uint32_t subnormal = float_to_bits(bits_to_float(magnitude) + 0.5f) - float_to_bits(0.5f);
    return {uint16_t(sign | subnormal)};
  }
  return {uint16_t(sign | ((magnitude - 0x38000000 + 0xfff + ((magnitude >> 13) & 1)) >> 13))};
}

// Calls f with a value of the C++ type that `storage` names.
template <class F>
inline void with_storage(Storage storage, F f) {
  switch (storage) {
    case Storage::float64: return f(double{});
    case Storage::float32: return f(float{});
    case Storage::bfloat16: return f(BFloat16{});
    case Storage::float16: return f(Float16{});
  }
}

// Scratch memory for the length of a scope, aligned so that vectors of a padded row never straddle two cache lines.
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
