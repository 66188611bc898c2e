// Defines and registers the operators, which is all that a process without Python needs. setup.py generates schemas.inc from
// kan_kernels/ops/schemas.txt, which builds without C++ read as well.
#include <torch/csrc/stable/library.h>

#include "ops_cpu.h"

STABLE_TORCH_LIBRARY(kan_kernels, m) {
#define KAN_SCHEMA(schema) m.def(schema);
#include "schemas.inc"
#undef KAN_SCHEMA
}

STABLE_TORCH_LIBRARY_IMPL(kan_kernels, CPU, m) {
  m.impl("spline_forward", TORCH_BOX(&kan::spline_forward));
  m.impl("spline_backward_input", TORCH_BOX(&kan::spline_backward_input));
  m.impl("spline_backward_weight", TORCH_BOX(&kan::spline_backward_weight));
  m.impl("spline_backward", TORCH_BOX(&kan::spline_backward));
  m.impl("spline_channels", TORCH_BOX(&kan::spline_channels));
  m.impl("spline_channels_backward", TORCH_BOX(&kan::spline_channels_backward));
  m.impl("edge_l1", TORCH_BOX(&kan::edge_l1));
  m.impl("edge_l1_backward", TORCH_BOX(&kan::edge_l1_backward));
  m.impl("basis_moments", TORCH_BOX(&kan::basis_moments));
  m.impl("basis_moments_backward", TORCH_BOX(&kan::basis_moments_backward));
  m.impl("affine_cells", TORCH_BOX(&kan::affine_cells));
  m.impl("edge_std", TORCH_BOX(&kan::edge_std));
  m.impl("edge_std_backward", TORCH_BOX(&kan::edge_std_backward));
}

extern "C" __attribute__((visibility("default"))) int kan_kernels_select_instruction_set(int level) {
  return kan::select_instruction_set(level);
}
