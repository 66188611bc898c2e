"""`edge_norms`: how much every edge's function matters on a batch, without a tensor of every edge's values."""

import torch
from torch import Tensor
from torch.autograd import Function

from . import fallbacks, ops, reference_norms
from .checks import check_choice, check_kan_linear
from .functional import BaseActivation
from .reference import scaled, spline_order

NORMS = ("l1", "std")
_ONCE_DIFFERENTIABLE = "the kernels differentiate edge norms once"


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
        ord: "l1", the mean of |phi| (the KAN paper's eq. 2.17); or "std", the unbiased standard deviation of phi (pykan's
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
    check_kan_linear(x, coef, grid, base_weight, base_activation, scaler)
    check_choice("ord", ord, NORMS)
    rows = x.reshape(-1, x.shape[-1])
    least = 1 if ord == "l1" else 2
    if rows.shape[0] < least:
        raise ValueError(f"x: expected at least {least} rows for ord {ord!r}, got shape {tuple(x.shape)}")
    grid = grid.detach()
    if base_weight is not None and callable(base_activation):
        if not torch.compiler.is_compiling():
            name = getattr(base_activation, "__name__", type(base_activation).__name__)
            fallbacks.note(f"edge norms with base activation {name}", "not fused, take the memory of every edge's values")
        values = reference_norms.edge_values(rows, coef, scaler, grid, None, "silu")
        return _dense_norms(values + base_activation(rows).unsqueeze(-1) * base_weight, ord).t()
    activation = base_activation if isinstance(base_activation, str) else "silu"
    if ops.uses_reference(x):
        return _dense_norms(reference_norms.edge_values(rows, coef, scaler, grid, base_weight, activation), ord).t()
    if ord == "l1":
        return EdgeL1.apply(rows, coef, scaler, grid, base_weight, activation).t()
    moments = BasisMoments.apply(rows, grid, spline_order(coef.shape[1], grid.shape[1]), activation)
    return _std(moments, scaled(coef, scaler), base_weight, rows.shape[0]).t()


def _dense_norms(values: Tensor, ord: str) -> Tensor:
    return values.abs().mean(0) if ord == "l1" else values.std(0)


def _std(moments: Tensor, coef: Tensor, base_weight: Tensor | None, rows: int) -> Tensor:
    """(I, O): Var phi = c^T Cov(basis) c, with the banded second moments that `reference_norms.basis_moments` lays out.

    The mean is first taken from the coefficients, or a spread small beside it would be lost: with s the mean, phi - s is the
    spline of coefficients c - s, the base, and -s e.
    """
    c, M = coef.double(), coef.shape[1]
    K = moments.shape[2] - 4
    w = torch.zeros_like(c[:, 0]) if base_weight is None else base_weight.double()

    def mean_of(c: Tensor, s: Tensor | float) -> Tensor:
        sums = (moments[:, :M, K + 3 :] * c).sum(1) + w * moments[:, M, K + 3 :] - s * moments[:, M + 1, K + 3 :]
        return sums / rows

    with torch.no_grad():
        s = mean_of(c, 0.0)
    c = c - s.unsqueeze(1)
    mean = mean_of(c, s)
    square = (moments[:, :M, :1] * c * c).sum(1)
    for d in range(1, min(K + 1, M)):
        square = square + 2 * (moments[:, : M - d, d : d + 1] * c[:, : M - d] * c[:, d:]).sum(1)
    for row, factor in ((M, w), (M + 1, -s)):
        column = K + 1 + row - M
        square = square + factor * (2 * (moments[:, :M, column : column + 1] * c).sum(1) + factor * moments[:, row, :1])
    square = square - 2 * w * s * moments[:, M, K + 2 : K + 3]
    variance = (square - rows * mean * mean) / (rows - 1)
    with torch.no_grad():  # of the terms that cancel
        eps = torch.finfo(torch.float64).eps
        terms = (K + 1) * (moments[:, :M, :1] * c * c).sum(1) + w * w * moments[:, M, :1] + s * s * moments[:, M + 1, :1]
        rounding = 8 * eps * terms / (rows - 1) + (16 * eps * s) ** 2
    vanishes = variance <= rounding
    return torch.where(vanishes, 0.0, torch.where(vanishes, 1.0, variance).sqrt()).to(coef.dtype)


class EdgeL1(Function):
    """Inputs x, coef, scaler, grid, base_weight, activation."""

    @staticmethod
    def forward(x, coef, scaler, grid, base_weight, activation):
        return ops.edge_l1(x, coef, scaler, grid, base_weight, activation)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.activation = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx, r):
        x, coef, scaler, grid, base_weight = ctx.saved_tensors
        needs = [ctx.needs_input_grad[k] for k in (0, 1, 2, 4)]
        operator = _differentiable("edge_l1_backward")
        gradients = operator(x, coef, scaler, grid, base_weight, ctx.activation, r, *needs)
        grad_x, grad_coef, grad_scaler, grad_base = (
            gradient if need else None for gradient, need in zip(gradients, needs, strict=True)
        )
        return grad_x, grad_coef, grad_scaler, None, grad_base, None


class BasisMoments(Function):
    """Inputs x, grid, K, activation."""

    @staticmethod
    def forward(x, grid, spline_order, activation):
        return ops.basis_moments(x, grid, spline_order, activation)

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, grid, ctx.spline_order, ctx.activation = inputs
        ctx.save_for_backward(x, grid)

    @staticmethod
    def backward(ctx, r):
        x, grid = ctx.saved_tensors
        operator = _differentiable("basis_moments_backward")
        return operator(x, grid, ctx.spline_order, ctx.activation, r.contiguous()), None, None, None


def _differentiable(name: str):
    """An operator of a backward; the reference's, which autograd can differentiate, where a graph of it is being built."""
    if not torch.is_grad_enabled():
        return getattr(ops, name)
    if not torch.compiler.is_compiling():
        fallbacks.note("second derivatives of edge norms run on the reference", _ONCE_DIFFERENTIABLE)
    return getattr(reference_norms, name)
