// The inputs of a chunk of features, read and evaluated. Included by kernels.inl inside its namespace.

// Inputs of a chunk of features, transposed to (feature, row), and their evaluation; at most STRIDE rows.
template <class C, int STRIDE>
struct EvaluationScratch {
  const Layer<C>& layer;
  const int live;
  Buffer<C> x, w, values;
  Buffer<int32_t> rows;
  int64_t first_feature = 0;
  int count = 0;  // of rows, padded

  // Reads `read_features` at a time and keeps the evaluation of `evaluated_features`.
  EvaluationScratch(const Layer<C>& layer_, int64_t read_features, int64_t evaluated_features)
      : layer(layer_), live(layer.live), x(read_features * STRIDE), w(read_features * STRIDE),
        values(evaluated_features * (live + 1) * STRIDE), rows(evaluated_features * STRIDE) {}

  void read(int64_t first_row, int64_t row_count, int64_t first_feature_, int64_t features) {
    first_feature = first_feature_;
    count = int(divide_up(row_count, kRowMultiple) * kRowMultiple);
    read_operand(layer.problem.x, x, first_row, row_count, features);
    if (layer.problem.w.data != nullptr) read_operand(layer.problem.w, w, first_row, row_count, features);
  }

  // The evaluation of the features from..from + features of those read.
  Evaluated<C, STRIDE> evaluate(int64_t from, int64_t features) {
    for (int64_t f = 0; f < features; ++f) {
      const C* points = &x[(from + f) * STRIDE];
      const C* weights = layer.problem.w.data != nullptr ? &w[(from + f) * STRIDE] : nullptr;
      C* destination = &values[f * (live + 1) * STRIDE];
      evaluate_spline(layer.tables, layer.tables.table_of[first_feature + from + f], points, weights, destination, &rows[f * STRIDE]);
      C* base = destination + live * STRIDE;
      for (int b = 0; b < count; b += Simd<C>::lanes) {
        const V<C> value = layer.activation(load(points + b));
        store<C>(base + b, weights != nullptr ? value * load(weights + b) : value);
      }
    }
    return {values.data, rows.data, int(features), live};
  }

  bool is_finite(int64_t feature) const {
    Index<C> bad = {};
    for (int b = 0; b < count; b += Simd<C>::lanes) {
      const V<C> points = load(&x[feature * STRIDE + b]);
      bad |= (Index<C>)(points - points != V<C>{});
    }
    bool finite = true;
    for (int lane = 0; lane < Simd<C>::lanes; ++lane) finite &= bad[lane] == 0;
    return finite;
  }

 private:
  // Row b of feature f is element (first_row + b, first_feature + f); padding is 0.
  void read_operand(const Operand& source, Buffer<C>& destination, int64_t first_row, int64_t row_count, int64_t features) {
    with_storage(layer.problem.storage, [&](auto tag) {
      const auto* from = static_cast<const decltype(tag)*>(source.data) + first_feature * source.stride[1];
      for (int64_t b = 0; b < row_count; ++b)
        for (int64_t f = 0; f < features; ++f)
          destination[f * STRIDE + b] = widen<C>(from[(first_row + b) * source.stride[0] + f * source.stride[1]]);
    });
    for (int64_t f = 0; f < features; ++f)
      for (int64_t b = row_count; b < count; ++b) destination[f * STRIDE + b] = C(0);
  }

  void evaluate_spline(const KnotTables<C>& tables, int64_t i, const C* points, const C* weights, C* destination,
                       int32_t* row) {
    if (live == 0) {
      for (int b = 0; b < count; ++b) row[b] = 0;
      return;
    }
    switch (tables.specialised() ? tables.K : 0) {
#define KAN_EVALUATE(K) \
  case K: return evaluate_specialised<C, K>(tables, i, points, weights, count, destination, STRIDE, row)
      KAN_EVALUATE(1);
      KAN_EVALUATE(2);
      KAN_EVALUATE(3);
      KAN_EVALUATE(4);
      KAN_EVALUATE(5);
#undef KAN_EVALUATE
      default: return evaluate_general(tables, i, points, weights, count, destination, STRIDE, row);
    }
  }
};
