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
  Storage storage;       // of x, w, coef, base_weight, g and every output
  Storage grid_storage;
  Operand x;             // (N, I)
  Operand w;             // (N, I) or absent: ones
  Operand coef;          // (I, M, O)
  Operand scaler;        // (I, O) or absent: ones; multiplies coef
  Operand base_weight;   // (I, O) or absent: no base activation
  Operand grid;          // (I, G+2K+1)
  Operand g;             // (N, O)
  Operand edge_weight;   // (I, O) or absent: g is then, for every edge, this times the sign of its function, over N
  const double* moment_weight = nullptr;  // (I, M+2, K+4), contiguous
  const double* of_moments = nullptr;     // the same: the moments of N rows that x then stands for
  // The gradient with respect to the inputs takes derivative + 1, so that it comes with the coefficients' of `derivative`.
  bool input_gradient_of_next_order;
  // Outputs, contiguous; the ones not asked for are null.
  void* y = nullptr;                 // (N, O)
  void* input_gradient = nullptr;    // (N, I)
  void* coef_gradient = nullptr;     // (I, M, O)
  void* scaler_gradient = nullptr;   // (I, O)
  void* base_gradient = nullptr;     // (I, O)
  void* edge_l1 = nullptr;           // (I, O)
  void* edge_std = nullptr;          // (I, O)
  double* moments = nullptr;         // (I, M+2, K+4), as `reference_norms.basis_moments`; or their gradient
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
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define KAN_HAS_X86_KERNELS 1
extern const KernelSet kAvx2Kernels;
extern const KernelSet kAvx512Kernels;
#endif

}  // namespace kan
