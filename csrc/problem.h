// What an operator is asked to do, as plain pointers and strides: kernels never see a Tensor.
#pragma once
#include <cstdint>

namespace kan {

enum class Storage { float64, float32, bfloat16, float16 };
enum class Activation { silu, identity };

// Strides count elements. `data` is null for an operand that is absent.
struct Operand {
  const void* data = nullptr;
  int64_t stride[3] = {0, 0, 0};
};

constexpr int kMaxDerivative = 30;  // the sigmoid polynomial's integer coefficients still fit a double's exponent

struct Problem {
  int64_t N, I, O, G;
  int K;
  int derivative;
  Activation activation;
  Storage storage;        // of x, w, spline_weight, spline_scaler, base_weight, g and every output
  Storage grid_storage;
  Operand x;              // (N, I)
  Operand w;              // (N, I) or absent: ones
  Operand spline_weight;  // (O, I, M)
  Operand spline_scaler;  // (O, I) or absent: ones; multiplies spline_weight
  Operand base_weight;    // (O, I) or absent: no base activation
  Operand grid;           // (I, G+2K+1)
  Operand g;              // (N, O)
  Operand edge_weight;    // (O, I) or absent: g is then, for every edge, this times the sign of its function, over N
  const double* moment_weight = nullptr;  // (I, M+2, K+4), contiguous
  const double* of_moments = nullptr;     // the same: the moments of N rows that x then stands for
  // The gradient with respect to the inputs takes derivative + 1, so that it comes with the weights' of `derivative`.
  bool input_gradient_of_next_order;
  // Outputs; the ones not asked for are null.
  void* y = nullptr;                       // (N, O), contiguous
  void* input_gradient = nullptr;          // (N, I), contiguous
  void* spline_weight_gradient = nullptr;  // (O, I, M): edge (o, i) is edge o * edge_stride[0] + i * edge_stride[1], all of it contiguous
  void* spline_scaler_gradient = nullptr;  // (O, I), at the same strides, as base_weight_gradient
  void* base_weight_gradient = nullptr;
  int64_t edge_stride[2] = {0, 0};         // {I, 1} or, for weights that are (I, O, M) in memory, {1, O}
  void* edge_l1 = nullptr;                 // (O, I), contiguous
  void* edge_std = nullptr;                // (O, I), contiguous
  double* moments = nullptr;               // (I, M+2, K+4), as `reference.basis_moments`; or their gradient
};

// Runs body(begin, end, context) over [0, count) in ranges of at least `grain`, on the caller's thread pool.
using ParallelFor = void (*)(int64_t count, int64_t grain, void (*body)(int64_t, int64_t, void*), void* context);

// The kernels, once per instruction set.
struct KernelSet {
  const char* name;
  void (*forward)(const Problem&, ParallelFor);
  void (*backward)(const Problem&, ParallelFor);
  void (*edge_l1)(const Problem&, ParallelFor);
  void (*moments)(const Problem&, ParallelFor);
  void (*moments_backward)(const Problem&, ParallelFor);
  void (*edge_std)(const Problem&, ParallelFor);  // or its gradients, where edge_std is not asked for
};

extern const KernelSet kBaselineKernels;
#if defined(__x86_64__) && defined(__GNUC__)  // Clang too
#define KAN_HAS_X86_KERNELS 1
extern const KernelSet kAvx2Kernels;
extern const KernelSet kAvx512Kernels;
#endif

}  // namespace kan
