"""The moments of the bases, for the edges' standard deviations, computed by the reference in parts that fit the scratch."""

from torch import Tensor

from .. import reference
from .heuristics import wide_part


def _rows_at_once(x: Tensor, grid: Tensor) -> int:
    """Return the rows of a part. The reference allocates about eight float64 tensors of the bases' size."""
    return wide_part(max(1, x.shape[0]), 8 * 8 * grid.numel())


def basis_moments(x: Tensor, grid: Tensor, spline_order: int, activation: str) -> Tensor:
    parts = x.split(_rows_at_once(x, grid))
    moments = reference.basis_moments(parts[0], grid, spline_order, activation)
    for part in parts[1:]:
        moments += reference.basis_moments(part, grid, spline_order, activation)
    return moments


def basis_moments_backward(x: Tensor, grid: Tensor, spline_order: int, activation: str, r: Tensor) -> Tensor:
    gradient, rows = x.new_empty(x.shape), _rows_at_once(x, grid)
    for part, of_part in zip(x.split(rows), gradient.split(rows), strict=True):
        of_part.copy_(reference.basis_moments_backward(part, grid, spline_order, activation, r))
    return gradient
