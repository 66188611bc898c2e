// A batch of few rows: vectors run over the features, nothing is prepared, and only the coefficients that the inputs touch are
// read. Included by kernels.inl inside its namespace.

constexpr int64_t kFewRowsWait = 2;  // times as long as its vector operations: the coefficients come from L2 or L3
constexpr int64_t kFewRows = 4;  // the tables of the other way pay for themselves from 4 rows on at 64 -> 64, from 6 at 256 -> 256

// One row's inputs to as many features as there are lanes.
template <class C>
struct FeatureEvaluation {
  static constexpr int lanes = Simd<C>::lanes;
  const Layer<C>& layer;
  const int K, intervals;
  Buffer<C> x, w, knots;     // knots: (K + J + 1 + K, lanes), K continued beyond either end
  Buffer<C> near, basis;     // as vectors of the features
  Buffer<C> shifted;         // (3K + 1, lanes): live values by coefficient row, counted from K before the first row
  Buffer<C> values;          // (K + 2, lanes): live values, then the base activation's
  int32_t first_rows[lanes];

  explicit FeatureEvaluation(const Layer<C>& layer_)
      : layer(layer_), K(layer.problem.K), intervals(layer.tables.intervals), x(lanes), w(lanes),
        knots((intervals + 1 + 2 * K) * lanes), near((2 * K + 1) * lanes), basis((K + 1) * lanes), shifted((3 * K + 1) * lanes),
        values((K + 2) * lanes) {}

  // Features i0 .. i0 + features of row n.
  void evaluate(int64_t n, int64_t i0, int64_t features) {
    const Problem& p = layer.problem;
    pack_rows(p.storage, p.x, n, 1, i0, features, x.data, lanes);
    if (p.w.data != nullptr) pack_rows(p.storage, p.w, n, 1, i0, features, w.data, lanes);
    if (layer.live > 0) evaluate_spline(i0, features);
    const V<C> base = layer.has_base() ? layer.activation(load(x.data)) : V<C>{};
    store<C>(&values[layer.live * lanes], base);
    for (int k = 0; p.w.data != nullptr && k <= layer.live; ++k)
      store<C>(&values[k * lanes], load(&values[k * lanes]) * load(w.data));
  }

 private:
  void evaluate_spline(int64_t i0, int64_t features) {
    using Int = typename Simd<C>::Int;
    const Problem& p = layer.problem;
    C* inner = &knots[K * lanes];
    read_transposed(p.grid_storage, p.grid, i0, features, lanes, 0, intervals + 1, inner, lanes);
    const V<C> points = load(x.data), first = load(inner), last = load(inner + intervals * lanes), range = last - first;
    for (int m = 1; m <= K; ++m) {
      store<C>(inner - m * lanes, first - C(m) * range);
      store<C>(inner + (intervals + m) * lanes, last + C(m) * range);
    }
    Index<C> reached = {};  // how many knots x has reached
    for (int m = 0; m <= intervals; ++m) reached -= (Index<C>)(points >= load(inner + m * lanes));
    const Index<C> inside = (reached > Index<C>{}) & (reached <= Index<C>{} + Int(intervals));
    const Index<C> j = inside ? reached - Int(1) : Index<C>{};

    Index<C> lane;
    for (int l = 0; l < lanes; ++l) lane[l] = l;
    V<C>* near_knots = reinterpret_cast<V<C>*>(near.data);
    V<C>* live = reinterpret_cast<V<C>*>(basis.data);
    for (int r = 0; r < 2 * K; ++r) near_knots[r] = lookup<C, 0>(knots.data, (j + Int(1 + r)) * Int(lanes) + lane);
    general_values<C>(K, p.derivative, near_knots, points, live);

    const V<C> outside = K > 0 && p.derivative < K ? (points - points) * C(0) : V<C>{};  // NaN where x is not finite
    const Index<C> row = first_row_of<C>(j, K, int(p.G)), shift = j - Int(K) - row;
    store_index(first_rows, row);
    if (any_lane<C>(shift)) {
      for (int k = 0; k <= 3 * K; ++k) store<C>(&shifted[k * lanes], V<C>{});
      for (int r = 0; r <= K; ++r)
        for (int l = 0; l < lanes; ++l) shifted[(K + r + int(shift[l])) * lanes + l] = live[r][l];
      for (int k = 0; k <= K; ++k) live[k] = load(&shifted[(K + k) * lanes]);
    }
    for (int k = 0; k <= K; ++k) store<C>(&values[k * lanes], inside ? live[k] : outside);
  }
};

// Sums over a range of features for one row of the batch.
template <class C>
struct FewRowsWorker {
  static constexpr int lanes = Simd<C>::lanes;
  const Layer<C>& layer;
  const bool in_place;
  FeatureEvaluation<C> inputs;
  Buffer<C> part, packed;

  FewRowsWorker(const Layer<C>& layer_, bool in_place_)
      : layer(layer_), in_place(in_place_), inputs(layer), part(layer.padded_outputs),
        packed(in_place ? 0 : (layer.live + 2) * layer.padded_outputs) {}

  void add_features(int64_t n, int64_t, int64_t first_feature, int64_t end_feature, C* sums) {
    __builtin_memset(sums, 0, size_t(layer.padded_outputs) * sizeof(C));
    for (int64_t i0 = first_feature; i0 < end_feature; i0 += lanes) {
      const int64_t features = smaller(lanes, end_feature - i0);
      __builtin_memset(part.data, 0, size_t(layer.padded_outputs) * sizeof(C));
      inputs.evaluate(n, i0, features);
      with_live_rows(layer.live, [&](auto live) {
        for (int64_t f = 0; f < features; ++f) {
          if (in_place && f + 1 < features) prefetch_rows(i0 + f + 1, inputs.first_rows[f + 1]);
          add_feature<decltype(live)::value>(i0 + f, int(f));
        }
      });
      add_to(sums, part.data, layer.padded_outputs);
    }
  }

 private:
  template <int LIVE>
  void add_feature(int64_t i, int lane) {
    const CoefTile<C> coef =
        in_place ? coefficients_in_place<C>(layer.problem, i, 0) : packed_live_rows(i, inputs.first_rows[lane]);
    const int32_t row = in_place ? inputs.first_rows[lane] : 0;
    for (int64_t t = 0; t < layer.tiles; ++t) {
      const Tile tile = layer.tile(t);
      const auto at = [&](const void* start) { return start == nullptr ? nullptr : static_cast<const C*>(start) + tile.first; };
      const CoefTile<C> own = {at(coef.rows), coef.row_stride, at(coef.base), at(coef.scale), coef.storage};
      const Inputs<C, lanes> input = {&inputs.values[lane], &row, 1, layer.live, {}, nullptr, 0, false, ValueSum::unknown};
      with_width<widest_tile<LIVE>()>(tile.vectors, [&](auto width) {
        constexpr int R = decltype(width)::value;
        if constexpr (LIVE < 0)
          forward_tile_general(input, own, &part[tile.first], lanes);
        else if (own.scale == nullptr)
          forward_tile_unsorted<C, LIVE, R, false>(input, own, &part[tile.first], 0);
        else
          forward_tile_unsorted<C, LIVE, R, true>(input, own, &part[tile.first], 0);
      });
    }
  }

  // The next feature's rows stand elsewhere: fetched ahead, a layer beyond L2 takes a tenth less.
  void prefetch_rows(int64_t i, int first_row) const {
    const CoefTile<C> coef = coefficients_in_place<C>(layer.problem, i, 0);
    for (int64_t o = 0; o < layer.padded_outputs; o += 64 / int64_t(sizeof(C))) {
      for (int k = 0; k < layer.live; ++k) __builtin_prefetch(coef.row(first_row + k) + o);
      if (coef.base != nullptr) __builtin_prefetch(static_cast<const C*>(coef.base) + o);
      if (coef.scale != nullptr) __builtin_prefetch(static_cast<const C*>(coef.scale) + o);
    }
  }

  CoefTile<C> packed_live_rows(int64_t i, int first_row) {
    const Problem& p = layer.problem;
    const int64_t width = layer.padded_outputs;
    C *base = &packed[layer.live * width], *scale = base + width;
    if (layer.live > 0) pack_rows(p.storage, coef_of_feature(p, i), first_row, layer.live, 0, p.O, packed.data, width);
    if (p.base_weight.data != nullptr) pack_rows(p.storage, p.base_weight, i, 1, 0, p.O, base, width);
    if (p.scaler.data != nullptr) pack_rows(p.storage, p.scaler, i, 1, 0, p.O, scale, width);
    return {packed.data, width, p.base_weight.data != nullptr ? base : nullptr, p.scaler.data != nullptr ? scale : nullptr,
            storage_of<C>()};
  }
};
