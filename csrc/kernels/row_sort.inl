// Sorts the inputs of a block by the coefficient rows that they read.
#pragma once

#include "namespace.inl"
#include "simd.inl"

namespace KAN_NAMESPACE {
namespace {

#if KAN_VECTOR_BYTES == 32
// For every mask of 8 lanes, the lanes that are set, in order.
struct LanesOfMask {
  uint8_t lanes[256][8];
  constexpr LanesOfMask() : lanes() {
    for (int mask = 0; mask < 256; ++mask)
      for (int lane = 0, set = 0; lane < 8; ++lane)
        if (mask >> lane & 1) lanes[mask][set++] = uint8_t(lane);
  }
};
alignas(64) constexpr LanesOfMask kLanesOfMask;
#endif

// The inputs of one feature, sorted by their first coefficient row. The sort is stable, so that sums run in the order of the rows
// of the batch. Run r is inputs order[start[r]] .. order[start[r+1]-1], which all read coefficient rows first[r] .. first[r] + K.
struct Runs {
  const int32_t* order;
  int32_t* first;
  const int32_t* start;
  int count;
};

// Builds the runs of a feature bucket by bucket, without a branch for empty buckets.
struct RunList {
  int32_t *first, *start;
  int count = 0;

  void add(int key, int from, int size) {
    first[count] = key;
    start[count] = from;
    count += size > 0;
  }
  int end(int inputs) {
    start[count] = inputs;
    return count;
  }
};

// Memory for the runs of a group of features of up to `room` inputs each, and for sorting them.
//
// Every bucket has its own bin, and appending an input to a bin takes one store. The filled bins are then concatenated. This takes
// 0.8 ns per input; counting the buckets first takes 1.1. If few buckets have inputs, each of these is collected in a pass of its
// own, which takes 0.6 ns per input for 5 buckets on AVX-512 and 0.9 on AVX2, where appending takes 1.8 (Zen 3).
struct RunScratch {
  static constexpr int kFewBuckets = 6;   // collecting takes a pass per bucket (stages, 64 -> 64, G = 5 and 20: evaluate and sort)
  static constexpr int kCopied = 16;      // entries copied at once
  static constexpr int kInterleaved = 4;  // features sorted at once: two inputs of one bucket depend on each other (row grid-20)
  static constexpr int kMostEntries = 1 << 15;  // entries of a feature's bins, which share L1 and L2 with the other data (row grid-100)
  static constexpr int kSmallestBin = 64;       // (row grid-100)
  static constexpr int kMostPassed = 16;     // AVX2: collecting is not tried for more buckets
  static constexpr int32_t kNoBucket = 32;   // the key of lanes after the last input, a shift that clears every bit

  const int length;   // entries per feature in the buffers below
  const int buckets;  // first rows are in 0 .. buckets - 1
  const int capacity;  // entries per bin; a bin that overflows runs into the following bins
  const int64_t bins_size;
  Buffer<int32_t> rows, first, start, next;
  Buffer<int32_t> order, bins;
  Buffer<int32_t> counts;

  RunScratch(int room, int64_t group, int buckets_)
      : length(room + kCopied), buckets(buckets_), capacity(capacity_of(room, buckets_)), bins_size(int64_t(buckets) * capacity + length), rows(group * length),
        first(group * length), start(group * length), next(kInterleaved * buckets + buckets + 1), order(group * length),
        bins(kInterleaved * bins_size), counts(group) {}

  // The first rows of feature f, which the caller fills in before it calls sort.
  int32_t* keys(int64_t f) const { return rows.data + f * length; }

  Runs runs(int64_t f) const { return {&order[f * length], first.data + f * length, &start[f * length], counts[f]}; }

  // Sorts inputs 0 .. count-1 of features 0 .. features-1 by their keys.
  void sort(int64_t features, int count) {
    int64_t f = 0;
#if KAN_VECTOR_BYTES == 64
    for (; buckets <= kFewBuckets && f < features; ++f) collect_each(f, count);
#elif KAN_VECTOR_BYTES == 32
    for (; buckets <= kMostPassed && f < features; ++f) {
      for (int b = count; b % 8 != 0; ++b) keys(f)[b] = kNoBucket;
      const uint32_t used = used_buckets(f, count);
      if (__builtin_popcount(used) <= kFewBuckets)
        collect_each(f, count, used);
      else
        sort_some<1>(f, count);
    }
#endif
    for (; f + kInterleaved <= features; f += kInterleaved) sort_some<kInterleaved>(f, count);
    for (; f < features; ++f) sort_some<1>(f, count);
  }

 private:
  static int capacity_of(int room, int buckets) {
    const int shared = kMostEntries / buckets;
    return shared >= room ? room : shared > kSmallestBin ? shared : kSmallestBin;
  }

#if KAN_VECTOR_BYTES == 64
  // Collects one bucket after the other, 16 inputs at a time.
  void collect_each(int64_t f, int count) {
    const __m512i lane = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const int32_t* key = keys(f);
    int32_t* to = &order[f * length];
    RunList runs = {&first[f * length], &start[f * length]};
    int position = 0;
    for (int m = 0; m < buckets; ++m) {
      const int from = position;
      for (int b = 0; b < count; b += 16) {
        const __mmask16 valid = count - b >= 16 ? 0xffff : __mmask16((1u << (count - b)) - 1);
        const __mmask16 mask = _mm512_mask_cmpeq_epi32_mask(valid, _mm512_loadu_si512(key + b), _mm512_set1_epi32(m));
        _mm512_storeu_si512(to + position, _mm512_maskz_compress_epi32(mask, _mm512_add_epi32(lane, _mm512_set1_epi32(b))));
        position += __builtin_popcount(mask);
      }
      runs.add(m, from, position - from);
    }
    counts[f] = runs.end(count);
  }
#elif KAN_VECTOR_BYTES == 32
  // Returns a mask of the buckets that have inputs.
  uint32_t used_buckets(int64_t f, int count) const {
    const int32_t* const key = keys(f);
    __m256i used = _mm256_setzero_si256();
    for (int b = 0; b < count; b += 8)
      used = _mm256_or_si256(used, _mm256_sllv_epi32(_mm256_set1_epi32(1), _mm256_loadu_si256(reinterpret_cast<const __m256i*>(key + b))));
    uint32_t lanes[8], all = 0;
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(lanes), used);
    for (const uint32_t lane : lanes) all |= lane;
    return all;
  }

  // Collects one bucket after the other, 8 inputs at a time.
  void collect_each(int64_t f, int count, uint32_t used) {
    const int32_t* const key = keys(f);
    int32_t* const to = &order[f * length];
    RunList runs = {&first[f * length], &start[f * length]};
    int64_t position = 0;
    for (; used != 0; used &= used - 1) {
      const int bucket = __builtin_ctz(used), from = int(position);
      __m256i first_input = _mm256_setzero_si256();
      for (int64_t b = 0; b < count; b += 8) {
        const __m256i own = _mm256_cmpeq_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(key + b)), _mm256_set1_epi32(bucket));
        const uint64_t mask = uint32_t(_mm256_movemask_ps(_mm256_castsi256_ps(own)));
        const __m256i lanes = _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(kLanesOfMask.lanes[mask])));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(to + position), _mm256_add_epi32(lanes, first_input));
        first_input = _mm256_add_epi32(first_input, _mm256_set1_epi32(8));
        position += __builtin_popcountll(mask);
      }
      runs.add(bucket, from, int(position) - from);
    }
    counts[f] = runs.end(count);
  }
#endif

  template <int FEATURES>
  void sort_some(int64_t f0, int count) {
    for (int f = 0; f < FEATURES; ++f)
      for (int m = 0; m < buckets; ++m) next[f * buckets + m] = m * capacity;
    for (int b = 0; b < count; ++b)
#pragma GCC unroll 4
      for (int f = 0; f < FEATURES; ++f) {
        int32_t& place = next[f * buckets + rows[(f0 + f) * length + b]];
        bins[f * bins_size + place++] = b;
      }
    for (int f = 0; f < FEATURES; ++f)
      if (!put_together(&next[f * buckets], &bins[f * bins_size], f0 + f, count)) count_each(f0 + f, count);
  }

  // Returns false if a bin overflowed.
  bool put_together(const int32_t* ends, const int32_t* from, int64_t f, int count) {
    int32_t* to = &order[f * length];
    RunList runs = {&first[f * length], &start[f * length]};
    int position = 0;
    for (int m = 0; m < buckets; ++m) {
      const int32_t* bin = from + m * capacity;
      const int size = ends[m] - m * capacity;
      if (size > capacity) return false;
      int b = 0;
      do __builtin_memcpy(to + position + b, bin + b, kCopied * sizeof(int32_t));
      while ((b += kCopied) < size);
      runs.add(m, position, size);
      position += size;
    }
    counts[f] = runs.end(count);
    return true;
  }

  void count_each(int64_t f, int count) {
    const int32_t* key = keys(f);
    int32_t* to = &order[f * length];
    RunList runs = {&first[f * length], &start[f * length]};
    int32_t* const places = &next[kInterleaved * buckets];
    for (int m = 0; m <= buckets; ++m) places[m] = 0;
    for (int b = 0; b < count; ++b) ++places[key[b] + 1];
    for (int m = 0; m < buckets; ++m) {
      runs.add(m, places[m], places[m + 1]);
      places[m + 1] += places[m];
    }
    counts[f] = runs.end(count);
    for (int b = 0; b < count; ++b) to[places[key[b]]++] = b;
  }
};

}  // namespace
}  // namespace KAN_NAMESPACE
