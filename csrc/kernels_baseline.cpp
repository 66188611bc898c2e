// Any processor: 16-byte vectors, which the compiler maps to what there is (SSE2, NEON, plain C++).
#include "problem.h"
#include "scratch.h"

#define KAN_NAMESPACE kan_baseline
#define KAN_VECTOR_BYTES 16
#include "kernels/kernels.inl"

const kan::KernelSet kan::kBaselineKernels = KAN_NAMESPACE::kernel_set("baseline");
