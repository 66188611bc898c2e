// Scratch memory for a call, reused by the thread's next call.
//
// Page-faulting fresh memory costs ten times as much as using it. Also, glibc before 2.38 does not reuse memory from posix_memalign
// (which torch's allocator calls) after it is freed and other sizes are carved from it, so one malloc per buffer makes the heap of
// a training loop grow without bound. Every thread therefore keeps one block, as large as its largest call needed, up to
// kKeptBytes.
#pragma once
#include <cstddef>

namespace kan {

constexpr size_t kKeptBytes = size_t(64) << 20;

// Returns uninitialised memory aligned to a cache line. Throws std::bad_alloc.
void* take_scratch(size_t bytes);
// Must be called on the thread that took the memory.
void release_scratch(void* memory);

}  // namespace kan
