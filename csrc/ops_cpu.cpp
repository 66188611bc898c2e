// Tensors to pointers and strides. Callers have checked the arguments; what is checked here keeps memory safe.
#include "ops_cpu.h"

#include <torch/csrc/stable/ops.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <atomic>
#include <vector>

#include "problem.h"

namespace kan {
namespace {

using torch::headeronly::ScalarType;

int best_instruction_set() {
#ifdef KAN_HAS_X86_KERNELS
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma"))
    return 2;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c") &&
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

// The part of a problem that every operator shares.
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

void read_coefficients(Problem& p, const Tensor& coef, const std::optional<Tensor>& scaler,
                       const std::optional<Tensor>& base_weight) {
  p.coef = operand(coef, "coef", {p.I, p.G + p.K, p.O}, p.storage);
  p.scaler = operand(scaler, "scaler", {p.I, p.O}, p.storage);
  p.base_weight = operand(base_weight, "base_weight", {p.I, p.O}, p.storage);
}

Tensor new_empty(const Tensor& like, std::initializer_list<int64_t> shape, std::optional<ScalarType> dtype = std::nullopt) {
  const std::vector<int64_t> sizes(shape);
  return torch::stable::new_empty(like, torch::headeronly::IntHeaderOnlyArrayRef(sizes.data(), sizes.size()), dtype);
}

Tensor new_zeros(const Tensor& like, std::initializer_list<int64_t> shape) {
  Tensor result = new_empty(like, shape);
  return torch::stable::zero_(result);
}

// An empty sum, or nothing to compute: the loops assume at least one feature and one output.
bool is_trivial(const Problem& p) { return p.I == 0 || p.O == 0; }

// Of edges whose inputs are known by their bases' moments (I, M+2, K+4) alone.
Problem problem_of_moments(const Tensor& moments, const Tensor& coef, const std::optional<Tensor>& scaler,
                           const std::optional<Tensor>& base_weight, int64_t rows) {
  STD_TORCH_CHECK(moments.dim() == 3 && coef.dim() == 3, "kan_kernels: moments and coef must have three dimensions");
  Problem p{};
  p.N = rows;
  p.I = coef.size(0);
  p.O = coef.size(2);
  p.K = int(moments.size(2)) - 4;
  p.G = coef.size(1) - p.K;
  STD_TORCH_CHECK(p.K >= 0 && p.G >= 1 && moments.is_contiguous(), "kan_kernels: moments do not fit the coefficients");
  operand(moments, "moments", {p.I, p.G + p.K + 2, p.K + 4}, Storage::float64);
  p.of_moments = static_cast<const double*>(moments.const_data_ptr());
  p.storage = storage_of(coef);
  read_coefficients(p, coef, scaler, base_weight);
  return p;
}

// The gradients of the parameters as empty tensors, of no element where they are not needed; the problem writes to them.
struct CoefGradients {
  Tensor coef, scaler, base;

  CoefGradients(Problem& p, const Tensor& like, bool need_coef, bool need_scaler, bool need_base)
      : coef(need_coef ? new_empty(like, {p.I, p.G + p.K, p.O}) : new_empty(like, {0})),
        scaler(need_scaler ? new_empty(like, {p.I, p.O}) : new_empty(like, {0})),
        base(need_base ? new_empty(like, {p.I, p.O}) : new_empty(like, {0})) {
    STD_TORCH_CHECK(!need_scaler || (p.coef.data != nullptr && p.scaler.data != nullptr) || is_trivial(p),
                    "kan_kernels: the gradient of the scaler needs coef and scaler");
    if (need_coef) p.coef_gradient = coef.mutable_data_ptr();
    if (need_scaler) p.scaler_gradient = scaler.mutable_data_ptr();
    if (need_base) p.base_gradient = base.mutable_data_ptr();
  }
};

int64_t degree_of(const Tensor& coef, const Tensor& grid) {
  STD_TORCH_CHECK(coef.dim() == 3 && grid.dim() == 2, "kan_kernels: coef must have three dimensions and grid two");
  return grid.size(1) - coef.size(1) - 1;
}

}  // namespace

int select_instruction_set(int level) {
  if (instruction_set < 0) instruction_set = best_instruction_set();
  if (level >= 0 && level <= best_instruction_set()) instruction_set = level;
  return instruction_set;
}

Tensor spline_forward(const Tensor& x, const std::optional<Tensor>& w, const Tensor& coef,
                      const std::optional<Tensor>& scaler, const Tensor& grid,
                      const std::optional<Tensor>& base_weight, const std::string& activation, int64_t derivative) {
  Problem p = problem_of(x, coef.dim() == 3 ? coef.size(2) : 0, grid, degree_of(coef, grid), activation, derivative);
  p.w = operand(w, "w", {p.N, p.I}, p.storage);
  read_coefficients(p, coef, scaler, base_weight);
  if (is_trivial(p)) return new_zeros(x, {p.N, p.O});
  Tensor y = new_empty(x, {p.N, p.O});
  p.y = y.mutable_data_ptr();
  kernels().forward(p, parallel_for);
  return y;
}

Tensor spline_backward_input(const Tensor& x, const Tensor& g, const Tensor& coef,
                             const std::optional<Tensor>& scaler, const Tensor& grid,
                             const std::optional<Tensor>& base_weight, const std::string& activation,
                             int64_t derivative) {
  Problem p = problem_of(x, coef.dim() == 3 ? coef.size(2) : 0, grid, degree_of(coef, grid), activation, derivative);
  p.g = operand(g, "g", {p.N, p.O}, p.storage);
  read_coefficients(p, coef, scaler, base_weight);
  if (is_trivial(p)) return new_zeros(x, {p.N, p.I});
  Tensor gradient = new_empty(x, {p.N, p.I});
  p.input_gradient = gradient.mutable_data_ptr();
  kernels().backward(p, parallel_for);
  return gradient;
}

std::tuple<Tensor, Tensor, Tensor> spline_backward_coef(
    const Tensor& x, const std::optional<Tensor>& w, const Tensor& g, const std::optional<Tensor>& coef,
    const std::optional<Tensor>& scaler, const Tensor& grid, int64_t spline_order, const std::string& activation,
    int64_t derivative, bool need_coef, bool need_scaler, bool need_base) {
  STD_TORCH_CHECK(g.dim() == 2, "kan_kernels: g must have two dimensions");
  Problem p = problem_of(x, g.size(1), grid, spline_order, activation, derivative);
  p.w = operand(w, "w", {p.N, p.I}, p.storage);
  p.g = operand(g, "g", {p.N, p.O}, p.storage);
  p.coef = operand(coef, "coef", {p.I, p.G + p.K, p.O}, p.storage);
  p.scaler = operand(scaler, "scaler", {p.I, p.O}, p.storage);
  CoefGradients gradients(p, x, need_coef, need_scaler, need_base);
  if (!is_trivial(p)) kernels().backward(p, parallel_for);
  return {gradients.coef, gradients.scaler, gradients.base};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> spline_backward(
    const Tensor& x, const std::optional<Tensor>& w, const Tensor& g, const Tensor& coef, const std::optional<Tensor>& scaler,
    const Tensor& grid, const std::optional<Tensor>& base_weight, const std::string& activation, int64_t derivative,
    bool need_coef, bool need_scaler, bool need_base) {
  STD_TORCH_CHECK(g.dim() == 2, "kan_kernels: g must have two dimensions");
  Problem p = problem_of(x, g.size(1), grid, degree_of(coef, grid), activation, derivative);
  p.w = operand(w, "w", {p.N, p.I}, p.storage);
  p.g = operand(g, "g", {p.N, p.O}, p.storage);
  read_coefficients(p, coef, scaler, base_weight);
  STD_TORCH_CHECK(derivative < kMaxDerivative, "kan_kernels: derivative must be in 0..", kMaxDerivative - 1);
  CoefGradients gradients(p, x, need_coef, need_scaler, need_base);
  if (is_trivial(p)) return {new_zeros(x, {p.N, p.I}), gradients.coef, gradients.scaler, gradients.base};
  Tensor input_gradient = new_empty(x, {p.N, p.I});
  p.input_gradient = input_gradient.mutable_data_ptr();
  p.input_gradient_of_next_order = true;
  kernels().backward(p, parallel_for);
  return {input_gradient, gradients.coef, gradients.scaler, gradients.base};
}

Tensor edge_l1(const Tensor& x, const Tensor& coef, const std::optional<Tensor>& scaler, const Tensor& grid,
               const std::optional<Tensor>& base_weight, const std::string& activation) {
  Problem p = problem_of(x, coef.dim() == 3 ? coef.size(2) : 0, grid, degree_of(coef, grid), activation, 0);
  read_coefficients(p, coef, scaler, base_weight);
  Tensor norms = new_empty(x, {p.I, p.O});
  p.edge_l1 = norms.mutable_data_ptr();
  if (!is_trivial(p)) kernels().edge_l1(p, parallel_for);
  return norms;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> edge_l1_backward(
    const Tensor& x, const Tensor& coef, const std::optional<Tensor>& scaler, const Tensor& grid,
    const std::optional<Tensor>& base_weight, const std::string& activation, const Tensor& r, bool need_input, bool need_coef,
    bool need_scaler, bool need_base) {
  Problem p = problem_of(x, coef.dim() == 3 ? coef.size(2) : 0, grid, degree_of(coef, grid), activation, 0);
  read_coefficients(p, coef, scaler, base_weight);
  p.edge_weight = operand(r, "r", {p.I, p.O}, p.storage);
  CoefGradients gradients(p, x, need_coef, need_scaler, need_base);
  Tensor input_gradient = need_input ? new_empty(x, {p.N, p.I}) : new_empty(x, {0});
  if (need_input) p.input_gradient = input_gradient.mutable_data_ptr();
  p.input_gradient_of_next_order = need_input;
  if (!is_trivial(p)) kernels().backward(p, parallel_for);
  return {input_gradient, gradients.coef, gradients.scaler, gradients.base};
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

Tensor edge_std(const Tensor& moments, const Tensor& coef, const std::optional<Tensor>& scaler,
                const std::optional<Tensor>& base_weight, int64_t rows) {
  Problem p = problem_of_moments(moments, coef, scaler, base_weight, rows);
  Tensor spread = new_empty(coef, {p.I, p.O});
  p.edge_std = spread.mutable_data_ptr();
  if (!is_trivial(p)) kernels().edge_std(p, parallel_for);
  return spread;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> edge_std_backward(
    const Tensor& moments, const Tensor& coef, const std::optional<Tensor>& scaler, const std::optional<Tensor>& base_weight,
    int64_t rows, const Tensor& r, bool need_moments, bool need_coef, bool need_scaler, bool need_base) {
  Problem p = problem_of_moments(moments, coef, scaler, base_weight, rows);
  p.edge_weight = operand(r, "r", {p.I, p.O}, p.storage);
  CoefGradients gradients(p, coef, need_coef, need_scaler, need_base);
  Tensor moments_gradient =
      need_moments ? new_empty(moments, {p.I, p.G + p.K + 2, p.K + 4}) : new_empty(moments, {0});
  if (need_moments) p.moments = static_cast<double*>(moments_gradient.mutable_data_ptr());
  if (!is_trivial(p)) kernels().edge_std(p, parallel_for);
  return {moments_gradient, gradients.coef, gradients.scaler, gradients.base};
}

}  // namespace kan
