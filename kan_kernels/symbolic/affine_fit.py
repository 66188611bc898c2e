"""The best c f(a x + b) + d for samples of a curve, by pykan's search."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .. import ops
from ..backends import uses_reference
from ..reference import cells_of

Range = tuple[float | Tensor, float | Tensor]


class AffineFit(NamedTuple):
    """The result of `affine_fit`."""

    parameters: Tensor  # (4,): a, b, c, d
    r2: Tensor  # (): the coefficient of determination of the cell
    at_boundary: bool  # whether the best cell of the first, largest grid was on its boundary


@torch.no_grad()
def affine_fit(
    x: Tensor,
    y: Tensor,
    fun: Callable[[Tensor], Tensor],
    a_range: Range = (-10.0, 10.0),
    b_range: Range = (-10.0, 10.0),
    formula: str | None = None,
    grid_number: int = 101,
    iterations: int = 3,
    dtype: torch.dtype | None = None,
) -> AffineFit:
    """Fit y = c fun(a x + b) + d.

    a and b are the best of grid_number x grid_number cells, whose ranges shrink `iterations` times to the neighbours of the
    best cell; c and d are the least squares for them. This is the rule of pykan 0.2.8 (`kan.utils.fit_params`), in float64
    and without its tensors (N, grid_number, grid_number). Where cells fit equally well except for rounding, any can win.

    Args:
        x, y: (N,), floating point, on one device.
        fun: an elementwise function of tensors of any shape.
        a_range, b_range: the ends of the first ranges.
        formula: the name of fun in `reference.FORMULAS`, which has a kernel, "0" for a constant, or None.
        dtype: of the numbers a and b in the grid, the default dtype if None, as in pykan.

    Raises:
        ValueError: x and y are not one-dimensional tensors of the same length, at least 1.

    Equivalent to:
        values = fun(a[:, None] * x[:, None, None] + b)  # (N, grid_number, grid_number)
        centred, target = values - values.mean(0), (y - y.mean())[:, None, None]
        r2 = (centred * target).sum(0) ** 2 / ((centred**2).sum(0) * (target**2).sum(0) + 1e-4)
    """
    if x.dim() != 1 or x.shape != y.shape or len(x) == 0:
        raise ValueError(f"x and y: expected two tensors (N,), N >= 1, got shapes {tuple(x.shape)} and {tuple(y.shape)}")
    exact_x, exact_y = x.detach().double().contiguous(), y.detach().double()
    target = exact_y - exact_y.mean()
    constant = formula == "0" or not bool(target.any())  # so is the y of a masked edge
    at_boundary = False
    for iteration in range(iterations):
        a = torch.linspace(*a_range, steps=grid_number, device=x.device, dtype=dtype)  # type: ignore[arg-type]
        b = torch.linspace(*b_range, steps=grid_number, device=x.device, dtype=dtype)  # type: ignore[arg-type]
        if constant:
            r2 = torch.zeros(grid_number, grid_number, dtype=torch.float64, device=x.device)
        elif formula is None or uses_reference(x):
            r2 = cells_of(fun, exact_x, target, a.double(), b.double())
        else:
            r2 = ops.affine_cells(exact_x, target, formula, a.double(), b.double())
        r2 = torch.nan_to_num(r2)
        best_a, best_b = divmod(int(r2.argmax()), grid_number)
        ends = (0, grid_number - 1)
        if best_a in ends or best_b in ends:
            at_boundary = at_boundary or iteration == 0
            a_range = _end_of(a, best_a) if best_a in ends else a_range
            b_range = _end_of(b, best_b) if best_b in ends else b_range
        else:
            a_range = (a[best_a - 1], a[best_a + 1])
            b_range = (b[best_b - 1], b[best_b + 1])
    best = torch.stack([a[best_a], b[best_b]]).double()
    values = torch.nan_to_num(fun(best[0] * exact_x + best[1]))
    c, d = least_squares(values, exact_y)
    return AffineFit(torch.cat([best, torch.stack([c, d])]), r2[best_a, best_b].to(y.dtype), at_boundary)


def _end_of(cells: Tensor, best: int) -> Range:
    return (cells[0], cells[1]) if best == 0 else (cells[-2], cells[-1])


def least_squares(values: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Return c and d, the slope and the intercept of y over values; the slope is 0 if the values are constant."""
    centred = values - values.mean()
    square = centred.square().sum()
    c = torch.where(square > 0, (centred * (y - y.mean())).sum() / square, 0.0)
    return c, y.mean() - c * values.mean()
