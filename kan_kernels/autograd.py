"""The autograd Functions around the three operators.

The operators are the partial gradients of one form that is linear in w, coef and g and whose x-derivative only raises the
order n, so each one's gradient is written with the three: derivatives to any order, in any nesting, run on the same kernels.
Saved for backward: the inputs. Only `SplineForward` knows the scaler; once a graph of its gradient is built the scaler is an
ordinary product with coef.
"""

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from . import batching, ops, reference
from .reference import scaled


def spline_forward(x, w, coef, scaler, grid, base_weight, activation, derivative):
    """Differentiable `ops.spline_forward`."""
    return _apply(SplineForward, SplineForwardJvp, x, w, coef, scaler, grid, base_weight, activation, derivative)


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
    # torch.compile refuses a Function that has a jvp, forward mode needs one.
    return (function if torch.compiler.is_compiling() else with_jvp).apply(*arguments)


class PositionalApply(Function):
    """`Function.apply` without its binding of default arguments: a third of a small layer's time, and nothing here has any."""

    @classmethod
    def apply(cls, *arguments):
        if _functorch_is_active():
            return super().apply(*arguments)
        if not torch.is_grad_enabled() and _forward_level() < 0:
            return cls.forward(*arguments)
        return super(Function, cls).apply(*arguments)  # type: ignore[misc]


# Not public; where a torch has no such questions, every call takes torch's own way.
_functorch_is_active = getattr(torch._C, "_are_functorch_transforms_active", lambda: True)


def _forward_level() -> int:
    return getattr(forward_ad, "_current_level", 0)


def _times(w: Tensor | None, gradient: Tensor) -> Tensor:
    return gradient if w is None else w * gradient


class SplineForward(Function):
    """Inputs x, w, coef, scaler, grid, base_weight, activation, n."""

    @staticmethod
    def forward(x, w, coef, scaler, grid, base_weight, activation, derivative):
        return ops.spline_forward(x, w, coef, scaler, grid, base_weight, activation, derivative)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.activation, ctx.derivative = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx, g):
        x, w, coef, scaler, grid, base_weight = ctx.saved_tensors
        b, n = ctx.activation, ctx.derivative
        need_x, need_w, need_coef, need_scaler, _, need_base, *_ = ctx.needs_input_grad
        grad_x = grad_w = grad_coef = grad_scaler = grad_base = None
        if torch.is_grad_enabled():
            effective = scaled(coef, scaler)
            if need_x:
                grad_x = _times(w, spline_backward_input(x, g, effective, grid, base_weight, b, n + 1))
            if need_w:
                grad_w = spline_backward_input(x, g, effective, grid, base_weight, b, n)
            gradient, grad_base = _coef_gradients(x, w, g, coef, grid, b, n, need_coef or need_scaler, need_base)
            if need_coef:
                grad_coef = scaled(gradient, scaler)
            if need_scaler:
                grad_scaler = (gradient * coef).sum(1)
        else:
            tensors, needs = (coef, scaler, grid), (need_coef, need_scaler, need_base)
            if need_w:
                grad_w = ops.spline_backward_input(x, g, *tensors, base_weight, b, n)
            gradients = (None, None, None)
            if need_x and any(needs):
                grad_x, *gradients = ops.spline_backward(x, w, g, *tensors, base_weight, b, n, *needs)
            elif need_x:
                grad_x = _times(w, ops.spline_backward_input(x, g, *tensors, base_weight, b, n + 1))
            elif any(needs):
                order = reference.spline_order(coef.shape[1], grid.shape[1])
                gradients = ops.spline_backward_coef(x, w, g, *tensors, order, b, n, *needs)
            grad_coef, grad_scaler, grad_base = (
                gradient if need else None for gradient, need in zip(gradients, needs, strict=True)
            )
        return grad_x, grad_w, grad_coef, grad_scaler, None, grad_base, None, None

    @staticmethod
    def vmap(info, in_dims, *arguments):
        return batching.forward(spline_forward, info, in_dims, arguments)


class SplineBackwardInput(Function):
    """Inputs x, g, coef, grid, base_weight, activation, n."""

    @staticmethod
    def forward(x, g, coef, grid, base_weight, activation, derivative):
        return ops.spline_backward_input(x, g, coef, None, grid, base_weight, activation, derivative)

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.activation, ctx.derivative = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx, a):
        x, g, coef, grid, base_weight = ctx.saved_tensors
        b, n = ctx.activation, ctx.derivative
        need_x, need_g, need_coef, _, need_base, *_ = ctx.needs_input_grad
        grad_x = a * spline_backward_input(x, g, coef, grid, base_weight, b, n + 1) if need_x else None
        grad_g = spline_forward(x, a, coef, None, grid, base_weight, b, n) if need_g else None
        grad_coef, grad_base = _coef_gradients(x, a, g, coef, grid, b, n, need_coef, need_base)
        return grad_x, grad_g, grad_coef, None, grad_base, None, None

    @staticmethod
    def vmap(info, in_dims, *arguments):
        return batching.backward_input(spline_backward_input, info, in_dims, arguments)


class SplineBackwardCoef(Function):
    """Inputs x, w, g, grid, K, activation, n, need_coef, need_base; outputs the gradients of coef and base_weight."""

    @staticmethod
    def forward(x, w, g, grid, spline_order, activation, derivative, need_coef, need_base):
        needs = (need_coef, False, need_base)
        gradients = ops.spline_backward_coef(x, w, g, None, None, grid, spline_order, activation, derivative, *needs)
        return gradients[0], gradients[2]

    @staticmethod
    def setup_context(ctx, inputs, output):
        *tensors, ctx.spline_order, ctx.activation, ctx.derivative, ctx.need_coef, ctx.need_base = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @staticmethod
    def backward(ctx, d, d_base):
        x, w, g, grid = ctx.saved_tensors
        b, n = ctx.activation, ctx.derivative
        need_x, need_w, need_g, *_ = ctx.needs_input_grad
        if not ctx.need_coef:
            d = x.new_zeros(x.shape[1], grid.shape[1] - ctx.spline_order - 1, g.shape[1])
        if not ctx.need_base:
            d_base = None
        grad_x = _times(w, spline_backward_input(x, g, d, grid, d_base, b, n + 1)) if need_x else None
        grad_w = spline_backward_input(x, g, d, grid, d_base, b, n) if need_w else None
        grad_g = spline_forward(x, w, d, None, grid, d_base, b, n) if need_g else None
        return grad_x, grad_w, grad_g, None, None, None, None, None, None

    @staticmethod
    def vmap(info, in_dims, *arguments):
        return batching.backward_coef(spline_backward_coef, info, in_dims, arguments)


def _coef_gradients(x, w, g, coef, grid, activation, derivative, need_coef, need_base):
    if not (need_coef or need_base):
        return None, None
    order = reference.spline_order(coef.shape[1], grid.shape[1])
    grad_coef, grad_base = spline_backward_coef(x, w, g, grid, order, activation, derivative, need_coef, need_base)
    return grad_coef if need_coef else None, grad_base if need_base else None


# Forward mode: the same closure, tangent by tangent. dPhi/dx adds a factor to w and one to the order.


class SplineForwardJvp(PositionalApply, SplineForward):
    """`SplineForward` with forward-mode derivatives."""

    @staticmethod
    def jvp(ctx, dx, dw, dcoef, dscaler, dgrid, dbase, *_):
        x, w, coef, scaler, grid, base_weight = ctx.saved_tensors
        b, n = ctx.activation, ctx.derivative
        effective = scaled(coef, scaler)
        terms = []
        if dx is not None:
            terms.append(spline_forward(x, _times(w, dx), effective, None, grid, base_weight, b, n + 1))
        if dw is not None:
            terms.append(spline_forward(x, dw, effective, None, grid, base_weight, b, n))
        if dcoef is not None:
            dcoef = scaled(dcoef, scaler)
        if dscaler is not None:
            dcoef = scaled(coef, dscaler) if dcoef is None else dcoef + scaled(coef, dscaler)
        if dcoef is not None or dbase is not None:
            terms.append(spline_forward(x, w, _or_zeros(dcoef, coef), None, grid, dbase, b, n))
        return _sum(terms)


class SplineBackwardInputJvp(PositionalApply, SplineBackwardInput):
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


class SplineBackwardCoefJvp(PositionalApply, SplineBackwardCoef):
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
