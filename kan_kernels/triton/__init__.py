"""The operators as Triton kernels.

This package is imported on the first call with a GPU tensor, since the import also imports triton.
"""

from .backward import spline_backward
from .backward_input import spline_backward_input
from .backward_weight import spline_backward_weight
from .basis_moments import basis_moments, basis_moments_backward
from .channels import spline_channels, spline_channels_backward
from .edge_l1 import edge_l1, edge_l1_backward
from .forward import spline_forward

__all__ = [
    "basis_moments",
    "basis_moments_backward",
    "edge_l1",
    "edge_l1_backward",
    "spline_backward",
    "spline_backward_input",
    "spline_backward_weight",
    "spline_channels",
    "spline_channels_backward",
    "spline_forward",
]
