// Describes an operator's arguments as plain pointers and strides. Kernels do not use Tensor.
#pragma once
#include <cstdint>

namespace kan {

enum class Storage { float64, float32, bfloat16, float16 };
enum class Activation { silu, identity };

// Strides count elements. `data` is null if the operand is absent.
struct Operand {
  const void* data = nullptr;
  int64_t stride[3] = {0, 0, 0};
};

constexpr int kMaxDerivative = 30;  // up to here, the coefficients of the sigmoid's polynomial fit a double's exponent

struct Problem {
  int64_t N, I, O, G;
  int K;
  int derivative;
  Activation activation;
  Storage storage;        // type of x, w, spline_weight, spline_scaler, base_weight, g and every output
  Storage grid_storage;
  Operand x;              // (N, I)
  Operand w;              // (N, I); ones if absent
  Operand spline_weight;  // (O, I, M)
  Operand spline_scaler;  // (O, I), multiplies spline_weight; ones if absent
  Operand base_weight;    // (O, I); if absent, there is no base activation
  Operand grid;           // (I, G+2K+1)
  Operand g;              // (N, O)
  Operand edge_weight;    // (O, I) or absent; if present, the g of an edge is edge_weight * sign(edge's function) / N
  const double* moment_weight = nullptr;  // (I, M+2, K+4), contiguous
  const double* of_moments = nullptr;     // same layout: the moments over N rows of the bases, which replace x
  // Whether input_gradient uses derivative order `derivative` + 1, so that one call also computes the weights' gradients at order
  // `derivative`.
  bool input_gradient_of_next_order;
  // Outputs, each null if it is not needed.
  void* y = nullptr;                       // (N, O), contiguous
  void* input_gradient = nullptr;          // (N, I), contiguous
  // In the gradients of the weights, edge (o, i) is at index o * edge_stride[0] + i * edge_stride[1]; there are no gaps.
  void* spline_weight_gradient = nullptr;  // (O, I, M)
  void* spline_scaler_gradient = nullptr;  // (O, I)
  void* base_weight_gradient = nullptr;    // (O, I)
  int64_t edge_stride[2] = {0, 0};         // {I, 1}, or {1, O} for weights that are (I, O, M) in memory
  void* edge_l1 = nullptr;                 // (O, I), contiguous
  void* edge_std = nullptr;                // (O, I), contiguous
  double* moments = nullptr;               // (I, M+2, K+4), laid out as in `reference.basis_moments`; or their gradient
};

// The functions f of a search for formulas, in the order of `formula_of`.
enum class Formula {
  identity, power2, power3, power4, power5, inverse1, inverse2, inverse3, inverse4, inverse5, sqrt, power1_5, inverse_sqrt,
  exp, log, abs, sin, cos, tan, tanh, sign, arcsin, arccos, arctan, arctanh, gaussian, count
};

// A grid of cells (a, b), in each of which f(a x + b) is compared with the samples' targets.
struct AffineCells {
  int64_t N, A, B;
  Formula formula;
  const double *x, *target;  // (N,); the targets' sum is 0
  double smallest_x, largest_x;
  const double *a, *b;       // (A,) and (B,)
  double square_of_target;   // the sum of their squares
  double* r2;                // (A, B)
};

// Adds w times the derivatives of an order, at least 1, of the edges' functions to a channel, at least 1.
struct Plane {
  Operand w;  // (N, I)
  int channel, order;
};

constexpr int kMaxChannelOrder = 4;

// A layer and sums of its derivatives. Channel 0 is the layer itself.
struct Channels {
  Problem problem;  // of order 0; y is (channels, N, O), g that of channel 0
  int count, planes, largest_order;
  const Plane* plane;
  int64_t g_bytes = 0;  // between the g of two channels
  void* plane_gradient = nullptr;  // (planes, N, I), contiguous; computed if problem.input_gradient is
};

// Runs body(begin, end, context) over [0, count) in ranges of at least `grain`, on the caller's thread pool.
using ParallelFor = void (*)(int64_t count, int64_t grain, void (*body)(int64_t, int64_t, void*), void* context);

// The kernels of one instruction set.
struct KernelSet {
  const char* name;
  void (*forward)(const Problem&, ParallelFor);
  void (*backward)(const Problem&, ParallelFor);
  void (*edge_l1)(const Problem&, ParallelFor);
  void (*moments)(const Problem&, ParallelFor);
  void (*moments_backward)(const Problem&, ParallelFor);
  void (*affine_cells)(const AffineCells&, ParallelFor);
  void (*edge_std)(const Problem&, ParallelFor);  // computes the gradients instead if Problem::edge_std is null
  void (*channels)(const Channels&, ParallelFor);
  void (*channels_backward)(const Channels&, ParallelFor);
};

extern const KernelSet kBaselineKernels;
#if defined(__x86_64__) && defined(__GNUC__)  // Clang defines __GNUC__ as well
#define KAN_HAS_X86_KERNELS 1
extern const KernelSet kAvx2Kernels;
extern const KernelSet kAvx512Kernels;
#endif

}  // namespace kan
