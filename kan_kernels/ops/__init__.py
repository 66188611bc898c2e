"""The operators, differentiable to any order. Importing this package registers them with torch."""

from . import autograd as autograd
from . import channels_autograd as channels_autograd
from . import edge_autograd as edge_autograd
from .library import (
    MAX_DERIVATIVE,
    affine_cells,
    basis_moments,
    basis_moments_backward,
    edge_l1,
    edge_l1_backward,
    edge_std,
    edge_std_backward,
    spline_backward,
    spline_backward_input,
    spline_backward_weight,
    spline_channels,
    spline_channels_backward,
    spline_forward,
)

__all__ = [
    "MAX_DERIVATIVE",
    "affine_cells",
    "basis_moments",
    "basis_moments_backward",
    "edge_l1",
    "edge_l1_backward",
    "edge_std",
    "edge_std_backward",
    "spline_backward",
    "spline_backward_input",
    "spline_backward_weight",
    "spline_channels",
    "spline_channels_backward",
    "spline_forward",
]
