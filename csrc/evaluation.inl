// The inputs of a chunk of features, read, evaluated and sorted. Included by kernels.inl inside its namespace.

// At most STRIDE rows of a chunk of features, transposed to (feature, row), of which a group is evaluated at a time.
template <class C, int STRIDE>
struct EvaluationScratch {
  const Layer<C>& layer;
  const int live;
  const bool with_slopes, sorts;
  Buffer<C> x, w, values, slopes;
  Buffer<uint8_t> interior;  // of a feature's evaluation: every input has K+1 bases
  RunScratch<STRIDE> sorted;
  int64_t first_feature = 0;
  int row_count = 0, padded = 0;

  EvaluationScratch(const Layer<C>& layer_, int64_t chunk, int64_t group, bool with_slopes_, bool sorts_)
      : layer(layer_), live(layer.live), with_slopes(with_slopes_), sorts(sorts_), x(chunk * STRIDE),
        w(layer.problem.w.data == nullptr ? 0 : chunk * STRIDE), values(group * (live + 1) * STRIDE),
        slopes(with_slopes ? group * (live + 1) * STRIDE : 0), interior(group), sorted(group, layer.buckets()) {}

  void read(int64_t first_row, int64_t rows, int64_t first_feature_, int64_t features) {
    first_feature = first_feature_;
    row_count = int(rows);
    padded = int(divide_up(rows, Simd<C>::lanes) * Simd<C>::lanes);
    const Problem& p = layer.problem;
    read_transposed(p.storage, p.x, first_row, row_count, padded, first_feature, features, x.data, STRIDE);
    if (p.w.data != nullptr) read_transposed(p.storage, p.w, first_row, row_count, padded, first_feature, features, w.data, STRIDE);
  }

  // Evaluates and, if asked to, sorts the features from..from + features of those read.
  void evaluate(int64_t from, int64_t features) {
    for (int64_t f = 0; f < features; ++f) {
      const int64_t own = f * (live + 1) * STRIDE;
      const Evaluation<C> e = {&x[(from + f) * STRIDE], layer.problem.w.data != nullptr ? &w[(from + f) * STRIDE] : nullptr,
                               padded, &values[own], with_slopes ? &slopes[own] : nullptr, STRIDE, sorted.keys(f)};
      interior[f] = evaluate_spline(first_feature + from + f, e);
      evaluate_base(e);
    }
    if (sorts) sorted.sort(features, row_count);
  }

  // Feature f of those evaluated last: the values of order n. A derivative's sum, 0, is that of large terms and is not made use of.
  Inputs<C, STRIDE> inputs(int64_t f) const {
    const bool sum_to_one = layer.problem.derivative == 0 && layer.problem.w.data == nullptr;
    return inputs_of(values.data, f, sum_to_one ? ValueSum::one : ValueSum::unknown);
  }

  // What the gradient with respect to the inputs takes: the slopes if they were evaluated, else the values.
  Inputs<C, STRIDE> input_gradient_inputs(int64_t f) const {
    if (with_slopes) return inputs_of(slopes.data, f, ValueSum::zero);
    return layer.problem.derivative > 0 ? inputs_of(values.data, f, ValueSum::zero) : inputs(f);
  }

  bool is_finite(int64_t feature) const {
    Index<C> bad = {};
    for (int b = 0; b < padded; b += Simd<C>::lanes) {
      const V<C> points = load(&x[feature * STRIDE + b]);
      bad |= (Index<C>)(points - points != V<C>{});
    }
    return !any_lane<C>(bad);
  }

 private:
  Inputs<C, STRIDE> inputs_of(const C* v, int64_t f, ValueSum value_sum) const {
    return {v + f * (live + 1) * STRIDE, sorted.keys(f), row_count, live, sorted.runs(f), layer.buckets() - 1, interior[f] != 0, value_sum};
  }

  void evaluate_base(const Evaluation<C> e) const {
    const bool has_base = layer.has_base();
    const BaseActivation<C>&activation = layer.activation, &next_activation = layer.next_activation;
    for (int b = 0; b < e.count; b += Simd<C>::lanes) {
      V<C> value = {}, slope = {};
      if (has_base && e.slopes != nullptr)
        activation(load(e.x + b), next_activation, value, slope);
      else if (has_base)
        value = activation(load(e.x + b));
      if (e.w != nullptr && has_base) {
        value *= load(e.w + b);
        slope *= load(e.w + b);
      }
      store<C>(e.values + live * STRIDE + b, value);
      if (e.slopes != nullptr) store<C>(e.slopes + live * STRIDE + b, slope);
    }
  }

  bool evaluate_spline(int64_t feature, const Evaluation<C>& e) const {
    if (live == 0) {
      for (int b = 0; b < padded; ++b) e.rows[b] = 0;
      return true;
    }
    const KnotTables<C>& tables = layer.tables;
    const int64_t i = tables.table_of[feature];
    switch (tables.specialised() ? tables.K : 0) {
#define KAN_EVALUATE(K) \
  case K: return evaluate_specialised<C, K>(tables, i, e)
      KAN_EVALUATE(1);
      KAN_EVALUATE(2);
      KAN_EVALUATE(3);
      KAN_EVALUATE(4);
      KAN_EVALUATE(5);
#undef KAN_EVALUATE
      default: return evaluate_general(tables, i, e);
    }
  }
};
