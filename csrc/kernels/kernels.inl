// The operators of one instruction set, on raw pointers. Each kernels_<set>.cpp sets the target and includes this file.
//
// For each block of rows, the kernels evaluate and sort the inputs feature by feature, then contract them tile by tile over the
// outputs; a tile is a few registers wide. The division of the work depends only on the problem's shape, never on the number of
// threads.
#pragma once

#include "affine_cells.inl"
#include "backward.inl"
#include "channels.inl"
#include "edge_std.inl"
#include "edges.inl"
#include "forward.inl"
#include "moments.inl"
#include "namespace.inl"

namespace KAN_NAMESPACE {
namespace {

// float64 computes in double, every other storage type in float.
void forward_any(const Problem& p, ParallelFor f) { p.storage == Storage::float64 ? forward<double>(p, f) : forward<float>(p, f); }
void backward_any(const Problem& p, ParallelFor f) {
  p.storage == Storage::float64 ? backward<double>(p, f) : backward<float>(p, f);
}
void edge_l1_any(const Problem& p, ParallelFor f) { p.storage == Storage::float64 ? edge_l1<double>(p, f) : edge_l1<float>(p, f); }
void channels_forward_any(const Channels& c, ParallelFor f) {
  c.problem.storage == Storage::float64 ? channels_forward<double>(c, f) : channels_forward<float>(c, f);
}
void channels_backward_any(const Channels& c, ParallelFor f) {
  c.problem.storage == Storage::float64 ? channels_backward<double>(c, f) : channels_backward<float>(c, f);
}

}  // namespace

constexpr kan::KernelSet kernel_set(const char* name) {
  return {name, &forward_any, &backward_any, &edge_l1_any, &moments, &moments_backward, &affine_cells, &edge_std,
          &channels_forward_any, &channels_backward_any};
}
}  // namespace KAN_NAMESPACE
