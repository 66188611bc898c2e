// Sorting a block's inputs by the coefficient rows they read. Included by kernels.inl inside its namespace.

// One feature's inputs in the order of their first coefficient row, stable, so that sums run in the order of the rows. Run r is
// inputs order[start[r]] .. order[start[r+1]-1], which all read the coefficient rows first[r] .. first[r] + K.
struct Runs {
  const int32_t* order;
  const int32_t* first;
  const int32_t* start;
  int count;
};

constexpr int kSortPadding = 16;  // entries beyond the inputs' number that a sort may write

// Room for the runs of a group of features of up to STRIDE inputs each, and for sorting them.
template <int STRIDE>
struct RunScratch {
  static constexpr int kLength = STRIDE + kSortPadding;
  static constexpr int kFewBuckets = 6;
  static constexpr int kMostBuckets = 1 << 15;  // that fit beside an input's number in a word
  static constexpr int kInterleaved = 4;  // features sorted at once: a pass reads what the one before has just written

  const int buckets;  // of first rows: 0 .. buckets - 1
  Buffer<int32_t> rows, order, first, start, work;
  Buffer<int32_t> counts;

  RunScratch(int64_t group, int buckets_)
      : buckets(buckets_), rows(group * kLength), order(group * kLength), first(group * kLength), start(group * kLength),
        work(2 * kInterleaved * kLength + buckets_ + 1), counts(group) {}

  // Where the first rows of feature f belong before it is sorted.
  int32_t* keys(int64_t f) const { return rows.data + f * kLength; }

  Runs runs(int64_t f) const { return {&order[f * kLength], &first[f * kLength], &start[f * kLength], counts[f]}; }

  // Sorts inputs 0 .. count-1 of features 0 .. features-1 by their keys.
  void sort(int64_t features, int count) {
    for (int64_t f = 0; f < features;) {
#if KAN_VECTOR_BYTES == 64
      if (buckets <= kFewBuckets) {
        collect_each(f++, count);
        continue;
      }
      if (buckets <= kMostBuckets) {
        const int some = features - f < kInterleaved ? int(features - f) : kInterleaved;
        sort_by_bits(f, some, count);
        f += some;
        continue;
      }
#endif
      count_each(f++, count);
    }
  }

 private:
#if KAN_VECTOR_BYTES == 64
  static __m512i lane_numbers() { return _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15); }
  static __mmask16 valid_lanes(int count) { return count >= 16 ? 0xffff : __mmask16((1u << count) - 1); }

  // Bucket by bucket, 16 inputs at a time.
  void collect_each(int64_t f, int count) {
    const __m512i lane = lane_numbers();
    const int32_t* key = &rows[f * kLength];
    int32_t *to = &order[f * kLength], *row = &first[f * kLength], *begin = &start[f * kLength];
    int position = 0, run = 0;
    for (int m = 0; m < buckets; ++m) {
      const int from = position;
      for (int b = 0; b < count; b += 16) {
        const __mmask16 mask =
            _mm512_mask_cmpeq_epi32_mask(valid_lanes(count - b), _mm512_loadu_si512(key + b), _mm512_set1_epi32(m));
        _mm512_storeu_si512(to + position, _mm512_maskz_compress_epi32(mask, _mm512_add_epi32(lane, _mm512_set1_epi32(b))));
        position += __builtin_popcount(mask);
      }
      row[run] = m;
      begin[run] = from;
      run += position > from;
    }
    begin[run] = position;
    counts[f] = run;
  }

  // A radix sort of (row, input) pairs, one bit of the row at a time, 16 pairs at a time: a counting sort's increments would
  // wait for each other.
  void sort_by_bits(int64_t f0, int some, int count) {
    const __m512i lane = lane_numbers();
    const auto pairs_of = [&](int f, bool in_order) { return in_order ? &order[(f0 + f) * kLength] : &work[2 * f * kLength]; };
    for (int f = 0; f < some; ++f)
      for (int b = 0; b < count; b += 16) {
        const __m512i input = _mm512_add_epi32(lane, _mm512_set1_epi32(b));
        const __m512i key = _mm512_slli_epi32(_mm512_loadu_si512(&rows[(f0 + f) * kLength + b]), 16);
        _mm512_storeu_si512(pairs_of(f, false) + b, _mm512_or_si512(key, input));
      }
    bool in_order = false;
    for (int bit = 16; (buckets - 1) >> (bit - 16) != 0; ++bit, in_order = !in_order)
      for (int f = 0; f < some; ++f)
        split_by_bit(pairs_of(f, in_order), count, bit, pairs_of(f, !in_order), &work[(2 * f + 1) * kLength]);
    for (int f = 0; f < some; ++f) find_runs(pairs_of(f, in_order), f0 + f, count);
  }

  // Those whose bit is clear, then the others.
  static void split_by_bit(const int32_t* from, int count, int bit, int32_t* to, int32_t* set_ones) {
    const __m512i test = _mm512_set1_epi32(1 << bit);
    int clear_count = 0, set_count = 0;
    for (int b = 0; b < count; b += 16) {
      const __m512i pairs = _mm512_loadu_si512(from + b);
      const __mmask16 valid = valid_lanes(count - b), set = _mm512_mask_test_epi32_mask(valid, pairs, test);
      const __mmask16 clear = valid & ~set;
      _mm512_storeu_si512(to + clear_count, _mm512_maskz_compress_epi32(clear, pairs));
      _mm512_storeu_si512(set_ones + set_count, _mm512_maskz_compress_epi32(set, pairs));
      clear_count += __builtin_popcount(clear);
      set_count += __builtin_popcount(set);
    }
    for (int b = 0; b < set_count; b += 16) _mm512_storeu_si512(to + clear_count + b, _mm512_loadu_si512(set_ones + b));
  }

  void find_runs(const int32_t* sorted, int64_t f, int count) {
    const __m512i lane = lane_numbers();
    int32_t *to = &order[f * kLength], *row = &first[f * kLength], *begin = &start[f * kLength];
    int run = 0;
    __m512i before = _mm512_set1_epi32(-1);
    for (int b = 0; b < count; b += 16) {
      const __m512i pairs = _mm512_loadu_si512(sorted + b), key = _mm512_srai_epi32(pairs, 16);
      const __m512i previous = _mm512_alignr_epi32(key, before, 15);
      const __mmask16 new_run = _mm512_mask_cmpneq_epi32_mask(valid_lanes(count - b), key, previous);
      _mm512_storeu_si512(row + run, _mm512_maskz_compress_epi32(new_run, key));
      _mm512_storeu_si512(begin + run, _mm512_maskz_compress_epi32(new_run, _mm512_add_epi32(lane, _mm512_set1_epi32(b))));
      _mm512_storeu_si512(to + b, _mm512_and_si512(pairs, _mm512_set1_epi32(0xffff)));
      run += __builtin_popcount(new_run);
      before = key;
    }
    begin[run] = count;
    counts[f] = run;
  }
#endif

  void count_each(int64_t f, int count) {
    const int32_t* key = &rows[f * kLength];
    int32_t *to = &order[f * kLength], *row = &first[f * kLength], *begin = &start[f * kLength];
    int32_t* next = work.data;
    for (int m = 0; m <= buckets; ++m) next[m] = 0;
    for (int b = 0; b < count; ++b) ++next[key[b] + 1];
    int run = 0;
    for (int m = 0; m < buckets; ++m) {
      row[run] = m;
      begin[run] = next[m];
      run += next[m + 1] > 0;
      next[m + 1] += next[m];
    }
    begin[run] = count;
    counts[f] = run;
    for (int b = 0; b < count; ++b) to[next[key[b]]++] = b;
  }
};
