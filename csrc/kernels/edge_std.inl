// Computes the standard deviation of every edge's function over a batch from the moments of its bases, and its gradients, in
// double. kan_kernels/reference/edge_std.py explains the maths and the layout.
#pragma once

#include "namespace.inl"
#include "simd.inl"
#include "tiling.inl"
#include "packing.inl"
#include "edges_in_memory.inl"
#include "moments.inl"

namespace KAN_NAMESPACE {
namespace {

// The edges of one feature.
class EdgeStd {
  static constexpr int lanes = Simd<double>::lanes;
  const Problem& p;
  const int K;
  const int64_t M, row, width;  // row: K + 4; width: O rounded up to vectors, with zeros beyond O
  const bool has_base;
  EdgeReader<double> edges;
  EdgeWriter<double> writer;
  Buffer<double> c, product, mean, deviation, line;
  const double* moments = nullptr;

 public:
  explicit EdgeStd(const Problem& p_)
      : p(p_), K(p.K), M(p.G + p.K), row(K + 4), width(divide_up(p.O, lanes) * lanes), has_base(p.base_weight.data != nullptr),
        edges(p), writer(p), c((M + 2) * width), product((M + 2) * width), mean(width), deviation(width), line(width) {}

  static int64_t work(const Problem& p) { return (p.G + p.K + 2) * (2 * p.K + 8) * divide_up(p.O, lanes); }

  // Computes the coefficients of feature i minus the mean of their function, their product with the moments, and the standard
  // deviations.
  void read(int64_t i) {
    moments = p.of_moments + i * (M + 2) * row;
    read_coefficients(i);
    double* s = at(c, M + 1);
    __builtin_memset(s, 0, size_t(width) * sizeof(double));
    for (int64_t r = 0; r <= M; ++r) add(s, sum_of(r) / double(p.N), at(c, r));
    for (int64_t r = 0; r < M; ++r) add(at(c, r), -1.0, s);
    for (int64_t o = 0; o < width; ++o) s[o] = -s[o];
    multiply();
    __builtin_memset(mean.data, 0, size_t(width) * sizeof(double));
    for (int64_t r = 0; r < M + 2; ++r) add(mean.data, sum_of(r) / double(p.N), at(c, r));
    measure();
  }

  void write_std(int64_t i) { write_transposed(p.storage, deviation.data, width, p.O, 1, p.edge_std, 0, i, p.I); }

  // Writes the gradients of the sum over the outputs of edge_weight times the standard deviations of feature i.
  void write_gradients(int64_t i) {
    double* share = line.data;
    read_column(p.edge_weight, i, share);
    for (int64_t o = 0; o < width; ++o) share[o] = deviation[o] == 0 ? 0 : share[o] / (deviation[o] * double(p.N - 1));
    if (p.moments != nullptr) write_moments(share, p.moments + i * (M + 2) * row);
    for (int64_t r = 0; r <= M; ++r)  // the mean subtracted from the coefficients cancels, so it is treated as constant
      for (int64_t o = 0; o < width; ++o) at(product, r)[o] = share[o] * (at(product, r)[o] - mean[o] * sum_of(r));
    writer.write(i, 1, 0, p.O, M, product.data, width);
  }

 private:
  double* at(const Buffer<double>& rows, int64_t r) const { return rows.data + r * width; }
  double sum_of(int64_t r) const { return moments[r * row + K + 3]; }

  void add(double* __restrict to, double factor, const double* __restrict from) const {
    for (int64_t o = 0; o < width; ++o) to[o] += factor * from[o];
  }

  // Copies column i of an (O, I) matrix to to[o].
  void read_column(const Operand& matrix, int64_t i, double* to) const {
    read_transposed(p.storage, matrix, 0, p.O, width, i, 1, to, width);
  }

  void read_coefficients(int64_t i) {
    if (has_base)
      read_column(p.base_weight, i, at(c, M));
    else
      __builtin_memset(at(c, M), 0, size_t(width) * sizeof(double));
    if (p.spline_scaler.data != nullptr) read_column(p.spline_scaler, i, line.data);
    with_record_width<double>(M, [&](auto record) {
      for (int64_t o = 0; o < width; o += lanes) {
        edges.open(o, i, 1);
        const V<double> factor = p.spline_scaler.data != nullptr ? load(&line[o]) : broadcast(1.0);
        const Index<double> exists = first_lanes<double>(p.O - o);
        read_edges<double, decltype(record)::value>(edges.edges.of_output, 0, M, [&](int64_t m, V<double> row) {
          store<double>(at(c, m) + o, (V<double>)((Index<double>)(row * factor) & exists));
        });
      }
    });
  }

  // Computes product = moments c. The moments are a band of K+1 diagonals with the columns of the base activation and of e as a
  // border.
  void multiply() {
    for (int64_t r = 0; r < M + 2; ++r)
      for (int64_t o = 0; o < width; ++o) at(product, r)[o] = moments[r * row] * at(c, r)[o];
    for (int64_t r = 0; r <= M; ++r) {
      for (int64_t d = 1; r < M && d <= smaller(K, M - 1 - r); ++d) add_both(moments[r * row + d], r, r + d);
      if (has_base && r < M) add_both(moments[r * row + K + 1], r, M);
      if (has_base || r < M) add_both(moments[r * row + K + 2], r, M + 1);
    }
  }
  void add_both(double moment, int64_t r, int64_t q) {
    add(at(product, r), moment, at(c, q));
    add(at(product, q), moment, at(c, r));
  }

  // Computes the standard deviations. A value that is only the rounding error of terms that cancel becomes 0.
  void measure() {
    const double eps = 0x1p-52, rows = double(p.N), rounding = (8 + __builtin_sqrt(rows) / 2) * eps;
    for (int64_t o = 0; o < width; ++o) {
      double squares = 0, sizes = 0;
      for (int64_t r = 0; r < M + 2; ++r) {
        const double value = at(c, r)[o];
        squares += value * at(product, r)[o];
        sizes += moments[r * row] * value * value;
      }
      const double variance = (squares - rows * mean[o] * mean[o]) / (rows - 1);
      const double of_mean = 16 * eps * at(c, M + 1)[o];
      const bool vanishes = variance <= (K + 1) * rounding / (rows - 1) * sizes + of_mean * of_mean;
      deviation[o] = vanishes ? 0 : __builtin_sqrt(variance);
    }
  }

  double dot(const double* a, const double* b, const double* share) const {
    V<double> sum = {};
    for (int64_t o = 0; o < width; o += lanes) sum += load(a + o) * load(b + o) * load(share + o);
    return sum_lanes<double>(sum);
  }

  void write_moments(const double* share, double* to) const {
    __builtin_memset(to, 0, size_t((M + 2) * row) * sizeof(double));
    for (int64_t r = 0; r < M + 2; ++r) {
      const double* own = at(c, r);
      to[r * row] = dot(own, own, share) / 2;
      to[r * row + K + 3] = -dot(own, mean.data, share);
      for (int64_t d = 1; r < M && d <= smaller(K, M - 1 - r); ++d) to[r * row + d] = dot(own, at(c, r + d), share);
      if (r < M) to[r * row + K + 1] = dot(own, at(c, M), share);
      if (r <= M) to[r * row + K + 2] = dot(own, at(c, M + 1), share);
    }
  }
};

void edge_std(const Problem& p, ParallelFor parallel_for) {
  run_parallel(parallel_for, p.I, EdgeStd::work(p), [&](int64_t begin, int64_t end) {
    EdgeStd feature(p);
    for (int64_t i = begin; i < end; ++i) {
      feature.read(i);
      if (p.edge_std != nullptr)
        feature.write_std(i);
      else
        feature.write_gradients(i);
    }
  });
}

}  // namespace
}  // namespace KAN_NAMESPACE
