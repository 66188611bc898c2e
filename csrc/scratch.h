// Scratch memory of a call, reused by the thread's next call.
//
// Page-faulting fresh memory costs ten times its use, and glibc before 2.38 does not reuse what posix_memalign (which torch's
// allocator calls) has freed once other sizes are carved from it: with a malloc per buffer a training loop's heap grows
// without end. So every thread keeps one block, as large as its largest call needed, up to kKeptBytes.
#pragma once
#include <cstddef>

namespace kan {

constexpr size_t kKeptBytes = size_t(64) << 20;

// Uninitialised, aligned to a cache line. Throws std::bad_alloc.
void* take_scratch(size_t bytes);
// On the thread that took it.
void release_scratch(void* memory);

}  // namespace kan
