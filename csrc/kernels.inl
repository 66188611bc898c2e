// The three operators of one instruction set, on raw pointers. Each kernels_<set>.cpp sets the target and includes this.
//
// Loops: a block of rows x a chunk of features is evaluated into L1, then contracted tile by tile over the outputs, a tile
// being a few registers wide. How the work is cut depends on the problem's shape alone, never on the number of threads.

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
#include "basis.inl"
#include "contract.inl"
#include "work.inl"
#include "packing.inl"
#include "evaluation.inl"
#include "forward.inl"
#include "backward_coef.inl"

// float64 computes in double, everything else in float.
void forward_any(const Problem& p, ParallelFor f) { p.storage == Storage::float64 ? forward<double>(p, f) : forward<float>(p, f); }
void backward_input_any(const Problem& p, ParallelFor f) {
  p.storage == Storage::float64 ? backward_input<double>(p, f) : backward_input<float>(p, f);
}
void backward_coef_any(const Problem& p, ParallelFor f) {
  p.storage == Storage::float64 ? backward_coef<double>(p, f) : backward_coef<float>(p, f);
}

}  // namespace
}  // namespace KAN_NAMESPACE
