// Compiles the kernels for x86-64 with AVX2 and FMA.
#include "problem.h"
#include "scratch.h"

#ifdef KAN_HAS_X86_KERNELS
#include <immintrin.h>

// The headers come first: if their inline functions were compiled for this target, the linker might keep that copy for all callers.
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,bmi,bmi2"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c,bmi,bmi2")
#endif

#define KAN_NAMESPACE kan_avx2
#define KAN_VECTOR_BYTES 32
#include "kernels/kernels.inl"
#ifdef __clang__
#pragma clang attribute pop
#endif

const kan::KernelSet kan::kAvx2Kernels = KAN_NAMESPACE::kernel_set("avx2");
#endif
