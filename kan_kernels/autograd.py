"""The operators' derivatives, registered with torch: wherever one is called, in a layer, a compiled graph or an exported one.

The three operators are the partial gradients of one form that is linear in w, spline_weight and g and whose x-derivative only
raises the order n, so each one's gradient and tangent is written with the three: derivatives to any order, in any nesting and
mode, run on the same kernels. Saved for backward: the inputs.

A Python kernel on torch's Autograd key serves every operator (a tangent is computed by hand there: in a Function's `jvp`
torch computes no further tangents, so that nested forward mode would be silently zero).
"""

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch._functorch.utils import enable_single_level_autograd_function
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction

from . import batching, flops, ops, reference
from .reference import scaled

_counted = False
_recording = threading.local()  # the dual tensors of a Function that is being recorded
_below_autograd = torch._C._AutoDispatchBelowAutograd
_functorch_is_active = torch._C._are_functorch_transforms_active


@contextmanager
def _recording_of(duals: tuple[Any, ...] | None) -> Iterator[None]:
    before, _recording.duals = getattr(_recording, "duals", None), duals
    try:
        yield
    finally:
        _recording.duals = before


class Differentiable(_SingleLevelFunction):
    """An operator that autograd records, whose backward reads its tensors from `ctx.saved_tensors` and `ctx.rest`.

    Not a `torch.autograd.Function`, whose `apply` leads away to functorch's levels, and binds default arguments first, a third
    of a small layer's time; this is what torch itself makes of one for every level.
    """

    operator: ClassVar[Any]
    tensors: ClassVar[int]  # how many of the operator's arguments are, or may be: the first ones
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
        return (ctx._autograd_function_id,)  # as torch.autograd.Function's

    @classmethod
    def recorded_with_tangents(cls, duals: tuple[Any, ...], primals: list[Any]) -> Any:
        """Record the primals; the backward reads the dual tensors, so that gradients have tangents."""
        with _recording_of(duals):
            return cls.recorded(*primals)

    @classmethod
    def forward(cls, *arguments: Any) -> Any:
        if not _functorch_is_active():
            return below(cls.operator, *arguments)
        # A Function turns both modes off, for functorch's lower levels too, which record Functions of their own.
        with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True), _recording_of(None):
            return below(cls.operator, *arguments)

    @classmethod
    def recorded(cls, *arguments: Any) -> Any:
        if not _functorch_is_active():
            return cls.apply(*arguments)
        with enable_single_level_autograd_function():  # the dispatcher is at one of functorch's levels already
            return cls.apply(*arguments)


def _plain() -> bool:
    """Whether no transform, tangent, tracer or compiler is under way."""
    if torch.compiler.is_compiling() or _transformed() or torch._C._get_tracing_state():
        return False
    _count_flops()
    return True


def _count_flops() -> None:
    global _counted
    _counted = _counted or flops.register_if_counted()


def _transformed() -> bool:
    return _functorch_is_active() or forward_ad._current_level >= 0


def _backward(operator: Any, *arguments: Any) -> Any:
    """An operator in a backward, which is recorded if that is."""
    return operator(*arguments) if torch.is_grad_enabled() or _transformed() else below(operator, *arguments)


def below(operator: Any, *arguments: Any) -> Any:
    """An operator's result, unrecorded."""
    with _below_autograd():
        return operator(*arguments)


def register(
    operator: Any,
    recorded: Callable[..., Any],
    tangents_too: Callable[..., Any],
    rule: Callable[..., Any],
) -> None:
    """Serve an operator on torch's Autograd key and under vmap.

    Args:
        recorded: called with the arguments where one requires a gradient and gradients are recorded.
        tangents_too: called with the arguments where one is a dual tensor; returns dual tensors.
        rule: the vmap rule, called with the operator, vmap's info, in_dims and the arguments.
    """

    def kernel(*arguments: Any) -> Any:
        _count_flops()
        if forward_ad._current_level >= 0 and any(t is not None for t in tangents_of(arguments)):
            return tangents_too(*arguments)
        if _is_recorded(arguments):
            return recorded(*arguments)
        return below(operator, *arguments)

    name = operator._schema.name
    ops.library.impl(name.partition("::")[2], kernel, "Autograd")
    torch.library.register_vmap(name, lambda info, dims, *a: rule(operator, info, dims, a), lib=ops.library)


def tangents_of(arguments: tuple[Any, ...]) -> list[Tensor | None]:
    """Every argument's tangent, None where it has none."""
    return [forward_ad.unpack_dual(a).tangent if isinstance(a, Tensor) else None for a in arguments]


def _by_tangents(function: type[Differentiable], tangent: Callable[..., Any]) -> Callable[..., Any]:
    """An operator on dual tensors; tangent(primals, tangents) is that of its result, or of every one of its results."""

    def tangents_too(*arguments: Any) -> Any:
        primals = [forward_ad.unpack_dual(a).primal if isinstance(a, Tensor) else a for a in arguments]
        if _is_recorded(arguments):
            values = function.recorded_with_tangents(arguments, primals)
        else:
            values = below(function.operator, *primals)
        tangents = tangent(primals, tangents_of(arguments))
        if isinstance(values, Tensor):
            return _dual(values, tangents)
        return tuple(_dual(value, t) for value, t in zip(values, tangents, strict=True))

    return tangents_too


def _dual(value: Tensor, tangent: Tensor | None) -> Tensor:
    return value if tangent is None else forward_ad.make_dual(value, tangent)


def _is_recorded(arguments: tuple[Any, ...]) -> bool:
    return torch.is_grad_enabled() and any(isinstance(a, Tensor) and a.requires_grad for a in arguments)


def wanted(gradients: Iterable[Tensor | None], needs: Iterable[bool]) -> Iterator[Tensor | None]:
    """Gradients as a backward returns them: None for the empty ones of arguments that need none."""
    return (gradient if need else None for gradient, need in zip(gradients, needs, strict=True))


def _times(w: Tensor | None, gradient: Tensor) -> Tensor:
    return gradient if w is None else w * gradient


class SplineForward(Differentiable):
    """Inputs x, w, spline_weight, spline_scaler, grid, base_weight, activation, n."""

    operator = ops.spline_forward

    @staticmethod
    def backward(ctx, g):
        x, w, spline_weight, spline_scaler, grid, base_weight = ctx.saved_tensors
        b, n = ctx.rest
        need_x, need_w, need_spline_weight, need_spline_scaler, _, need_base_weight, *_ = ctx.needs_input_grad
        tensors, needs = (spline_weight, spline_scaler, grid), (need_spline_weight, need_spline_scaler, need_base_weight)
        grad_x = grad_w = None
        gradients = (None, None, None)
        if need_w:
            grad_w = _backward(ops.spline_backward_input, x, g, *tensors, base_weight, b, n)
        if need_x and any(needs):
            grad_x, *gradients = _backward(ops.spline_backward, x, w, g, *tensors, base_weight, b, n, *needs)
        elif need_x:
            grad_x = _times(w, _backward(ops.spline_backward_input, x, g, *tensors, base_weight, b, n + 1))
        elif any(needs):
            order = reference.spline_order(spline_weight.shape[2], grid.shape[1])
            gradients = _backward(ops.spline_backward_weight, x, w, g, *tensors, order, b, n, *needs)
        grad_spline_weight, grad_spline_scaler, grad_base_weight = wanted(gradients, needs)
        return grad_x, grad_w, grad_spline_weight, grad_spline_scaler, None, grad_base_weight, None, None


def spline_forward(*arguments):
    """`ops.spline_forward`; what its kernel would do, without the dispatcher's way to it, a fifth of a small layer's time."""
    if not _plain():
        return ops.spline_forward(*arguments)
    if torch.is_grad_enabled():
        return SplineForward.apply(*arguments)
    return below(ops.spline_forward, *arguments)


def _forward_tangent(primals, tangents):
    x, w, spline_weight, spline_scaler, grid, base_weight, b, n = primals
    dx, dw, d_spline_weight, d_spline_scaler, _, d_base_weight, *_ = tangents
    terms = []
    if dx is not None:
        terms.append(ops.spline_forward(x, _times(w, dx), spline_weight, spline_scaler, grid, base_weight, b, n + 1))
    if dw is not None:
        terms.append(ops.spline_forward(x, dw, spline_weight, spline_scaler, grid, base_weight, b, n))
    if d_spline_weight is not None or d_base_weight is not None:
        d_spline_weight = _or_zeros(d_spline_weight, spline_weight)
        terms.append(ops.spline_forward(x, w, d_spline_weight, spline_scaler, grid, d_base_weight, b, n))
    if d_spline_scaler is not None:
        terms.append(ops.spline_forward(x, w, spline_weight, d_spline_scaler, grid, None, b, n))
    return _sum(terms)


class SplineBackwardInput(Differentiable):
    """Inputs x, g, spline_weight, None, grid, base_weight, activation, n."""

    operator = ops.spline_backward_input

    @staticmethod
    def backward(ctx, a):
        x, g, spline_weight, _, grid, base_weight = ctx.saved_tensors
        b, n = ctx.rest
        need_x, need_g, need_spline_weight, _, _, need_base_weight, *_ = ctx.needs_input_grad
        grad_x = a * ops.spline_backward_input(x, g, spline_weight, None, grid, base_weight, b, n + 1) if need_x else None
        grad_g = ops.spline_forward(x, a, spline_weight, None, grid, base_weight, b, n) if need_g else None
        gradients = (None, None, None)
        needs = (need_spline_weight, False, need_base_weight)
        if any(needs):
            order = reference.spline_order(spline_weight.shape[2], grid.shape[1])
            gradients = ops.spline_backward_weight(x, a, g, None, None, grid, order, b, n, *needs)
        grad_spline_weight, _, grad_base_weight = wanted(gradients, needs)
        return grad_x, grad_g, grad_spline_weight, None, None, grad_base_weight, None, None


def _unscaled_backward_input(way: Callable[..., Any]) -> Callable[..., Any]:
    """`ops.spline_backward_input` in a way that takes no spline_scaler: it becomes torch's product with spline_weight."""
    return lambda x, g, spline_weight, spline_scaler, *rest: way(x, g, scaled(spline_weight, spline_scaler), None, *rest)


def _backward_input_tangent(primals, tangents):
    x, g, spline_weight, _, grid, base_weight, b, n = primals
    dx, dg, d_spline_weight, _, _, d_base_weight, *_ = tangents
    terms = []
    if dx is not None:
        terms.append(dx * ops.spline_backward_input(x, g, spline_weight, None, grid, base_weight, b, n + 1))
    if dg is not None:
        terms.append(ops.spline_backward_input(x, dg, spline_weight, None, grid, base_weight, b, n))
    if d_spline_weight is not None or d_base_weight is not None:
        d_spline_weight = _or_zeros(d_spline_weight, spline_weight)
        terms.append(ops.spline_backward_input(x, g, d_spline_weight, None, grid, d_base_weight, b, n))
    return _sum(terms)


class SplineBackwardWeight(Differentiable):
    """Inputs x, w, g, None, None, grid, K, activation, n, need_spline_weight, False, need_base_weight."""

    operator = ops.spline_backward_weight

    @staticmethod
    def backward(ctx, d, _, d_base):
        x, w, g, _, _, grid = ctx.saved_tensors
        order, b, n, has_spline_weight, _, has_base_weight = ctx.rest
        need_x, need_w, need_g, *_ = ctx.needs_input_grad
        if not has_spline_weight:
            d = x.new_zeros(g.shape[1], x.shape[1], grid.shape[1] - order - 1)
        if not has_base_weight:
            d_base = None
        grad_x = _times(w, ops.spline_backward_input(x, g, d, None, grid, d_base, b, n + 1)) if need_x else None
        grad_w = ops.spline_backward_input(x, g, d, None, grid, d_base, b, n) if need_w else None
        grad_g = ops.spline_forward(x, w, d, None, grid, d_base, b, n) if need_g else None
        return grad_x, grad_w, grad_g, *(None,) * 9


def _unscaled_backward_weight(way: Callable[..., Any]) -> Callable[..., Any]:
    """`ops.spline_backward_weight` in a way that takes no spline_scaler: torch multiplies with it what it multiplies."""

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
        triples.append(ops.spline_backward_weight(x, _times(w, dx), g, None, None, grid, order, b, n + 1, *needs))
    if dw is not None:
        triples.append(ops.spline_backward_weight(x, dw, g, None, None, grid, order, b, n, *needs))
    if dg is not None:
        triples.append(ops.spline_backward_weight(x, w, dg, None, None, grid, order, b, n, *needs))
    return [_sum(list(terms)) for terms in zip(*triples, strict=True)] if triples else [None, None, None]


def _both_backward(x, w, g, spline_weight, spline_scaler, grid, base_weight, activation, derivative, *needs):
    """`ops.spline_backward` by the two others, which autograd records."""
    order = reference.spline_order(spline_weight.shape[2], grid.shape[1])
    of_x = ops.spline_backward_input(x, g, spline_weight, spline_scaler, grid, base_weight, activation, derivative + 1)
    rest = (grid, order, activation, derivative)
    return _times(w, of_x), *ops.spline_backward_weight(x, w, g, spline_weight, spline_scaler, *rest, *needs)


def _or_zeros(tangent: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if tangent is None else tangent


def _sum(terms: list[Tensor]) -> Tensor | None:
    if not terms:  # only arguments that do not matter have tangents
        return None
    total = terms[0]
    for term in terms[1:]:
        total = total + term
    return total


register(ops.spline_forward, SplineForward.recorded, _by_tangents(SplineForward, _forward_tangent), batching.forward)
register(
    ops.spline_backward_input,
    _unscaled_backward_input(SplineBackwardInput.recorded),
    _unscaled_backward_input(_by_tangents(SplineBackwardInput, _backward_input_tangent)),
    batching.backward_input,
)
register(
    ops.spline_backward_weight,
    _unscaled_backward_weight(SplineBackwardWeight.recorded),
    _unscaled_backward_weight(_by_tangents(SplineBackwardWeight, _backward_weight_tangent)),
    batching.backward_weight,
)
register(ops.spline_backward, _both_backward, _both_backward, batching.one_by_one)
