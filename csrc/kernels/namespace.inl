// What kernels_<set>.cpp defines before it includes kernels.inl, so that every kernel is compiled once for each instruction set:
//   KAN_NAMESPACE      the namespace of this set's kernels;
//   KAN_VECTOR_BYTES   the size of a vector register.
// An editor or a test that opens one of these files alone gets the baseline's values.
#pragma once

#include "../problem.h"
#include "../scratch.h"

#ifndef KAN_NAMESPACE
#define KAN_NAMESPACE kan_baseline
#define KAN_VECTOR_BYTES 16
#endif

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

}  // namespace
}  // namespace KAN_NAMESPACE
