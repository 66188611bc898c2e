// Reads, evaluates and sorts the inputs of a chunk of features.
#pragma once

#include "namespace.inl"
#include "simd.inl"
#include "activation.inl"
#include "knot_tables.inl"
#include "basis.inl"
#include "row_sort.inl"
#include "contract.inl"
#include "tiling.inl"
#include "packing.inl"

namespace KAN_NAMESPACE {
namespace {

constexpr int kWorthwhileRun = 4;  // from this many inputs per interval on, they are evaluated together (row grid-100)

// The rows of a block for a chunk of features, transposed to (feature, row). A group of features is evaluated at a time.
template <class C>
struct EvaluationScratch {
  const TiledLayer<C>& layer;
  const int live;
  const int room;           // entries per feature
  const bool with_slopes, sorts;
  // True for fine grids, whose tables do not fit registers. The inputs are then sorted by interval first, so that a run shares the
  // coefficients of its interval. The values of the splines are stored in sorted order, which the loops for few outputs cannot
  // read.
  const bool by_run;
  Buffer<C> x, w, values, slopes;
  Buffer<C> sorted_x, sorted_w;
  Buffer<int32_t> in_order;  // 0, 1, 2, ...
  Buffer<uint8_t> interior;  // per feature of the group: whether every input has K+1 bases
  RunScratch sorted;
  int64_t first_feature = 0;
  int row_count = 0, padded = 0;

  EvaluationScratch(const TiledLayer<C>& layer_, int64_t block, int64_t chunk, int64_t group, bool with_slopes_, bool sorts_)
      : layer(layer_), live(layer.live), room(feature_room(block)), with_slopes(with_slopes_), sorts(sorts_),
        by_run(sorts && layer.tables.specialised() && layer.tables.row_vectors == 0 && layer.few_outputs_table_vectors() == 0 &&
               layer.tables.intervals <= room / kWorthwhileRun),
        x(chunk * room), w(w_size(chunk * room)), values(values_before(group + kValueStride / room - 1)),
        slopes(with_slopes ? values_before(group + kValueStride / room - 1) : 0), sorted_x(by_run ? room + Simd<C>::lanes : 0),
        sorted_w(by_run ? w_size(room + Simd<C>::lanes) : 0), in_order(by_run ? room : 0), interior(group),
        sorted(room, group, by_run ? layer.tables.intervals + 1 : layer.buckets()) {
    for (int b = 0; by_run && b < room; ++b) in_order[b] = b;
  }

  void read(int64_t first_row, int64_t rows, int64_t first_feature_, int64_t features) {
    first_feature = first_feature_;
    row_count = int(rows);
    padded = int(divide_up(rows, Simd<C>::lanes) * Simd<C>::lanes);
    const Problem& p = layer.problem;
    read_transposed(p.storage, p.x, first_row, row_count, padded, first_feature, features, x.data, room);
    if (p.w.data != nullptr) read_transposed(p.storage, p.w, first_row, row_count, padded, first_feature, features, w.data, room);
  }

  // Evaluates features from .. from + features - 1 of those read, and sorts them if `sorts`.
  void evaluate(int64_t from, int64_t features) {
    for (int64_t f = 0; f < features; ++f) {
      const Evaluation<C> e = evaluation(f, &x[(from + f) * room], &w[(from + f) * room]);
      if (by_run)
        layer.tables.find_intervals(first_feature + from + f, e.x, padded, e.rows);
      else
        interior[f] = evaluate_spline(first_feature + from + f, e);
      evaluate_base(e);
    }
    if (sorts) sorted.sort(features, row_count);
    for (int64_t f = 0; by_run && f < features; ++f) evaluate_sorted(from + f, f);
  }

  // Returns the values of feature f of those evaluated last. The values of a derivative sum to 0, but this sum of large terms is
  // not used.
  Inputs<C> inputs(int64_t f) const {
    const bool sum_to_one = layer.problem.derivative == 0 && layer.problem.w.data == nullptr;
    return inputs_of(values.data, f, sum_to_one ? ValueSum::one : ValueSum::unknown);
  }

  // Returns the inputs of the gradient with respect to x: the slopes if they were evaluated, else the values.
  Inputs<C> input_gradient_inputs(int64_t f) const {
    if (with_slopes) return inputs_of(slopes.data, f, ValueSum::zero);
    return layer.problem.derivative > 0 ? inputs_of(values.data, f, ValueSum::zero) : inputs(f);
  }

  // Returns the inputs of feature f of those evaluated last for other values in the same layout, which begin at v.
  Inputs<C> inputs_of(const C* v, int64_t f, ValueSum value_sum) const {
    const Runs runs = sorted.runs(f);
    return {v + values_before(f), sorted.keys(f), row_count, live, runs, by_run ? in_order.data : runs.order,
            layer.buckets() - 1, interior[f] != 0, value_sum};
  }

  bool is_finite(int64_t feature) const {
    Index<C> bad = {};
    for (int b = 0; b < padded; b += Simd<C>::lanes) bad |= non_finite<C>(load(&x[feature * room + b]));
    return !any_lane<C>(bad);
  }

 private:
  // Returns the offset of the values of feature f of a group.
  int64_t values_before(int64_t f) const {
    const int64_t sharing = kValueStride / room;
    return f / sharing * (live + 1) * kValueStride + f % sharing * room;
  }
  int64_t w_size(int64_t size) const { return layer.problem.w.data == nullptr ? 0 : size; }

  Evaluation<C> evaluation(int64_t f, const C* points, const C* weights) {
    const int64_t own = values_before(f);
    return {points, layer.problem.w.data != nullptr ? weights : nullptr, padded, &values[own], with_slopes ? &slopes[own] : nullptr,
            kValueStride, sorted.keys(f)};
  }

  // Evaluates sorted feature f of the group, which is feature `read` of those read. Replaces the keys of its runs, which are
  // intervals, by first rows.
  void evaluate_sorted(int64_t read, int64_t f) {
    const KnotTables<C>& tables = layer.tables;
    const Runs runs = sorted.runs(f);
    for (int position = 0; position < row_count; ++position) sorted_x[position] = x[read * room + runs.order[position]];
    for (int position = 0; layer.problem.w.data != nullptr && position < row_count; ++position)
      sorted_w[position] = w[read * room + runs.order[position]];
    const Evaluation<C> e = evaluation(f, sorted_x.data, sorted_w.data);
    tables.with_specialisation([&](auto degree) {
      evaluate_runs<C, decltype(degree)::value>(tables, tables.table_of[first_feature + read], e, runs.first, runs.start, runs.count);
    });
    interior[f] = runs.count > 0 && tables.is_interior(runs.first[0]) && tables.is_interior(runs.first[runs.count - 1]);
    for (int run = 0; run < runs.count; ++run) runs.first[run] = tables.first_row(runs.first[run]);
  }

  void evaluate_base(const Evaluation<C> e) const {
    constexpr int lanes = Simd<C>::lanes;
    C *const values = e.values + live * kValueStride, *const slopes = e.slopes == nullptr ? nullptr : e.slopes + live * kValueStride;
    if (!layer.has_base()) {
      __builtin_memset(values, 0, size_t(e.count) * sizeof(C));
      if (slopes != nullptr) __builtin_memset(slopes, 0, size_t(e.count) * sizeof(C));
      return;
    }
    if (slopes == nullptr)
      layer.activation.with_value([=](auto value_at) __attribute__((always_inline)) {
        for (int b = 0; b < e.count; b += lanes) store<C>(values + b, value_at(load(e.x + b)));
      });
    else
      layer.activation.with_value_and_slope(layer.next_activation, [=](auto evaluate_at) __attribute__((always_inline)) {
        for (int b = 0; b < e.count; b += lanes) {
          V<C> value, slope;
          evaluate_at(load(e.x + b), value, slope);
          store<C>(values + b, value);
          store<C>(slopes + b, slope);
        }
      });
    for (int b = 0; e.w != nullptr && b < e.count; b += lanes) {
      store<C>(values + b, load(values + b) * load(e.w + b));
      if (slopes != nullptr) store<C>(slopes + b, load(slopes + b) * load(e.w + b));
    }
  }

  bool evaluate_spline(int64_t feature, const Evaluation<C>& e) const {
    if (live == 0) {
      for (int b = 0; b < padded; ++b) e.rows[b] = 0;
      return true;
    }
    const KnotTables<C>& tables = layer.tables;
    const int64_t i = tables.table_of[feature];
    if (!tables.specialised()) return evaluate_general(tables, i, e);
    bool all_exist = false;
    tables.with_specialisation([&](auto degree) { all_exist = evaluate_specialised<C, decltype(degree)::value>(tables, i, e); });
    return all_exist;
  }
};

}  // namespace
}  // namespace KAN_NAMESPACE
