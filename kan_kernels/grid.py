"""Knots, and the coefficients that fit given values on them."""

import torch
from torch import Tensor

from . import reference


def uniform_knots(grid_size: int, spline_order: int, low: float, high: float) -> Tensor:
    """The G + 2K + 1 equidistant knots (float64) whose inner G + 1 span [low, high]: arange(-K, G+K+1) h + low."""
    step = (high - low) / grid_size
    return torch.arange(-spline_order, grid_size + spline_order + 1, dtype=torch.float64) * step + low


def interpolation_matrix(knots: Tensor, grid_size: int, spline_order: int) -> Tensor:
    """(M, G+1): values on the G+1 inner knots -> the coefficients of least norm among those that fit them best.

    knots (G+2K+1), float64. There are fewer inner knots than coefficients for K > 1, so many splines fit exactly.
    """
    inner = knots[spline_order : spline_order + grid_size + 1].unsqueeze(1)
    return torch.linalg.pinv(reference.basis(inner, knots.unsqueeze(0), spline_order)[:, 0])
