#include "scratch.h"

#include <cstdint>
#include <cstdlib>
#include <new>

namespace kan {
namespace {

constexpr size_t kLine = 64;

size_t whole_lines(size_t bytes) { return (bytes + kLine - 1) / kLine * kLine; }

// Precedes every piece, in a cache line of its own.
struct Header {
  size_t bytes;  // size of the piece, including the header's cache line
  void* raw;     // the piece's own malloc allocation; null if the piece lies in the block
};

// A stack allocator. Callers release pieces mostly in reverse order, and all of them before the operator returns. A piece that does
// not fit the block is allocated with malloc; once every piece is released, the block grows to the peak demand.
struct Scratch {
  void* raw = nullptr;
  char* block = nullptr;
  size_t capacity = 0, used = 0, out = 0, most_out = 0;

  ~Scratch() { free(raw); }

  void* take(size_t bytes) {
    bytes = whole_lines(bytes) + kLine;
    if (out == 0) {
      used = 0;
      if (most_out > capacity && most_out <= kKeptBytes) grow(most_out);
      most_out = 0;
    }
    char* piece = block + used;
    void* own = nullptr;
    if (used + bytes <= capacity) {
      used += bytes;
    } else {
      own = malloc(bytes + kLine);
      if (own == nullptr) throw std::bad_alloc();
      piece = first_line(own);
    }
    out += bytes;
    if (out > most_out) most_out = out;
    *reinterpret_cast<Header*>(piece) = {bytes, own};
    return piece + kLine;
  }

  void release(void* memory) {
    char* piece = static_cast<char*>(memory) - kLine;
    const Header header = *reinterpret_cast<Header*>(piece);
    out -= header.bytes;
    if (header.raw != nullptr)
      free(header.raw);
    else if (piece + header.bytes == block + used)
      used -= header.bytes;
  }

 private:
  static char* first_line(void* memory) {
    return reinterpret_cast<char*>(whole_lines(reinterpret_cast<uintptr_t>(memory)));
  }
  void grow(size_t bytes) {
    free(raw);
    raw = malloc(bytes + kLine);
    block = raw == nullptr ? nullptr : first_line(raw);
    capacity = raw == nullptr ? 0 : bytes;
  }
};

thread_local Scratch scratch;

}  // namespace

void* take_scratch(size_t bytes) { return scratch.take(bytes); }

void release_scratch(void* memory) { scratch.release(memory); }

}  // namespace kan
