"""`edge_norms`: how much every edge's function matters on a batch, without a tensor of every edge's values."""

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from . import edge_autograd, fallbacks, ops, reference_norms  # noqa: F401
from .autocast import autocast, autocast_knots
from .checks import check_choice, check_kan_linear, rows_of, shape_of
from .functional import BaseActivation, computes_on_reference, refused
from .reference import spline_order

Norm = Literal["l1", "std"]
NORMS: tuple[Norm, ...] = get_args(Norm)


def edge_norms(
    x: Tensor,
    spline_weight: Tensor,
    grid: Tensor,
    base_weight: Tensor | None = None,
    ord: Norm = "l1",
    *,
    spline_scaler: Tensor | None = None,
    base_activation: BaseActivation = "silu",
) -> Tensor:
    """A norm over the batch of every edge's function.

    The edge from feature i to output o has phi_{o,i}(t) = base_weight[o,i] b(t) + sum_m spline_weight[o,i,m] beta_{i,m}(t).
    Differentiable with respect to x, spline_weight, base_weight and spline_scaler, in the memory of these: nothing of size
    N O I is stored.

    Args:
        x: (..., I), the leading dimensions are the batch of N rows.
        spline_weight: (O, I, M).
        grid: (I, G+2K+1).
        base_weight: (O, I), or None.
        ord: "l1", the mean of `|phi|` (the KAN paper's eq. 2.17); or "std", the unbiased standard deviation of phi (pykan's
            `edge_actscale`), from second moments in float64. A std that is only rounding, some 1e-7 of
            the coefficients', is 0, as are its gradients.
        spline_scaler, base_activation: as in `kan_linear`.

    Returns:
        (O, I), dtype of x.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: an argument has the wrong rank, size or device, ord is unknown, or there are too few rows: "l1" needs
            one, "std" two.

    Equivalent to (`kan_kernels.reference_norms`):
        phi = reference_norms.edge_values(x, spline_weight, spline_scaler, grid, base_weight, "silu")  # (N, O, I)
        norms = phi.abs().mean(0) if ord == "l1" else phi.std(0)
    """
    grid = autocast_knots(x, grid)
    x, spline_weight, base_weight, spline_scaler = autocast(x, spline_weight, base_weight, spline_scaler)
    refusal = refused(_check, x, spline_weight, grid, base_weight, spline_scaler, base_activation, ord)
    if refusal is not None:
        return refusal
    rows = rows_of(x)
    grid = grid.detach()
    unfused = base_weight is not None and callable(base_activation)
    if unfused and not torch.compiler.is_compiling():
        name = getattr(base_activation, "__name__", type(base_activation).__name__)
        fallbacks.note(f"edge norms with base activation {name}", "not fused, take the memory of every edge's values")
    if unfused or computes_on_reference(x):
        values = edge_values(rows, spline_weight, grid, base_weight, base_activation, spline_scaler)
        return values.abs().mean(0) if ord == "l1" else values.std(0)
    activation = base_activation if isinstance(base_activation, str) else "silu"
    if ord == "l1":
        return ops.edge_l1(rows, spline_weight, spline_scaler, grid, base_weight, activation)
    moments = ops.basis_moments(rows, grid, spline_order(spline_weight.shape[2], grid.shape[1]), activation)
    return ops.edge_std(moments, spline_weight, spline_scaler, base_weight, rows.shape[0])


def _check(x, spline_weight, grid, base_weight, spline_scaler, base_activation, ord):
    check_kan_linear(x, spline_weight, grid, base_weight, spline_scaler, base_activation)
    check_choice("ord", ord, NORMS)
    least = 1 if ord == "l1" else 2
    if math.prod(x.shape[:-1]) < least:
        raise ValueError(f"x: expected at least {least} rows for ord {ord!r}, got shape {shape_of(x)}")


def edge_values(
    x: Tensor,
    spline_weight: Tensor,
    grid: Tensor,
    base_weight: Tensor | None,
    base_activation: BaseActivation,
    spline_scaler: Tensor | None,
) -> Tensor:
    """(N, O, I): every edge's value on x (N, I), by the reference; the arguments are `edge_norms`'."""
    if base_weight is not None and callable(base_activation):
        splines = reference_norms.edge_values(x, spline_weight, spline_scaler, grid, None, "silu")
        return splines + base_activation(x).unsqueeze(1) * base_weight
    activation = base_activation if isinstance(base_activation, str) else "silu"
    return reference_norms.edge_values(x, spline_weight, spline_scaler, grid, base_weight, activation)
