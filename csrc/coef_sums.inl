// The gradients of the coefficients while they are summed, and what is made of the sums. Included by kernels.inl inside its namespace.

template <class C>
void add_products_of(const C* __restrict a, const C* __restrict b, int64_t count, C* __restrict sums) {
  for (int64_t k = 0; k < count; ++k) sums[k] += a[k] * b[k];
}

// The sums of a chunk of features: M rows each of the splines', one each of the base activation's.
template <class C>
struct ChunkSums {
  C *spline, *base;
};

// The rows may be split, and the splits' sums are then added in order. The first split's stand in the output where that has their
// layout; others, where there is one split alone, in memory of the thread that sums, to be converted while they are in its cache.
template <class C>
struct CoefSums {
  const Problem& problem;
  const bool wanted;
  const int64_t spline_rows, row_length, splits;
  const bool spreads_nan;
  C* const spline_output;
  C* const base_output;
  Buffer<C> spline_memory, base_memory;  // of the splits that neither stand in the output nor belong to a thread
  Buffer<uint8_t> finite;

  CoefSums(const Layer<C>& layer, int64_t splits_)
      : problem(layer.problem),
        wanted(problem.coef_gradient != nullptr || problem.scaler_gradient != nullptr || problem.base_gradient != nullptr),
        spline_rows(layer.spline_rows), row_length(layer.padded_outputs), splits(splits_),
        spreads_nan(layer.live > 0 && layer.tables.degree > 0), spline_output(in_output(problem.coef_gradient)),
        base_output(in_output(problem.base_gradient)), finite(wanted ? splits * problem.I : 0) {
    if (!wanted || splits == 1) return;
    spline_memory.allocate((splits - (spline_output != nullptr)) * problem.I * spline_rows * row_length);
    base_memory.allocate((splits - (base_output != nullptr)) * problem.I * row_length);
  }

  // Elements that a thread has to have for a chunk of so many features.
  int64_t own_spline_size(int64_t features) const { return is_own(spline_output) ? features * spline_rows * row_length : 0; }
  int64_t own_base_size(int64_t features) const { return is_own(base_output) ? features * row_length : 0; }

  // Features i0 .. i0 + features, cleared.
  ChunkSums<C> start_chunk(int64_t split, int64_t i0, int64_t features, C* own_spline, C* own_base) {
    if (!wanted) return {};
    const ChunkSums<C> chunk = {is_own(spline_output) ? own_spline : spline(split, i0),
                                is_own(base_output) ? own_base : base(split, i0)};
    __builtin_memset(chunk.spline, 0, size_t(features * spline_rows * row_length) * sizeof(C));
    __builtin_memset(chunk.base, 0, size_t(features * row_length) * sizeof(C));
    for (int64_t i = i0; i < i0 + features; ++i) finite[split * problem.I + i] = 1;
    return chunk;
  }

  void note_finite(int64_t split, int64_t i, bool is_finite) { finite[split * problem.I + i] &= is_finite; }

  // Writes what the caller asked for, unless other splits are still to be added.
  void finish_chunk(int64_t i0, int64_t features, const ChunkSums<C>& chunk) {
    for (int64_t f = 0; wanted && splits == 1 && f < features; ++f)
      write_feature(i0 + f, chunk.spline + f * spline_rows * row_length, chunk.base + f * row_length);
  }
  void add_splits(ParallelFor parallel_for) {
    if (!wanted || splits == 1) return;
    run_parallel(parallel_for, problem.I, splits * (spline_rows + 1) * row_length / 4, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        for (int64_t split = 1; split < splits; ++split) {
          add_to(spline(0, i), spline(split, i), spline_rows * row_length);
          add_to(base(0, i), base(split, i), row_length);
          finite[i] &= finite[split * problem.I + i];
        }
        write_feature(i, spline(0, i), base(0, i));
      }
    });
  }

 private:
  // Null where the output's layout differs from the sums'.
  C* in_output(void* gradient) const {
    return is_stored_as<C>(problem.storage) && row_length == problem.O && spline_rows > 0 ? static_cast<C*>(gradient) : nullptr;
  }
  bool is_own(const C* output) const { return wanted && splits == 1 && output == nullptr; }

  C* spline(int64_t split, int64_t i) { return at(split, i, spline_rows * row_length, spline_output, spline_memory.data); }
  C* base(int64_t split, int64_t i) { return at(split, i, row_length, base_output, base_memory.data); }
  C* at(int64_t split, int64_t i, int64_t feature_size, C* output, C* memory) const {
    if (split == 0 && output != nullptr) return output + i * feature_size;
    return memory + ((split - (output != nullptr)) * problem.I + i) * feature_size;
  }

  // The sums are overwritten.
  void write_feature(int64_t i, C* sums, const C* base_sums) {
    const Problem& p = problem;
    // Every basis of the dense formula is NaN where x is not finite, not only the rows read here.
    if (spreads_nan && finite[i] == 0)
      for (int64_t k = 0; k < spline_rows * row_length; ++k) sums[k] = C(__builtin_nan(""));
    if (spline_rows == 0)
      write_zeros(i);
    else
      write_spline(i, sums);
    if (p.base_gradient != nullptr && p.base_gradient != base_output)
      write_rows(p.storage, base_sums, row_length, 1, p.O, p.base_gradient, i, 0, p.O);
  }

  // `sums` is the gradient with respect to the scaled coefficients of feature i; overwritten.
  void write_spline(int64_t i, C* sums) {
    const Problem& p = problem;
    if (p.scaler.data != nullptr) {
      Buffer<C> scale(row_length), scale_gradient(row_length), coef(row_length);
      pack_rows(p.storage, p.scaler, i, 1, 0, p.O, scale.data, row_length);
      __builtin_memset(scale_gradient.data, 0, size_t(row_length) * sizeof(C));
      const bool in_place = is_stored_as<C>(p.storage) && p.coef.stride[2] == 1 && row_length == p.O;
      const Operand matrix = p.scaler_gradient != nullptr ? coef_of_feature(p, i) : Operand{};
      for (int64_t m = 0; m < spline_rows; ++m) {
        C* sum = sums + m * row_length;
        if (p.scaler_gradient != nullptr) {
          if (!in_place) pack_rows(p.storage, matrix, m, 1, 0, p.O, coef.data, row_length);
          add_products_of(sum, in_place ? static_cast<const C*>(matrix.data) + m * matrix.stride[0] : coef.data, row_length,
                          scale_gradient.data);
        }
        for (int64_t o = 0; o < row_length; ++o) sum[o] *= scale[o];
      }
      if (p.scaler_gradient != nullptr)
        write_rows(p.storage, scale_gradient.data, row_length, 1, p.O, p.scaler_gradient, i, 0, p.O);
    }
    if (p.coef_gradient != nullptr && p.coef_gradient != spline_output)
      write_rows(p.storage, sums, row_length, spline_rows, p.O, p.coef_gradient, i * spline_rows, 0, p.O);
  }

  void write_zeros(int64_t i) {
    with_storage(problem.storage, [&](auto tag) {
      using S = decltype(tag);
      const int64_t M = problem.G + problem.K, O = problem.O;
      for (int64_t k = 0; problem.coef_gradient != nullptr && k < M * O; ++k)
        static_cast<S*>(problem.coef_gradient)[i * M * O + k] = narrow<S>(0.0f);
      for (int64_t o = 0; problem.scaler_gradient != nullptr && o < O; ++o)
        static_cast<S*>(problem.scaler_gradient)[i * O + o] = narrow<S>(0.0f);
    });
  }
};
