// The operators of one instruction set, on raw pointers. Each kernels_<set>.cpp sets the target and includes this.
//
// Loops: the inputs of a block of rows are evaluated and sorted feature by feature, then contracted tile by tile over the
// outputs, a tile being a few registers wide. How the work is cut depends on the problem's shape alone, never on the number of threads.

// Loops of their own for every degree up to 7; for the cubic alone where processors without AVX2 are what is left to serve: all
// of them would be a third of the compilation.
#if KAN_VECTOR_BYTES == 16 && defined(__x86_64__)
#define KAN_ALL_DEGREES 0
#else
#define KAN_ALL_DEGREES 1
#endif

namespace KAN_NAMESPACE {
namespace {

using kan::Activation;
using kan::kMaxDerivative;
using kan::Operand;
using kan::ParallelFor;
using kan::Problem;
using kan::Storage;

#include "simd.inl"
#include "activation.inl"
#include "double_double.inl"
#include "knot_tables.inl"
#include "basis.inl"
#include "buckets.inl"
#include "contract.inl"
#include "work.inl"
#include "packing.inl"
#include "edges_in_memory.inl"
#include "coefficients.inl"
#include "evaluation.inl"
#include "narrow.inl"
#include "few_rows.inl"
#include "forward.inl"
#include "edges.inl"
#include "weight_sums.inl"
#include "backward.inl"
#include "moments.inl"
#include "spread.inl"

// float64 computes in double, everything else in float.
void forward_any(const Problem& p, ParallelFor f) { p.storage == Storage::float64 ? forward<double>(p, f) : forward<float>(p, f); }
void backward_any(const Problem& p, ParallelFor f) {
  p.storage == Storage::float64 ? backward<double>(p, f) : backward<float>(p, f);
}
void edge_l1_any(const Problem& p, ParallelFor f) { p.storage == Storage::float64 ? edge_l1<double>(p, f) : edge_l1<float>(p, f); }

}  // namespace

constexpr kan::KernelSet kernel_set(const char* name) {
  return {name, &forward_any, &backward_any, &edge_l1_any, &moments, &moments_backward, &edge_std};
}
}  // namespace KAN_NAMESPACE
