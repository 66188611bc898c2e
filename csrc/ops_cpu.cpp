// Converts tensors to pointers and strides and calls the kernels. Callers have already validated the arguments; the checks here
// only guarantee memory safety.
#include "ops_cpu.h"

#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <atomic>
#include <vector>

#include "problem.h"

#ifdef KAN_HAS_X86_KERNELS
#include <cpuid.h>
#endif

namespace kan {
namespace {

using torch::headeronly::ScalarType;

#ifdef KAN_HAS_X86_KERNELS
bool has_f16c() {  // clang's __builtin_cpu_supports accepts "f16c" only since version 19
  unsigned a, b, c = 0, d;
  return __get_cpuid(1, &a, &b, &c, &d) && c & bit_F16C;
}
#endif

int best_instruction_set() {
#ifdef KAN_HAS_X86_KERNELS
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma"))
    return 2;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c() &&
      __builtin_cpu_supports("bmi") && __builtin_cpu_supports("bmi2"))
    return 1;
#endif
  return 0;
}

std::atomic<int> instruction_set{-1};

const KernelSet& kernels() {
  switch (select_instruction_set(-1)) {
#ifdef KAN_HAS_X86_KERNELS
    case 2: return kAvx512Kernels;
    case 1: return kAvx2Kernels;
#endif
    default: return kBaselineKernels;
  }
}

void parallel_for(int64_t count, int64_t grain, void (*body)(int64_t, int64_t, void*), void* context) {
  if (count <= grain) {
    if (count > 0) body(0, count, context);
    return;
  }
  torch::stable::parallel_for(0, count, grain, [&](int64_t begin, int64_t end) { body(begin, end, context); });
}

Storage storage_of(const Tensor& t) {
  switch (t.scalar_type()) {
    case ScalarType::Double: return Storage::float64;
    case ScalarType::Float: return Storage::float32;
    case ScalarType::BFloat16: return Storage::bfloat16;
    case ScalarType::Half: return Storage::float16;
    default: STD_TORCH_CHECK(false, "kan_kernels: expected a floating-point tensor of 16, 32 or 64 bits");
  }
  return Storage::float32;
}

Operand operand(const Tensor& t, const char* name, std::initializer_list<int64_t> shape, Storage storage) {
  STD_TORCH_CHECK(t.is_cpu() && t.dim() == int64_t(shape.size()) && storage_of(t) == storage, "kan_kernels: ", name,
                  " has an unexpected device, rank or dtype");
  Operand result;
  result.data = t.const_data_ptr();
  int64_t d = 0;
  for (const int64_t size : shape) {
    STD_TORCH_CHECK(t.size(d) == size, "kan_kernels: ", name, " has size ", t.size(d), " in dimension ", d, ", expected ",
                    size);
    result.stride[d] = t.stride(d);
    ++d;
  }
  return result;
}

Operand operand(const std::optional<Tensor>& t, const char* name, std::initializer_list<int64_t> shape, Storage storage) {
  return t.has_value() ? operand(*t, name, shape, storage) : Operand{};
}

// Fills in the fields that every operator on x shares.
Problem problem_of(const Tensor& x, int64_t outputs, const Tensor& grid, int64_t spline_order, const std::string& activation,
                   int64_t derivative) {
  STD_TORCH_CHECK(x.dim() == 2 && grid.dim() == 2, "kan_kernels: x and grid must have two dimensions");
  STD_TORCH_CHECK(derivative >= 0 && derivative <= kMaxDerivative, "kan_kernels: derivative must be in 0..", kMaxDerivative);
  STD_TORCH_CHECK(activation == "silu" || activation == "identity", "kan_kernels: unknown activation ", activation);
  const int64_t grid_size = grid.size(1) - 2 * spline_order - 1;
  STD_TORCH_CHECK(spline_order >= 0 && grid_size >= 1 && grid.size(1) < (int64_t(1) << 30) / (spline_order + 2),
                  "kan_kernels: ", grid.size(1), " knots cannot hold a grid of degree ", spline_order);
  Problem p{};
  p.N = x.size(0);
  p.I = x.size(1);
  p.O = outputs;
  p.G = grid_size;
  p.K = int(spline_order);
  p.derivative = int(derivative);
  p.activation = activation == "silu" ? Activation::silu : Activation::identity;
  p.storage = storage_of(x);
  p.grid_storage = storage_of(grid);
  p.x = operand(x, "x", {p.N, p.I}, p.storage);
  p.grid = operand(grid, "grid", {p.I, grid.size(1)}, p.grid_storage);
  return p;
}

Formula formula_of(const std::string& name) {
  static const char* const names[] = {"x",   "x^2", "x^3", "x^4", "x^5", "1/x",  "1/x^2", "1/x^3",  "1/x^4",  "1/x^5",  "sqrt",    "x^1.5",   "1/sqrt(x)",
                                      "exp", "log", "abs", "sin", "cos", "tan", "tanh",  "sgn",    "arcsin", "arccos", "arctan", "arctanh", "gaussian"};
  static_assert(sizeof(names) / sizeof(*names) == size_t(Formula::count));
  for (int k = 0; k < int(Formula::count); ++k)
    if (name == names[k]) return Formula(k);
  STD_TORCH_CHECK(false, "kan_kernels: unknown function ", name);
  return Formula::count;
}

void read_weights(Problem& p, const Tensor& spline_weight, const std::optional<Tensor>& spline_scaler,
                  const std::optional<Tensor>& base_weight) {
  p.spline_weight = operand(spline_weight, "spline_weight", {p.O, p.I, p.G + p.K}, p.storage);
  p.spline_scaler = operand(spline_scaler, "spline_scaler", {p.O, p.I}, p.storage);
  p.base_weight = operand(base_weight, "base_weight", {p.O, p.I}, p.storage);
}

Tensor new_empty(const Tensor& like, std::initializer_list<int64_t> shape, std::optional<ScalarType> dtype = std::nullopt) {
  const std::vector<int64_t> sizes(shape);
  return torch::stable::new_empty(like, torch::headeronly::IntHeaderOnlyArrayRef(sizes.data(), sizes.size()), dtype);
}

Tensor new_zeros(const Tensor& like, std::initializer_list<int64_t> shape) {
  Tensor result = new_empty(like, shape);
  return torch::stable::zero_(result);
}

// The loops assume at least one feature and one output.
bool is_trivial(const Problem& p) { return p.I == 0 || p.O == 0; }

// Builds the problem of an operator that takes the moments (I, M+2, K+4) of the bases instead of x.
Problem problem_of_moments(const Tensor& moments, const Tensor& spline_weight, const std::optional<Tensor>& spline_scaler,
                           const std::optional<Tensor>& base_weight, int64_t rows) {
  STD_TORCH_CHECK(moments.dim() == 3 && spline_weight.dim() == 3, "kan_kernels: moments and spline_weight must have three dimensions");
  Problem p{};
  p.N = rows;
  p.O = spline_weight.size(0);
  p.I = spline_weight.size(1);
  p.K = int(moments.size(2)) - 4;
  p.G = spline_weight.size(2) - p.K;
  STD_TORCH_CHECK(p.K >= 0 && p.G >= 1 && moments.is_contiguous(), "kan_kernels: moments do not fit spline_weight");
  operand(moments, "moments", {p.I, p.G + p.K + 2, p.K + 4}, Storage::float64);
  p.of_moments = static_cast<const double*>(moments.const_data_ptr());
  p.storage = storage_of(spline_weight);
  read_weights(p, spline_weight, spline_scaler, base_weight);
  return p;
}

// Allocates the gradients of the weights and points the problem at them; a gradient that is not needed has no elements. If
// spline_weight is (I, O, M) in memory, the gradients are (I, O, M) and (I, O), so that autograd returns a contiguous gradient for
// a parameter in that layout.
struct WeightGradients {
  bool in_first;
  Tensor spline_weight, spline_scaler, base_weight;

  WeightGradients(Problem& p, const Tensor& like, bool need_spline_weight, bool need_spline_scaler, bool need_base_weight)
      : in_first(p.spline_weight.data != nullptr && p.spline_weight.stride[1] > p.spline_weight.stride[0]),
        spline_weight(!need_spline_weight ? new_empty(like, {0})
                      : in_first          ? new_empty(like, {p.I, p.O, p.G + p.K})
                                          : new_empty(like, {p.O, p.I, p.G + p.K})),
        spline_scaler(of_edges(p, like, need_spline_scaler)), base_weight(of_edges(p, like, need_base_weight)) {
    STD_TORCH_CHECK(!need_spline_scaler || (p.spline_weight.data != nullptr && p.spline_scaler.data != nullptr) || is_trivial(p),
                    "kan_kernels: the gradient of spline_scaler needs spline_weight and spline_scaler");
    p.edge_stride[0] = in_first ? 1 : p.I;
    p.edge_stride[1] = in_first ? p.O : 1;
    if (need_spline_weight) p.spline_weight_gradient = spline_weight.mutable_data_ptr();
    if (need_spline_scaler) p.spline_scaler_gradient = spline_scaler.mutable_data_ptr();
    if (need_base_weight) p.base_weight_gradient = base_weight.mutable_data_ptr();
    if (!in_first) return;
    for (Tensor* gradient : {&spline_weight, &spline_scaler, &base_weight})
      if (gradient->dim() > 1) *gradient = torch::stable::transpose(*gradient, 0, 1);
  }

 private:
  Tensor of_edges(const Problem& p, const Tensor& like, bool needed) const {
    return !needed ? new_empty(like, {0}) : in_first ? new_empty(like, {p.I, p.O}) : new_empty(like, {p.O, p.I});
  }
};

int64_t degree_of(const Tensor& spline_weight, const Tensor& grid) {
  STD_TORCH_CHECK(spline_weight.dim() == 3 && grid.dim() == 2, "kan_kernels: spline_weight must have three dimensions and grid two");
  return grid.size(1) - spline_weight.size(2) - 1;
}

// Builds the problem of a layer's channels; `planes` keeps the memory that it points at.
Channels channels_of(const Tensor& x, const Tensor& w, const Tensor& spline_weight, const std::optional<Tensor>& spline_scaler,
                     const Tensor& grid, const std::optional<Tensor>& base_weight, const std::string& activation,
                     const std::vector<int64_t>& channels, const std::vector<int64_t>& orders, std::vector<Plane>& planes) {
  Channels c{};
  c.problem = problem_of(x, spline_weight.dim() == 3 ? spline_weight.size(0) : 0, grid, degree_of(spline_weight, grid), activation, 0);
  read_weights(c.problem, spline_weight, spline_scaler, base_weight);
  c.planes = int(channels.size());
  const Problem& p = c.problem;
  const Operand all = operand(w, "w", {c.planes, p.N, p.I}, p.storage);
  STD_TORCH_CHECK(channels.size() == orders.size(), "kan_kernels: expected an order for every channel");
  c.count = 1;
  for (int k = 0; k < c.planes; ++k) {
    STD_TORCH_CHECK(channels[k] >= 1 && channels[k] <= c.planes && orders[k] >= 1 && orders[k] <= kMaxChannelOrder,
                    "kan_kernels: expected channels from 1 on, without gaps, and orders from 1 to ", kMaxChannelOrder);
    Operand plane;
    plane.data = static_cast<const char*>(all.data) + k * all.stride[0] * int64_t(w.element_size());
    plane.stride[0] = all.stride[1];
    plane.stride[1] = all.stride[2];
    planes.push_back({plane, int(channels[k]), int(orders[k])});
    c.count = channels[k] >= c.count ? int(channels[k]) + 1 : c.count;
    c.largest_order = orders[k] > c.largest_order ? int(orders[k]) : c.largest_order;
  }
  c.plane = planes.data();
  return c;
}

}  // namespace

int select_instruction_set(int level) {
  if (instruction_set < 0) instruction_set = best_instruction_set();
  if (level >= 0 && level <= best_instruction_set()) instruction_set = level;
  return instruction_set;
}

Tensor spline_forward(const Tensor& x, const std::optional<Tensor>& w, const Tensor& spline_weight,
                      const std::optional<Tensor>& spline_scaler, const Tensor& grid,
                      const std::optional<Tensor>& base_weight, const std::string& activation, int64_t derivative) {
  Problem p = problem_of(x, spline_weight.dim() == 3 ? spline_weight.size(0) : 0, grid, degree_of(spline_weight, grid), activation, derivative);
  p.w = operand(w, "w", {p.N, p.I}, p.storage);
  read_weights(p, spline_weight, spline_scaler, base_weight);
  if (is_trivial(p)) return new_zeros(x, {p.N, p.O});
  Tensor y = new_empty(x, {p.N, p.O});
  p.y = y.mutable_data_ptr();
  kernels().forward(p, parallel_for);
  return y;
}

Tensor spline_backward_input(const Tensor& x, const Tensor& g, const Tensor& spline_weight,
                             const std::optional<Tensor>& spline_scaler, const Tensor& grid,
                             const std::optional<Tensor>& base_weight, const std::string& activation,
                             int64_t derivative) {
  Problem p = problem_of(x, spline_weight.dim() == 3 ? spline_weight.size(0) : 0, grid, degree_of(spline_weight, grid), activation, derivative);
  p.g = operand(g, "g", {p.N, p.O}, p.storage);
  read_weights(p, spline_weight, spline_scaler, base_weight);
  if (is_trivial(p)) return new_zeros(x, {p.N, p.I});
  Tensor gradient = new_empty(x, {p.N, p.I});
  p.input_gradient = gradient.mutable_data_ptr();
  kernels().backward(p, parallel_for);
  return gradient;
}

std::tuple<Tensor, Tensor, Tensor> spline_backward_weight(
    const Tensor& x, const std::optional<Tensor>& w, const Tensor& g, const std::optional<Tensor>& spline_weight,
    const std::optional<Tensor>& spline_scaler, const Tensor& grid, int64_t spline_order, const std::string& activation,
    int64_t derivative, bool need_spline_weight, bool need_spline_scaler, bool need_base_weight) {
  STD_TORCH_CHECK(g.dim() == 2, "kan_kernels: g must have two dimensions");
  Problem p = problem_of(x, g.size(1), grid, spline_order, activation, derivative);
  p.w = operand(w, "w", {p.N, p.I}, p.storage);
  p.g = operand(g, "g", {p.N, p.O}, p.storage);
  p.spline_weight = operand(spline_weight, "spline_weight", {p.O, p.I, p.G + p.K}, p.storage);
  p.spline_scaler = operand(spline_scaler, "spline_scaler", {p.O, p.I}, p.storage);
  WeightGradients gradients(p, x, need_spline_weight, need_spline_scaler, need_base_weight);
  if (!is_trivial(p)) kernels().backward(p, parallel_for);
  return {gradients.spline_weight, gradients.spline_scaler, gradients.base_weight};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> spline_backward(
    const Tensor& x, const std::optional<Tensor>& w, const Tensor& g, const Tensor& spline_weight, const std::optional<Tensor>& spline_scaler,
    const Tensor& grid, const std::optional<Tensor>& base_weight, const std::string& activation, int64_t derivative,
    bool need_spline_weight, bool need_spline_scaler, bool need_base_weight) {
  STD_TORCH_CHECK(g.dim() == 2, "kan_kernels: g must have two dimensions");
  Problem p = problem_of(x, g.size(1), grid, degree_of(spline_weight, grid), activation, derivative);
  p.w = operand(w, "w", {p.N, p.I}, p.storage);
  p.g = operand(g, "g", {p.N, p.O}, p.storage);
  read_weights(p, spline_weight, spline_scaler, base_weight);
  STD_TORCH_CHECK(derivative < kMaxDerivative, "kan_kernels: derivative must be in 0..", kMaxDerivative - 1);
  WeightGradients gradients(p, x, need_spline_weight, need_spline_scaler, need_base_weight);
  if (is_trivial(p)) return {new_zeros(x, {p.N, p.I}), gradients.spline_weight, gradients.spline_scaler, gradients.base_weight};
  Tensor input_gradient = new_empty(x, {p.N, p.I});
  p.input_gradient = input_gradient.mutable_data_ptr();
  p.input_gradient_of_next_order = true;
  kernels().backward(p, parallel_for);
  return {input_gradient, gradients.spline_weight, gradients.spline_scaler, gradients.base_weight};
}

Tensor spline_channels(const Tensor& x, const Tensor& w, const Tensor& spline_weight, const std::optional<Tensor>& spline_scaler,
                       const Tensor& grid, const std::optional<Tensor>& base_weight, const std::string& activation,
                       const std::vector<int64_t>& channels, const std::vector<int64_t>& orders) {
  std::vector<Plane> planes;
  Channels c = channels_of(x, w, spline_weight, spline_scaler, grid, base_weight, activation, channels, orders, planes);
  const Problem& p = c.problem;
  if (is_trivial(p)) return new_zeros(x, {c.count, p.N, p.O});
  Tensor y = new_empty(x, {c.count, p.N, p.O});
  c.problem.y = y.mutable_data_ptr();
  kernels().channels(c, parallel_for);
  return y;
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> spline_channels_backward(
    const Tensor& x, const Tensor& w, const Tensor& g, const Tensor& spline_weight, const std::optional<Tensor>& spline_scaler, const Tensor& grid,
    const std::optional<Tensor>& base_weight, const std::string& activation, const std::vector<int64_t>& channels,
    const std::vector<int64_t>& orders, bool need_input, bool need_spline_weight, bool need_spline_scaler, bool need_base_weight) {
  std::vector<Plane> planes;
  Channels c = channels_of(x, w, spline_weight, spline_scaler, grid, base_weight, activation, channels, orders, planes);
  Problem& p = c.problem;
  const Operand all = operand(g, "g", {c.count, p.N, p.O}, p.storage);
  p.g.data = all.data;
  p.g.stride[0] = all.stride[1];
  p.g.stride[1] = all.stride[2];
  c.g_bytes = all.stride[0] * int64_t(g.element_size());
  WeightGradients gradients(p, x, need_spline_weight, need_spline_scaler, need_base_weight);
  const bool computes_input = need_input && !is_trivial(p);
  Tensor input_gradient = !need_input ? new_empty(x, {0}) : computes_input ? new_empty(x, {p.N, p.I}) : new_zeros(x, {p.N, p.I});
  Tensor plane_gradient = !need_input      ? new_empty(x, {0})
                          : computes_input ? new_empty(x, {c.planes, p.N, p.I})
                                           : new_zeros(x, {c.planes, p.N, p.I});
  if (computes_input) {
    p.input_gradient = input_gradient.mutable_data_ptr();
    c.plane_gradient = plane_gradient.mutable_data_ptr();
  }
  if (!is_trivial(p)) kernels().channels_backward(c, parallel_for);
  return {input_gradient, plane_gradient, gradients.spline_weight, gradients.spline_scaler, gradients.base_weight};
}

Tensor edge_l1(const Tensor& x, const Tensor& spline_weight, const std::optional<Tensor>& spline_scaler, const Tensor& grid,
               const std::optional<Tensor>& base_weight, const std::string& activation) {
  Problem p = problem_of(x, spline_weight.dim() == 3 ? spline_weight.size(0) : 0, grid, degree_of(spline_weight, grid), activation, 0);
  read_weights(p, spline_weight, spline_scaler, base_weight);
  Tensor norms = new_empty(x, {p.O, p.I});
  p.edge_l1 = norms.mutable_data_ptr();
  if (!is_trivial(p)) kernels().edge_l1(p, parallel_for);
  return norms;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> edge_l1_backward(
    const Tensor& x, const Tensor& spline_weight, const std::optional<Tensor>& spline_scaler, const Tensor& grid,
    const std::optional<Tensor>& base_weight, const std::string& activation, const Tensor& r, bool need_input, bool need_spline_weight,
    bool need_spline_scaler, bool need_base_weight) {
  Problem p = problem_of(x, spline_weight.dim() == 3 ? spline_weight.size(0) : 0, grid, degree_of(spline_weight, grid), activation, 0);
  read_weights(p, spline_weight, spline_scaler, base_weight);
  p.edge_weight = operand(r, "r", {p.O, p.I}, p.storage);
  WeightGradients gradients(p, x, need_spline_weight, need_spline_scaler, need_base_weight);
  Tensor input_gradient = need_input ? new_empty(x, {p.N, p.I}) : new_empty(x, {0});
  if (need_input) p.input_gradient = input_gradient.mutable_data_ptr();
  p.input_gradient_of_next_order = need_input;
  if (!is_trivial(p)) kernels().backward(p, parallel_for);
  return {input_gradient, gradients.spline_weight, gradients.spline_scaler, gradients.base_weight};
}

Tensor basis_moments(const Tensor& x, const Tensor& grid, int64_t spline_order, const std::string& activation) {
  Problem p = problem_of(x, 1, grid, spline_order, activation, 0);
  Tensor sums = new_empty(x, {p.I, p.G + p.K + 2, p.K + 4}, ScalarType::Double);
  p.moments = static_cast<double*>(sums.mutable_data_ptr());
  if (!is_trivial(p)) kernels().moments(p, parallel_for);
  return sums;
}

Tensor basis_moments_backward(const Tensor& x, const Tensor& grid, int64_t spline_order, const std::string& activation,
                              const Tensor& r) {
  Problem p = problem_of(x, 1, grid, spline_order, activation, 0);
  operand(r, "r", {p.I, p.G + p.K + 2, p.K + 4}, Storage::float64);
  STD_TORCH_CHECK(r.is_contiguous(), "kan_kernels: r must be contiguous");
  p.moment_weight = static_cast<const double*>(r.const_data_ptr());
  Tensor gradient = new_empty(x, {p.N, p.I});
  p.input_gradient = gradient.mutable_data_ptr();
  p.input_gradient_of_next_order = true;
  if (!is_trivial(p)) kernels().moments_backward(p, parallel_for);
  return gradient;
}

Tensor affine_cells(const Tensor& x, const Tensor& target, const std::string& function, const Tensor& a, const Tensor& b) {
  AffineCells p{};
  p.N = x.dim() == 1 ? x.size(0) : -1;
  p.A = a.dim() == 1 ? a.size(0) : -1;
  p.B = b.dim() == 1 ? b.size(0) : -1;
  const auto values = [](const Tensor& t, const char* name, int64_t size) {
    operand(t, name, {size}, Storage::float64);
    STD_TORCH_CHECK(t.is_contiguous(), "kan_kernels: ", name, " must be contiguous");
    return static_cast<const double*>(t.const_data_ptr());
  };
  p.x = values(x, "x", p.N);
  p.target = values(target, "target", p.N);
  p.a = values(a, "a", p.A);
  p.b = values(b, "b", p.B);
  p.formula = formula_of(function);
  STD_TORCH_CHECK(p.N > 0, "kan_kernels: x is empty");
  p.smallest_x = p.largest_x = p.x[0];
  for (int64_t n = 0; n < p.N; ++n) {
    p.square_of_target += p.target[n] * p.target[n];
    p.smallest_x = p.x[n] < p.smallest_x ? p.x[n] : p.smallest_x;
    p.largest_x = p.x[n] > p.largest_x ? p.x[n] : p.largest_x;
  }
  Tensor r2 = new_empty(x, {p.A, p.B});
  p.r2 = static_cast<double*>(r2.mutable_data_ptr());
  if (p.A > 0 && p.B > 0) kernels().affine_cells(p, parallel_for);
  return r2;
}

Tensor edge_std(const Tensor& moments, const Tensor& spline_weight, const std::optional<Tensor>& spline_scaler,
                const std::optional<Tensor>& base_weight, int64_t rows) {
  Problem p = problem_of_moments(moments, spline_weight, spline_scaler, base_weight, rows);
  Tensor deviations = new_empty(spline_weight, {p.O, p.I});
  p.edge_std = deviations.mutable_data_ptr();
  if (!is_trivial(p)) kernels().edge_std(p, parallel_for);
  return deviations;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> edge_std_backward(
    const Tensor& moments, const Tensor& spline_weight, const std::optional<Tensor>& spline_scaler, const std::optional<Tensor>& base_weight,
    int64_t rows, const Tensor& r, bool need_moments, bool need_spline_weight, bool need_spline_scaler, bool need_base_weight) {
  Problem p = problem_of_moments(moments, spline_weight, spline_scaler, base_weight, rows);
  p.edge_weight = operand(r, "r", {p.O, p.I}, p.storage);
  WeightGradients gradients(p, spline_weight, need_spline_weight, need_spline_scaler, need_base_weight);
  Tensor moments_gradient =
      need_moments ? new_empty(moments, {p.I, p.G + p.K + 2, p.K + 4}) : new_empty(moments, {0});
  if (need_moments) p.moments = static_cast<double*>(moments_gradient.mutable_data_ptr());
  if (!is_trivial(p)) kernels().edge_std(p, parallel_for);
  return {moments_gradient, gradients.spline_weight, gradients.spline_scaler, gradients.base_weight};
}

}  // namespace kan
