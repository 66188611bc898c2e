"""`kan_linear`: argument checks, and the autograd Functions around the three operators.

The operators are the partial gradients of one form that is linear in w, coef and g and whose x-derivative only raises the
order n, so each one's gradient is written with the three (equations beside the code): derivatives to any order, in any
nesting, run on the same kernels. Saved for backward: the inputs.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import Function

from . import batching, fallbacks, ops, reference
from .checks import check_kan_linear

BaseActivation = str | Callable[[Tensor], Tensor] | None


def kan_linear(
    x: Tensor,
    coef: Tensor,
    grid: Tensor,
    base_weight: Tensor | None = None,
    *,
    base_activation: BaseActivation = "silu",
) -> Tensor:
    """A KAN layer: y[..., o] = sum_i ( base_weight[i,o] b(x[..., i]) + sum_m coef[i,m,o] beta_{i,m}(x[..., i]) ).

    beta_{i,m} are the M = G + K B-splines of degree K on the knots of feature i, zero outside of them (Liu et al., "KAN:
    Kolmogorov-Arnold Networks", eq. 2.10 to 2.12; the half-open intervals of efficient-kan and pykan). K and G follow from
    the shapes: K = grid.shape[1] - M - 1.

    Args:
        x: (..., I), float64, float32, bfloat16 or float16. Any leading dimensions, any strides.
        coef: (I, M, O), dtype and device of x.
        grid: (I, G+2K+1), the knots of every feature in increasing order, dtype of x or wider. Not checked for order on
            every call. Its values are constants: no gradient reaches them.
        base_weight: (I, O), dtype and device of x, or None for no base activation.
        base_activation: b. "silu" and "identity" are fused; any other callable, elementwise on tensors, runs in plain torch.

    Returns:
        (..., O), dtype of x. Half types accumulate in float32.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: an argument has the wrong rank, size or device, or the grid leaves no degree K >= 0 and G >= 1.

    Equivalent to (`kan_kernels.reference`):
        bases = reference.basis(x, grid, degree=K)                      # (N, I, M), Cox-de Boor
        y = bases.flatten(1) @ coef.flatten(0, 1) + silu(x) @ base_weight
    """
    check_kan_linear(x, coef, grid, base_weight, base_activation)
    rows = x.reshape(-1, x.shape[-1]) if x.dim() != 2 else x
    fused = base_activation if isinstance(base_activation, str) else None
    fused_weight = base_weight if fused is not None else None
    if ops.uses_reference(x):
        y = reference.kan_linear(rows, coef, grid, fused_weight, fused or "silu")
    else:
        y = spline_forward(rows, None, coef, grid, fused_weight, fused or "silu", 0)
    if base_weight is not None and callable(base_activation):
        if not torch.compiler.is_compiling():
            name = getattr(base_activation, "__name__", type(base_activation).__name__)
            fallbacks.note(f"base activation {name}", "not fused, runs in plain torch")
        y = y + base_activation(rows) @ base_weight
    return y.view(*x.shape[:-1], y.shape[-1]) if x.dim() != 2 else y


def spline_forward(x, w, coef, grid, base_weight, activation, derivative):
    """Differentiable `ops.spline_forward`."""
    return _apply(SplineForward, SplineForwardJvp, x, w, coef, grid, base_weight, activation, derivative)


def spline_backward_input(x, g, coef, grid, base_weight, activation, derivative):
    """Differentiable `ops.spline_backward_input`."""
    return _apply(SplineBackwardInput, SplineBackwardInputJvp, x, g, coef, grid, base_weight, activation, derivative)


def spline_backward_coef(x, w, g, grid, spline_order, activation, derivative, need_coef, need_base):
    """Differentiable `ops.spline_backward_coef`."""
    return _apply(
        SplineBackwardCoef,
        SplineBackwardCoefJvp,
        x,
        w,
        g,
        grid,
        spline_order,
        activation,
        derivative,
        need_coef,
        need_base,
    )


def _apply(function, with_jvp, *arguments):
    # torch.compile refuses a Function that has a jvp, forward-mode needs one.
    return (function if torch.compiler.is_compiling() else with_jvp).apply(*arguments)


def _kernels():
    """The operators to write a gradient with: differentiable ones while a graph of the gradient is being built."""
    return _DIFFERENTIABLE if torch.is_grad_enabled() else ops


def _times(w: Tensor | None, gradient: Tensor) -> Tensor:
    return gradient if w is None else w * gradient


class SplineForward(Function):
    """Inputs x, w, coef, grid, base_weight, activation, n."""

    @staticmethod
    def forward(x, w, coef, grid, base_weight, activation, derivative):
        return ops.spline_forward(x, w, coef, grid, base_weight, activation, derivative)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.activation, ctx.derivative = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx, g):
        x, w, coef, grid, base_weight = ctx.saved_tensors
        k, b, n = _kernels(), ctx.activation, ctx.derivative
        need_x, need_w, need_coef, _, need_base, *_ = ctx.needs_input_grad
        grad_x = _times(w, k.spline_backward_input(x, g, coef, grid, base_weight, b, n + 1)) if need_x else None
        grad_w = k.spline_backward_input(x, g, coef, grid, base_weight, b, n) if need_w else None
        grad_coef, grad_base = _coef_gradients(k, x, w, g, coef, grid, b, n, need_coef, need_base)
        return grad_x, grad_w, grad_coef, None, grad_base, None, None

    @staticmethod
    def vmap(info, in_dims, *arguments):
        return batching.forward(spline_forward, info, in_dims, arguments)


class SplineBackwardInput(Function):
    """Inputs x, g, coef, grid, base_weight, activation, n."""

    @staticmethod
    def forward(x, g, coef, grid, base_weight, activation, derivative):
        return ops.spline_backward_input(x, g, coef, grid, base_weight, activation, derivative)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.activation, ctx.derivative = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx, a):
        x, g, coef, grid, base_weight = ctx.saved_tensors
        k, b, n = _kernels(), ctx.activation, ctx.derivative
        need_x, need_g, need_coef, _, need_base, *_ = ctx.needs_input_grad
        grad_x = a * k.spline_backward_input(x, g, coef, grid, base_weight, b, n + 1) if need_x else None
        grad_g = k.spline_forward(x, a, coef, grid, base_weight, b, n) if need_g else None
        grad_coef, grad_base = _coef_gradients(k, x, a, g, coef, grid, b, n, need_coef, need_base)
        return grad_x, grad_g, grad_coef, None, grad_base, None, None

    @staticmethod
    def vmap(info, in_dims, *arguments):
        return batching.backward_input(spline_backward_input, info, in_dims, arguments)


class SplineBackwardCoef(Function):
    """Inputs x, w, g, grid, K, activation, n, need_coef, need_base; outputs the gradients of coef and base_weight."""

    @staticmethod
    def forward(x, w, g, grid, spline_order, activation, derivative, need_coef, need_base):
        return ops.spline_backward_coef(x, w, g, grid, spline_order, activation, derivative, need_coef, need_base)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.spline_order, ctx.activation, ctx.derivative, ctx.need_coef, ctx.need_base = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx, d, d_base):
        x, w, g, grid = ctx.saved_tensors
        k, b, n = _kernels(), ctx.activation, ctx.derivative
        need_x, need_w, need_g, *_ = ctx.needs_input_grad
        if not ctx.need_coef:
            d = x.new_zeros(x.shape[1], grid.shape[1] - ctx.spline_order - 1, g.shape[1])
        if not ctx.need_base:
            d_base = None
        grad_x = _times(w, k.spline_backward_input(x, g, d, grid, d_base, b, n + 1)) if need_x else None
        grad_w = k.spline_backward_input(x, g, d, grid, d_base, b, n) if need_w else None
        grad_g = k.spline_forward(x, w, d, grid, d_base, b, n) if need_g else None
        return grad_x, grad_w, grad_g, None, None, None, None, None, None

    @staticmethod
    def vmap(info, in_dims, *arguments):
        return batching.backward_coef(spline_backward_coef, info, in_dims, arguments)


def _coef_gradients(k, x, w, g, coef, grid, activation, derivative, need_coef, need_base):
    if not (need_coef or need_base):
        return None, None
    order = reference.spline_order(coef.shape[1], grid.shape[1])
    grad_coef, grad_base = k.spline_backward_coef(x, w, g, grid, order, activation, derivative, need_coef, need_base)
    return grad_coef if need_coef else None, grad_base if need_base else None


# Forward mode: the same closure, tangent by tangent. dPhi/dx adds a factor to w and one to the order.


class SplineForwardJvp(SplineForward):
    """`SplineForward` with forward-mode derivatives."""

    @staticmethod
    def jvp(ctx, dx, dw, dcoef, dgrid, dbase, *_):
        x, w, coef, grid, base_weight = ctx.saved_tensors
        b, n = ctx.activation, ctx.derivative
        terms = []
        if dx is not None:
            terms.append(spline_forward(x, _times(w, dx), coef, grid, base_weight, b, n + 1))
        if dw is not None:
            terms.append(spline_forward(x, dw, coef, grid, base_weight, b, n))
        if dcoef is not None or dbase is not None:
            terms.append(spline_forward(x, w, _or_zeros(dcoef, coef), grid, dbase, b, n))
        return _sum(terms)


class SplineBackwardInputJvp(SplineBackwardInput):
    """`SplineBackwardInput` with forward-mode derivatives."""

    @staticmethod
    def jvp(ctx, dx, dg, dcoef, dgrid, dbase, *_):
        x, g, coef, grid, base_weight = ctx.saved_tensors
        b, n = ctx.activation, ctx.derivative
        terms = []
        if dx is not None:
            terms.append(dx * spline_backward_input(x, g, coef, grid, base_weight, b, n + 1))
        if dg is not None:
            terms.append(spline_backward_input(x, dg, coef, grid, base_weight, b, n))
        if dcoef is not None or dbase is not None:
            terms.append(spline_backward_input(x, g, _or_zeros(dcoef, coef), grid, dbase, b, n))
        return _sum(terms)


class SplineBackwardCoefJvp(SplineBackwardCoef):
    """`SplineBackwardCoef` with forward-mode derivatives."""

    @staticmethod
    def jvp(ctx, dx, dw, dg, *_):
        x, w, g, grid = ctx.saved_tensors
        rest = (grid, ctx.spline_order, ctx.activation)
        n, needs = ctx.derivative, (ctx.need_coef, ctx.need_base)
        pairs = []
        if dx is not None:
            pairs.append(spline_backward_coef(x, _times(w, dx), g, *rest, n + 1, *needs))
        if dw is not None:
            pairs.append(spline_backward_coef(x, dw, g, *rest, n, *needs))
        if dg is not None:
            pairs.append(spline_backward_coef(x, w, dg, *rest, n, *needs))
        return _sum([p[0] for p in pairs]), _sum([p[1] for p in pairs])


def _or_zeros(tangent: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if tangent is None else tangent


def _sum(terms: list[Tensor]) -> Tensor:
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


class _DIFFERENTIABLE:
    spline_forward = staticmethod(spline_forward)
    spline_backward_input = staticmethod(spline_backward_input)
    spline_backward_coef = staticmethod(spline_backward_coef)
