"""Reference implementation of the layer, its derivatives and its edge norms in plain torch, tested against SciPy."""

from .affine_cells import FORMULAS, affine_cells, cells_of
from .channels import spline_channels, spline_channels_backward
from .edge_std import edge_std, edge_std_backward
from .edges import basis_moments, basis_moments_backward, edge_l1, edge_l1_backward, edge_values
from .spline import (
    FUSED_ACTIVATIONS,
    base_activation,
    basis,
    infer_spline_order,
    kan_linear,
    scaled,
    sigmoid_polynomial,
    spline_backward,
    spline_backward_input,
    spline_backward_weight,
    spline_forward,
)

__all__ = [
    "FORMULAS",
    "FUSED_ACTIVATIONS",
    "affine_cells",
    "base_activation",
    "basis",
    "basis_moments",
    "basis_moments_backward",
    "cells_of",
    "edge_l1",
    "edge_l1_backward",
    "edge_std",
    "edge_std_backward",
    "edge_values",
    "infer_spline_order",
    "kan_linear",
    "scaled",
    "sigmoid_polynomial",
    "spline_backward",
    "spline_backward_input",
    "spline_backward_weight",
    "spline_channels",
    "spline_channels_backward",
    "spline_forward",
]
