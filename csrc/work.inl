// How a problem is cut: blocks of rows, chunks of features, tiles of outputs. Included by kernels.inl inside its namespace.

constexpr int kSubBlock = 64;  // rows evaluated together
constexpr int kRowMultiple = 16;  // blocks are padded to it: a multiple of every vector length and of every Q

inline int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t at_least_one(int64_t n) { return n > 1 ? n : 1; }
inline int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// Runs body(begin, end) over [0, count). `work` is an item's cost in vector operations: waking a thread costs some
// 10 microseconds, so each one gets at least 32768 of them.
template <class F>
void run_parallel(ParallelFor parallel_for, int64_t count, int64_t work, const F& body) {
  parallel_for(
      count, at_least_one(32768 / at_least_one(work)),
      [](int64_t begin, int64_t end, void* f) { (*static_cast<const F*>(f))(begin, end); }, (void*)&body);
}

template <int Value>
struct Constant {
  static constexpr int value = Value;
};

// Calls f with the number of live rows as a Constant where there is a specialisation, Constant<-1> elsewhere.
template <class F>
void with_live_rows(int live, F f) {
  switch (live) {
    case 0: return f(Constant<0>{});
    case 2: return f(Constant<2>{});
    case 3: return f(Constant<3>{});
    case 4: return f(Constant<4>{});
    case 5: return f(Constant<5>{});
    case 6: return f(Constant<6>{});
    default: return f(Constant<-1>{});
  }
}

// Outputs first .. first + vectors * lanes, one register tile.
struct Tile {
  int64_t first;
  int vectors;
};

// The tiles that cover `vectors` vectors: as many of the widest as fit, then 4, 2, 1.
inline Tile next_tile(int64_t done, int64_t vectors, int widest, int lanes) {
  int width = widest;
  while (width > vectors - done) width /= 2;
  return {done * lanes, width};
}

// A problem with its knots prepared and its sizes rounded to vectors.
template <class C>
struct Layer {
  static constexpr int lanes = Simd<C>::lanes;
  const Problem& problem;
  KnotTables<C> tables;
  BaseActivation<C> activation;
  int live;
  int64_t spline_rows;  // coefficient rows per feature that can be touched: M, or 0 when the spline part vanishes
  int64_t vectors, padded_outputs;

  Layer(const Problem& p, ParallelFor parallel_for)
      : problem(p), tables(p), activation(p.activation, p.derivative), live(tables.live),
        spline_rows(live > 0 ? p.G + p.K : 0), vectors(divide_up(p.O, lanes)), padded_outputs(vectors * lanes) {
    if (live == 0) return;
    run_parallel(parallel_for, p.I, tables.intervals, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) tables.read_knots(p, i);
    });
    tables.share_tables();
    run_parallel(parallel_for, p.I, tables.intervals * (p.K + 1) * 8, [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) tables.tabulate(i);
    });
  }

  // Rows of a block, contracted in sub-blocks of kSubBlock. Large grids want many, to reuse a feature's coefficients while they
  // are in L1; small batches few, so that there are blocks for several threads.
  int64_t block_rows() const {
    if (problem.G > 32 && problem.N >= 2048) return 4 * kSubBlock;
    int64_t rows = kSubBlock;
    while (rows > kRowMultiple && problem.N < 8 * rows) rows /= 2;
    return rows;
  }

  // Vector operations of one row with one feature: the evaluation and the contraction.
  int64_t work_per_input() const { return 16 + (live + 1) * vectors; }

  // Features evaluated together: their coefficients of one tile and their values share L1.
  int64_t chunk_features(int tile_vectors) const {
    const int64_t coef_bytes = (spline_rows + 1) * tile_vectors * KAN_VECTOR_BYTES;
    const int64_t value_bytes = (live + 2) * kSubBlock * int64_t(sizeof(C));
    return smaller(problem.I, at_least_one(smaller(24576 / coef_bytes, 20480 / value_bytes)));
  }
};

constexpr int kWidestTile = 8;  // vectors; 8 sums of one row or 2 rows x 4 fill the pipeline and leave registers free

// Calls f(tile) for the tiles that cover a row.
template <class C, class F>
void for_each_tile(const Layer<C>& layer, int widest, F f) {
  for (int64_t done = 0; done < layer.vectors;) {
    const Tile tile = next_tile(done, layer.vectors, widest, Layer<C>::lanes);
    f(tile);
    done += tile.vectors;
  }
}
