// Compiles the kernels for x86-64 with AVX-512 F, BW, DQ and VL.
#include "problem.h"
#include "scratch.h"

#ifdef KAN_HAS_X86_KERNELS
#include <immintrin.h>

// The headers come first: if their inline functions were compiled for this target, the linker might keep that copy for all callers.
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi,bmi2"))), apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi,bmi2")
// GCC 12 warns about the undefined pass-through operand inside its own intrinsics.
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#pragma GCC diagnostic ignored "-Wuninitialized"
#endif

#define KAN_NAMESPACE kan_avx512
#define KAN_VECTOR_BYTES 64
#include "kernels/kernels.inl"
#ifdef __clang__
#pragma clang attribute pop
#endif

const kan::KernelSet kan::kAvx512Kernels = KAN_NAMESPACE::kernel_set("avx512");
#endif
