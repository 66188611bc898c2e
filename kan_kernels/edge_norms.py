"""`edge_norms`: how much every edge's function matters on a batch, without a tensor of every edge's values."""

import math

import torch
from torch import Tensor

from . import edge_autograd, fallbacks, ops, reference_norms  # noqa: F401
from .autocast import autocast, autocast_knots
from .checks import check_choice, check_kan_linear, rows_of, shape_of
from .functional import BaseActivation, refused, traced_in_forward_mode
from .reference import spline_order

NORMS = ("l1", "std")


def edge_norms(
    x: Tensor,
    coef: Tensor,
    grid: Tensor,
    base_weight: Tensor | None = None,
    ord: str = "l1",
    *,
    base_activation: BaseActivation = "silu",
    scaler: Tensor | None = None,
) -> Tensor:
    """A norm over the batch of every edge's function phi_{i,o}(t) = base_weight[i,o] b(t) + sum_m coef[i,m,o] beta_{i,m}(t).

    Differentiable with respect to x, coef, base_weight and scaler, in the memory of these: nothing of size N I O is stored.

    Args:
        x: (..., I), the leading dimensions are the batch of N rows.
        coef: (I, M, O).
        grid: (I, G+2K+1).
        base_weight: (I, O), or None.
        ord: "l1", the mean of `|phi|` (the KAN paper's eq. 2.17); or "std", the unbiased standard deviation of phi (pykan's
            `edge_actscale`), from second moments in float64. A std that is only rounding, some 1e-7 of
            the coefficients', is 0, as are its gradients.
        base_activation, scaler: as in `kan_linear`.

    Returns:
        (O, I), dtype of x.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: an argument has the wrong rank, size or device, ord is unknown, or there are too few rows: "l1" needs
            one, "std" two.

    Equivalent to (`kan_kernels.reference_norms`):
        phi = reference_norms.edge_values(x, coef, scaler, grid, base_weight, "silu")   # (N, I, O)
        norms = phi.abs().mean(0).t() if ord == "l1" else phi.std(0).t()
    """
    grid = autocast_knots(x, grid)
    x, coef, base_weight, scaler = autocast(x, coef, base_weight, scaler)
    refusal = refused(_check, x, coef, grid, base_weight, base_activation, scaler, ord)
    if refusal is not None:
        return refusal
    rows = rows_of(x)
    grid = grid.detach()
    unfused = base_weight is not None and callable(base_activation)
    if unfused and not torch.compiler.is_compiling():
        name = getattr(base_activation, "__name__", type(base_activation).__name__)
        fallbacks.note(f"edge norms with base activation {name}", "not fused, take the memory of every edge's values")
    if unfused or ops.uses_reference(x) or traced_in_forward_mode():
        return _dense_norms(edge_values(rows, coef, grid, base_weight, base_activation, scaler), ord).t()
    activation = base_activation if isinstance(base_activation, str) else "silu"
    if ord == "l1":
        return ops.edge_l1(rows, coef, scaler, grid, base_weight, activation).t()
    moments = ops.basis_moments(rows, grid, spline_order(coef.shape[1], grid.shape[1]), activation)
    return ops.edge_std(moments, coef, scaler, base_weight, rows.shape[0]).t()


def _check(x, coef, grid, base_weight, base_activation, scaler, ord):
    check_kan_linear(x, coef, grid, base_weight, base_activation, scaler)
    check_choice("ord", ord, NORMS)
    least = 1 if ord == "l1" else 2
    if math.prod(x.shape[:-1]) < least:
        raise ValueError(f"x: expected at least {least} rows for ord {ord!r}, got shape {shape_of(x)}")


def edge_values(
    x: Tensor,
    coef: Tensor,
    grid: Tensor,
    base_weight: Tensor | None,
    base_activation: BaseActivation,
    scaler: Tensor | None,
) -> Tensor:
    """(N, I, O): every edge's value on x (N, I), by the reference; the arguments are `edge_norms`'."""
    if base_weight is not None and callable(base_activation):
        values = reference_norms.edge_values(x, coef, scaler, grid, None, "silu")
        return values + base_activation(x).unsqueeze(-1) * base_weight
    activation = base_activation if isinstance(base_activation, str) else "silu"
    return reference_norms.edge_values(x, coef, scaler, grid, base_weight, activation)


def _dense_norms(values: Tensor, ord: str) -> Tensor:
    return values.abs().mean(0) if ord == "l1" else values.std(0)
