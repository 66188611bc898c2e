#include "scratch.h"

#include <cstdint>
#include <cstdlib>
#include <new>

namespace kan {
namespace {

constexpr size_t kLine = 64;

void* aligned(void* memory) { return reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(memory) + kLine - 1) / kLine * kLine); }

// Blocks are handed out upwards and all come back before the operator returns; what does not fit is malloc'ed, and once
// nothing is out the block grows to what would have fitted.
struct Scratch {
  char* block = nullptr;
  size_t capacity = 0, used = 0, wanted = 0;
  int out = 0;

  ~Scratch() { free(block); }
  bool holds(const void* memory) const { return memory >= block && memory < block + capacity; }

  void* take(size_t bytes) {
    bytes = (bytes / kLine + 2) * kLine;
    if (out == 0) {
      used = 0;
      if (wanted > capacity) grow();
      wanted = 0;
    }
    ++out;
    wanted += bytes;
    if (used + bytes <= capacity) {
      void* memory = aligned(block + used);
      used += bytes;
      return memory;
    }
    // The address malloc gave stands in the line before the one handed out.
    char* raw = static_cast<char*>(malloc(bytes + 2 * kLine));
    if (raw == nullptr) throw std::bad_alloc();
    void** memory = static_cast<void**>(aligned(raw + kLine));
    memory[-1] = raw;
    return memory;
  }

  void release(void* memory) {
    --out;
    if (!holds(memory)) free(static_cast<void**>(memory)[-1]);
  }

 private:
  void grow() {
    if (wanted + kLine > kKeptBytes) return;
    free(block);
    capacity = wanted + kLine;
    block = static_cast<char*>(malloc(capacity));
    if (block == nullptr) capacity = 0;
  }
};

thread_local Scratch scratch;

}  // namespace

void* take_scratch(size_t bytes) { return scratch.take(bytes); }

void release_scratch(void* memory) { scratch.release(memory); }

}  // namespace kan
