// Every kernel is compiled once per instruction set: kernels_<set>.cpp defines these macros before it includes kernels.inl.
//   KAN_NAMESPACE      the namespace of this set's kernels;
//   KAN_VECTOR_BYTES   the size of a vector register.
// The defaults below are the baseline's, for editors and tests that open one of these files alone.
#pragma once

#include "../problem.h"
#include "../scratch.h"

#ifndef KAN_NAMESPACE
#define KAN_NAMESPACE kan_baseline
#define KAN_VECTOR_BYTES 16
#endif

// Degrees up to 7 have specialised loops. On x86-64 the baseline runs only on processors without AVX2, so it specialises
// degree 3 only, because all degrees would take a third of the compilation time.
#if KAN_VECTOR_BYTES == 16 && defined(__x86_64__)
#define KAN_ALL_DEGREES 0
#else
#define KAN_ALL_DEGREES 1
#endif

namespace KAN_NAMESPACE {
namespace {

#if KAN_VECTOR_BYTES == 64 || defined(__aarch64__)
constexpr int kVectorRegisters = 32;
#else
constexpr int kVectorRegisters = 16;
#endif

using kan::Activation;
using kan::kMaxDerivative;
using kan::Operand;
using kan::ParallelFor;
using kan::Problem;
using kan::Storage;

}  // namespace
}  // namespace KAN_NAMESPACE
