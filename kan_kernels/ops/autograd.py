"""Derivatives of the operators, registered with torch for eager mode, compiled graphs and exported graphs.

The three operators are the partial gradients of one form. The form is linear in w, spline_weight and g, and its derivative
with respect to x only raises the order n. The gradient and the tangent of each operator therefore use the same three
operators, and derivatives of any order, nesting and mode run on the same kernels. Only the inputs are saved for backward.

Every operator has a Python kernel for torch's Autograd key. The kernel computes tangents itself, because torch disables
forward mode inside a Function's `jvp`, and nested forward mode would silently return zeros.
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .. import reference
from ..reference import scaled
from ..utils.torch_private import (
    BelowAutograd,
    SingleLevelFunction,
    enable_forward_mode,
    enable_single_level_function,
    forward_mode_is_active,
    functorch_is_active,
    is_jit_tracing,
)
from . import flops, library, vmap

_counted = False
_recording = threading.local()  # the dual tensors of the Function being recorded


@contextmanager
def _recording_of(duals: tuple[Any, ...] | None) -> Iterator[None]:
    before, _recording.duals = getattr(_recording, "duals", None), duals
    try:
        yield
    finally:
        _recording.duals = before


class Differentiable(SingleLevelFunction):
    """An operator with a backward, which reads its arguments from `ctx.saved_tensors` and `ctx.rest`.

    It does not derive from `torch.autograd.Function`, whose `apply` dispatches to functorch and binds default arguments, which
    takes a third of the time of a small layer. torch itself converts a Function to this base class at every functorch level.
    """

    operator: ClassVar[Any]
    tensors: ClassVar[int]  # the number of leading arguments of the operator that are (optional) tensors
    apply: ClassVar[Callable[..., Any]]

    def __init_subclass__(cls) -> None:
        cls.tensors = sum("Tensor" in str(argument.type) for argument in cls.operator._schema.arguments)

    @classmethod
    def setup_context(cls, ctx, inputs, output):
        inputs = getattr(_recording, "duals", None) or inputs
        ctx.save_for_backward(*inputs[: cls.tensors])
        ctx.rest = inputs[cls.tensors :]

    @staticmethod
    def _compiled_autograd_key(ctx: Any) -> tuple[int, ...]:
        return (ctx._autograd_function_id,)  # same as in torch.autograd.Function

    @classmethod
    def apply_with_tangents(cls, duals: tuple[Any, ...], primals: list[Any]) -> Any:
        """Apply the Function to the primals. The backward reads the dual tensors, so gradients have tangents."""
        with _recording_of(duals):
            return cls.apply_at_any_level(*primals)

    @classmethod
    def forward(cls, *arguments: Any) -> Any:
        if not functorch_is_active():
            return call_below_autograd(cls.operator, *arguments)
        # A Function disables both modes, but lower functorch levels need them to record their own Functions.
        with torch.enable_grad(), enable_forward_mode(), _recording_of(None):
            return call_below_autograd(cls.operator, *arguments)

    @classmethod
    def apply_at_any_level(cls, *arguments: Any) -> Any:
        if not functorch_is_active():
            return cls.apply(*arguments)
        with enable_single_level_function():  # the dispatcher already runs at one functorch level
            return cls.apply(*arguments)


def _plain() -> bool:
    """Return whether no transform, forward-mode AD, tracer or compiler is active."""
    if torch.compiler.is_compiling() or _transformed() or is_jit_tracing():
        return False
    _count_flops()
    return True


def _count_flops() -> None:
    global _counted
    _counted = _counted or flops.register_if_counted()


def _transformed() -> bool:
    return functorch_is_active() or forward_mode_is_active()


def _backward(operator: Any, *arguments: Any) -> Any:
    """Call an operator in a backward. Autograd records the call only for double backward or under a transform."""
    return operator(*arguments) if torch.is_grad_enabled() or _transformed() else call_below_autograd(operator, *arguments)


def call_below_autograd(operator: Any, *arguments: Any) -> Any:
    """Call an operator without recording it for autograd."""
    with BelowAutograd():
        return operator(*arguments)


def register(
    operator: Any,
    apply: Callable[..., Any],
    jvp: Callable[..., Any],
    rule: Callable[..., Any],
) -> None:
    """Register an operator's kernel for torch's Autograd key and its vmap rule.

    Args:
        apply: called with the arguments if grad mode is on and one of them requires a gradient.
        jvp: called with the arguments if one of them is a dual tensor; returns dual tensors.
        rule: the vmap rule, called with the operator, vmap's info, in_dims and the arguments.
    """

    def kernel(*arguments: Any) -> Any:
        _count_flops()
        if forward_mode_is_active() and any(t is not None for t in tangents_of(arguments)):
            return jvp(*arguments)
        if _is_recorded(arguments):
            return apply(*arguments)
        return call_below_autograd(operator, *arguments)

    name = operator._schema.name
    library.LIBRARY.impl(name.partition("::")[2], kernel, "Autograd")
    torch.library.register_vmap(name, lambda info, dims, *a: rule(operator, info, dims, a), lib=library.LIBRARY)


def tangents_of(arguments: tuple[Any, ...]) -> list[Tensor | None]:
    """Return the tangent of every argument, or None."""
    return [forward_ad.unpack_dual(a).tangent if isinstance(a, Tensor) else None for a in arguments]


def _jvp(function: type[Differentiable], tangent: Callable[..., Any]) -> Callable[..., Any]:
    """Return the jvp of an operator on dual tensors. `tangent(primals, tangents)` returns the tangents of its results."""

    def jvp(*arguments: Any) -> Any:
        primals = [forward_ad.unpack_dual(a).primal if isinstance(a, Tensor) else a for a in arguments]
        if _is_recorded(arguments):
            values = function.apply_with_tangents(arguments, primals)
        else:
            values = call_below_autograd(function.operator, *primals)
        tangents = tangent(primals, tangents_of(arguments))
        if isinstance(values, Tensor):
            return _dual(values, tangents)
        return tuple(_dual(value, t) for value, t in zip(values, tangents, strict=True))

    return jvp


def _dual(value: Tensor, tangent: Tensor | None) -> Tensor:
    return value if tangent is None else forward_ad.make_dual(value, tangent)


def _is_recorded(arguments: tuple[Any, ...]) -> bool:
    return torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in arguments)


def drop_unneeded(gradients: Iterable[Tensor | None], needs: Iterable[bool]) -> Iterator[Tensor | None]:
    """Replace gradients that are not needed, which are empty tensors, by None."""
    return (gradient if need else None for gradient, need in zip(gradients, needs, strict=True))


def _times(w: Tensor | None, gradient: Tensor) -> Tensor:
    return gradient if w is None else w * gradient


class SplineForward(Differentiable):
    """Inputs x, w, spline_weight, spline_scaler, grid, base_weight, activation, n."""

    operator = library.spline_forward

    @staticmethod
    def backward(ctx, g):
        x, w, spline_weight, spline_scaler, grid, base_weight = ctx.saved_tensors
        b, n = ctx.rest
        need_x, need_w, need_spline_weight, need_spline_scaler, _, need_base_weight, *_ = ctx.needs_input_grad
        tensors, needs = (spline_weight, spline_scaler, grid), (need_spline_weight, need_spline_scaler, need_base_weight)
        grad_x = grad_w = None
        gradients = (None, None, None)
        if need_w:
            grad_w = _backward(library.spline_backward_input, x, g, *tensors, base_weight, b, n)
        if need_x and any(needs):
            grad_x, *gradients = _backward(library.spline_backward, x, w, g, *tensors, base_weight, b, n, *needs)
        elif need_x:
            grad_x = _times(w, _backward(library.spline_backward_input, x, g, *tensors, base_weight, b, n + 1))
        elif any(needs):
            order = reference.infer_spline_order(spline_weight.shape[2], grid.shape[1])
            gradients = _backward(library.spline_backward_weight, x, w, g, *tensors, order, b, n, *needs)
        grad_spline_weight, grad_spline_scaler, grad_base_weight = drop_unneeded(gradients, needs)
        return grad_x, grad_w, grad_spline_weight, grad_spline_scaler, None, grad_base_weight, None, None


def spline_forward(*arguments):
    """Call `library.spline_forward`, bypassing torch's dispatcher if only autograd is active; saves 20% in a small layer."""
    if not _plain():
        return library.spline_forward(*arguments)
    if torch.is_grad_enabled():
        return SplineForward.apply(*arguments)
    return call_below_autograd(library.spline_forward, *arguments)


def _forward_tangent(primals, tangents):
    x, w, spline_weight, spline_scaler, grid, base_weight, b, n = primals
    dx, dw, d_spline_weight, d_spline_scaler, _, d_base_weight, *_ = tangents
    terms = []
    if dx is not None:
        terms.append(library.spline_forward(x, _times(w, dx), spline_weight, spline_scaler, grid, base_weight, b, n + 1))
    if dw is not None:
        terms.append(library.spline_forward(x, dw, spline_weight, spline_scaler, grid, base_weight, b, n))
    if d_spline_weight is not None or d_base_weight is not None:
        d_spline_weight = _or_zeros(d_spline_weight, spline_weight)
        terms.append(library.spline_forward(x, w, d_spline_weight, spline_scaler, grid, d_base_weight, b, n))
    if d_spline_scaler is not None:
        terms.append(library.spline_forward(x, w, spline_weight, d_spline_scaler, grid, None, b, n))
    return _sum(terms)


class SplineBackwardInput(Differentiable):
    """Inputs x, g, spline_weight, None, grid, base_weight, activation, n."""

    operator = library.spline_backward_input

    @staticmethod
    def backward(ctx, a):
        x, g, spline_weight, _, grid, base_weight = ctx.saved_tensors
        b, n = ctx.rest
        need_x, need_g, need_spline_weight, _, _, need_base_weight, *_ = ctx.needs_input_grad
        grad_x = a * library.spline_backward_input(x, g, spline_weight, None, grid, base_weight, b, n + 1) if need_x else None
        grad_g = library.spline_forward(x, a, spline_weight, None, grid, base_weight, b, n) if need_g else None
        gradients = (None, None, None)
        needs = (need_spline_weight, False, need_base_weight)
        if any(needs):
            order = reference.infer_spline_order(spline_weight.shape[2], grid.shape[1])
            gradients = library.spline_backward_weight(x, a, g, None, None, grid, order, b, n, *needs)
        grad_spline_weight, _, grad_base_weight = drop_unneeded(gradients, needs)
        return grad_x, grad_g, grad_spline_weight, None, None, grad_base_weight, None, None


def _unscaled_backward_input(way: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a `library.spline_backward_input` that does not support spline_scaler: torch multiplies it into spline_weight."""
    return lambda x, g, spline_weight, spline_scaler, *rest: way(x, g, scaled(spline_weight, spline_scaler), None, *rest)


def _backward_input_tangent(primals, tangents):
    x, g, spline_weight, _, grid, base_weight, b, n = primals
    dx, dg, d_spline_weight, _, _, d_base_weight, *_ = tangents
    terms = []
    if dx is not None:
        terms.append(dx * library.spline_backward_input(x, g, spline_weight, None, grid, base_weight, b, n + 1))
    if dg is not None:
        terms.append(library.spline_backward_input(x, dg, spline_weight, None, grid, base_weight, b, n))
    if d_spline_weight is not None or d_base_weight is not None:
        d_spline_weight = _or_zeros(d_spline_weight, spline_weight)
        terms.append(library.spline_backward_input(x, g, d_spline_weight, None, grid, d_base_weight, b, n))
    return _sum(terms)


class SplineBackwardWeight(Differentiable):
    """Inputs x, w, g, None, None, grid, K, activation, n, need_spline_weight, False, need_base_weight."""

    operator = library.spline_backward_weight

    @staticmethod
    def backward(ctx, d, _, d_base):
        x, w, g, _, _, grid = ctx.saved_tensors
        order, b, n, has_spline_weight, _, has_base_weight = ctx.rest
        need_x, need_w, need_g, *_ = ctx.needs_input_grad
        if not has_spline_weight:
            d = x.new_zeros(g.shape[1], x.shape[1], grid.shape[1] - order - 1)
        if not has_base_weight:
            d_base = None
        grad_x = _times(w, library.spline_backward_input(x, g, d, None, grid, d_base, b, n + 1)) if need_x else None
        grad_w = library.spline_backward_input(x, g, d, None, grid, d_base, b, n) if need_w else None
        grad_g = library.spline_forward(x, w, d, None, grid, d_base, b, n) if need_g else None
        return grad_x, grad_w, grad_g, *(None,) * 9


def _unscaled_backward_weight(way: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a `library.spline_backward_weight` that does not support spline_scaler: torch applies it to the gradients."""

    def computed(x, w, g, spline_weight, spline_scaler, *rest):
        *others, need_spline_weight, need_spline_scaler, need_base_weight = rest
        needs = (need_spline_weight or need_spline_scaler, False, need_base_weight)
        unscaled, none, of_base_weight = way(x, w, g, None, None, *others, *needs)
        if spline_scaler is None:
            return unscaled, none, of_base_weight
        of_spline_weight = scaled(unscaled, spline_scaler) if need_spline_weight else torch.empty_like(none)
        of_spline_scaler = (unscaled * spline_weight).sum(-1) if need_spline_scaler else none
        return of_spline_weight, of_spline_scaler, of_base_weight

    return computed


def _backward_weight_tangent(primals, tangents):
    x, w, g, _, _, grid, order, b, n, *needs = primals
    dx, dw, dg, *_ = tangents
    triples = []
    if dx is not None:
        triples.append(library.spline_backward_weight(x, _times(w, dx), g, None, None, grid, order, b, n + 1, *needs))
    if dw is not None:
        triples.append(library.spline_backward_weight(x, dw, g, None, None, grid, order, b, n, *needs))
    if dg is not None:
        triples.append(library.spline_backward_weight(x, w, dg, None, None, grid, order, b, n, *needs))
    return [_sum(list(terms)) for terms in zip(*triples, strict=True)] if triples else [None, None, None]


def _both_backward(x, w, g, spline_weight, spline_scaler, grid, base_weight, activation, derivative, *needs):
    """Compute `library.spline_backward` with the two separate operators, which autograd records."""
    order = reference.infer_spline_order(spline_weight.shape[2], grid.shape[1])
    of_x = library.spline_backward_input(x, g, spline_weight, spline_scaler, grid, base_weight, activation, derivative + 1)
    rest = (grid, order, activation, derivative)
    return _times(w, of_x), *library.spline_backward_weight(x, w, g, spline_weight, spline_scaler, *rest, *needs)


def _or_zeros(tangent: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if tangent is None else tangent


def _sum(terms: list[Tensor]) -> Tensor | None:
    if not terms:  # only arguments without influence have tangents
        return None
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


register(library.spline_forward, SplineForward.apply_at_any_level, _jvp(SplineForward, _forward_tangent), vmap.forward)
register(
    library.spline_backward_input,
    _unscaled_backward_input(SplineBackwardInput.apply_at_any_level),
    _unscaled_backward_input(_jvp(SplineBackwardInput, _backward_input_tangent)),
    vmap.backward_input,
)
register(
    library.spline_backward_weight,
    _unscaled_backward_weight(SplineBackwardWeight.apply_at_any_level),
    _unscaled_backward_weight(_jvp(SplineBackwardWeight, _backward_weight_tangent)),
    vmap.backward_weight,
)
register(library.spline_backward, _both_backward, _both_backward, vmap.one_by_one)
