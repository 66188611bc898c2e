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
#include "operators.inl"

}  // namespace
}  // namespace KAN_NAMESPACE
