// Compiles the kernels for any processor, with 16-byte vectors that the compiler lowers to SSE2, NEON or scalar code.
#include "problem.h"
#include "scratch.h"

#define KAN_NAMESPACE kan_baseline
#define KAN_VECTOR_BYTES 16
#include "kernels/kernels.inl"

const kan::KernelSet kan::kBaselineKernels = KAN_NAMESPACE::kernel_set("baseline");
