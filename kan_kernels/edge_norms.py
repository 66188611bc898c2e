"""`edge_norms`: how much every edge's function matters on a batch, without a tensor of every edge's values."""

import math
from typing import Any, cast

import torch
from torch import Tensor
from torch.autograd import Function

from . import fallbacks, ops, reference_norms
from .autocast import autocast, autocast_knots
from .checks import check_choice, check_kan_linear, rows_of, shape_of
from .functional import BaseActivation, refused, traced_under_functorch
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
    if unfused or ops.uses_reference(x) or traced_under_functorch():
        return _dense_norms(edge_values(rows, coef, grid, base_weight, base_activation, scaler), ord).t()
    activation = base_activation if isinstance(base_activation, str) else "silu"
    edges = (rows, coef, scaler, grid, base_weight, activation)
    return (EdgeL1.apply(*edges) if ord == "l1" else EdgeStd.apply(*edges)[0]).t()


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
        gradients = _edge_l1_backward()(x, coef, scaler, grid, base_weight, ctx.activation, r, *needs)
        grad_x, grad_coef, grad_scaler, grad_base = (
            gradient if need else None for gradient, need in zip(gradients, needs, strict=True)
        )
        return grad_x, grad_coef, grad_scaler, None, grad_base, None


class EdgeStd(Function):
    """Inputs x, coef, scaler, grid, base_weight, activation; outputs the norms and, for the backward, the bases' moments."""

    @staticmethod
    def forward(x, coef, scaler, grid, base_weight, activation):
        moments = ops.basis_moments(x, grid, spline_order(coef.shape[1], grid.shape[1]), activation)
        return ops.edge_std(moments, coef, scaler, base_weight, x.shape[0]), moments

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.activation = inputs
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(*tensors, output[1])

    @staticmethod
    def backward(ctx, r, _):
        x, coef, scaler, grid, base_weight, moments = ctx.saved_tensors
        needs = ctx.needs_input_grad[:5]
        if torch.is_grad_enabled():
            _note_second_derivative()
            # Of aliases: a tensor that is two of the arguments has two gradients.
            aliases: list[Any] = [None if t is None else t.view_as(t) for t in (x, coef, scaler, grid, base_weight)]
            std = cast(Any, reference_norms.edge_values)(*aliases, ctx.activation).std(0)
            wanted = [t for t, need in zip(aliases, needs, strict=True) if need]
            found = iter(torch.autograd.grad(std, wanted, r, create_graph=True))
            return *(next(found) if need else None for need in needs), None
        edges = (moments, coef, scaler, base_weight, x.shape[0])
        needed = (needs[0], needs[1], needs[2], needs[4])
        of_moments, *gradients = ops.edge_std_backward(*edges, r, *needed)
        grad_coef, grad_scaler, grad_base = (g if need else None for g, need in zip(gradients, needed[1:], strict=True))
        grad_x = None
        if needs[0]:
            order = spline_order(coef.shape[1], grid.shape[1])
            grad_x = ops.basis_moments_backward(x, grid, order, ctx.activation, of_moments)
        return grad_x, grad_coef, grad_scaler, None, grad_base, None


def _edge_l1_backward():
    """The operator; the reference's, which autograd can differentiate, where a graph of the backward is being built."""
    if not torch.is_grad_enabled():
        return ops.edge_l1_backward
    _note_second_derivative()
    return reference_norms.edge_l1_backward


def _note_second_derivative():
    if not torch.compiler.is_compiling():
        fallbacks.note("second derivatives of edge norms run on the reference", "the kernels differentiate them once")
