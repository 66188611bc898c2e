// The gradients of the coefficients while they are summed, and what is made of the sums. Included by kernels.inl inside its namespace.

template <class C>
void add_products_of(const C* __restrict a, const C* __restrict b, int64_t count, C* __restrict sums) {
  for (int64_t k = 0; k < count; ++k) sums[k] += a[k] * b[k];
}

// Every feature has M rows of spline sums and one of the base activation's, for each of some splits of the rows, which are
// added in order. The first split's stand in the output where that has their layout.
template <class C>
struct CoefSums {
  const Problem& problem;
  const bool wanted;
  const int64_t spline_rows, row_length, splits;
  const bool spreads_nan;
  C *first_spline, *first_base;
  Buffer<C> spline_memory, base_memory;
  Buffer<uint8_t> finite;

  CoefSums(const Layer<C>& layer, int64_t splits_)
      : problem(layer.problem),
        wanted(problem.coef_gradient != nullptr || problem.scaler_gradient != nullptr || problem.base_gradient != nullptr),
        spline_rows(layer.spline_rows), row_length(layer.padded_outputs), splits(splits_),
        spreads_nan(layer.live > 0 && layer.tables.degree > 0), first_spline(in_output(problem.coef_gradient)),
        first_base(in_output(problem.base_gradient)), finite(wanted ? splits * problem.I : 0) {
    if (!wanted) return;
    allocate(spline_memory, first_spline, problem.I * spline_rows * row_length);
    allocate(base_memory, first_base, problem.I * row_length);
  }

  C* spline(int64_t split, int64_t i) {
    return (split == 0 ? first_spline : &spline_memory[(split - 1) * problem.I * spline_rows * row_length]) + i * spline_rows * row_length;
  }
  C* base(int64_t split, int64_t i) {
    return (split == 0 ? first_base : &base_memory[(split - 1) * problem.I * row_length]) + i * row_length;
  }

  void clear(int64_t split, int64_t i0, int64_t features) {
    if (!wanted) return;
    __builtin_memset(spline(split, i0), 0, size_t(features * spline_rows * row_length) * sizeof(C));
    __builtin_memset(base(split, i0), 0, size_t(features * row_length) * sizeof(C));
    for (int64_t i = i0; i < i0 + features; ++i) finite[split * problem.I + i] = 1;
  }

  void note_finite(int64_t split, int64_t i, bool is_finite) { finite[split * problem.I + i] &= is_finite; }

  // Adds the splits and writes what the caller asked for.
  void write(ParallelFor parallel_for) {
    if (!wanted) return;
    run_parallel(parallel_for, problem.I, splits * (spline_rows + 1) * row_length / 4, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) write_feature(i);
    });
  }

 private:
  // Null where the output's layout differs from the sums'.
  C* in_output(void* gradient) const {
    return is_stored_as<C>(problem.storage) && row_length == problem.O && spline_rows > 0 ? static_cast<C*>(gradient) : nullptr;
  }

  // Room for all splits, or for all but the first.
  void allocate(Buffer<C>& memory, C*& first, int64_t size) {
    if (first != nullptr) {
      if (splits > 1) memory.allocate((splits - 1) * size);
      return;
    }
    memory.allocate(splits * size);
    first = &memory[(splits - 1) * size];
  }

  void write_feature(int64_t i) {
    const Problem& p = problem;
    C *sums = spline(0, i), *base_sums = base(0, i);
    bool all_finite = finite[i] != 0;
    for (int64_t split = 1; split < splits; ++split) {
      const C *more = spline(split, i), *more_base = base(split, i);
      for (int64_t k = 0; k < spline_rows * row_length; ++k) sums[k] += more[k];
      for (int64_t k = 0; k < row_length; ++k) base_sums[k] += more_base[k];
      all_finite &= finite[split * p.I + i] != 0;
    }
    // Every basis of the dense formula is NaN where x is not finite, not only the rows read here.
    if (spreads_nan && !all_finite)
      for (int64_t k = 0; k < spline_rows * row_length; ++k) sums[k] = C(__builtin_nan(""));
    if (spline_rows == 0)
      write_zeros(i);
    else
      write_spline(i, sums);
    if (p.base_gradient != nullptr && p.base_gradient != first_base)
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
    if (p.coef_gradient != nullptr && p.coef_gradient != first_spline)
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
