"""A KAN layer on jets, recorded by autograd as one function that saves the jet alone."""

import torch
from torch import Tensor

from ..functional import kan_channels
from ..ops import spline_channels_backward
from ..utils.torch_private import forward_mode_is_active, functorch_is_active
from .jet import Jet, Term


def propagate_through_layer(
    jet: Jet, spline_weight: Tensor, grid: Tensor, base_weight: Tensor | None, scaler: Tensor | None, activation: str
) -> Jet:
    """Return the jet of `kan_linear` with a fused base activation."""
    arguments = (spline_weight, grid, base_weight, scaler, activation)
    if _is_plain(jet.channels, spline_weight, grid):
        return Jet(_Layer.apply(jet.channels, *arguments, jet.layout), jet.layout)
    return Jet(_composed(jet, *arguments), jet.layout)


def _composed(
    jet: Jet, spline_weight: Tensor, grid: Tensor, base_weight: Tensor | None, scaler: Tensor | None, activation: str
) -> Tensor:
    channels, orders = jet.layout.planes
    return kan_channels(jet.value, jet.planes(), channels, orders, spline_weight, grid, base_weight, scaler, activation)


def _is_plain(channels: Tensor, spline_weight: Tensor, grid: Tensor) -> bool:
    """Return whether `_Layer` can be used: autograd records, and nothing else is active; `kan_channels` checks the rest."""
    if torch.compiler.is_compiling() or not torch.is_grad_enabled() or channels.dtype is not spline_weight.dtype:
        return False
    if torch.is_autocast_enabled(channels.device.type) or channels.shape[0] < 2 or grid.requires_grad:
        return False
    return not (functorch_is_active() or forward_mode_is_active())


class _Layer(torch.autograd.Function):
    """Compute the planes again in the backward, in place of saving them and their factors.

    If the backward is itself differentiated, it is that of the composition.
    """

    @staticmethod
    def forward(ctx, channels, spline_weight, grid, base_weight, scaler, activation, layout):
        ctx.save_for_backward(channels, spline_weight, grid, base_weight, scaler)
        ctx.rest = activation, layout
        jet = Jet(channels, layout)
        return _composed(jet, spline_weight, grid, base_weight, scaler, activation)

    @staticmethod
    def backward(ctx, g):
        channels, spline_weight, grid, base_weight, scaler = ctx.saved_tensors
        activation, layout = ctx.rest
        need_channels, need_spline_weight, _, need_base_weight, need_scaler, *_ = ctx.needs_input_grad
        if torch.is_grad_enabled():
            inputs = [channels, spline_weight, base_weight, scaler]
            needs = [need_channels, need_spline_weight, need_base_weight, need_scaler]
            y = _composed(Jet(channels, layout), spline_weight, grid, base_weight, scaler, activation)
            wanted = [value for value, need in zip(inputs, needs, strict=True) if need]
            found = iter(torch.autograd.grad(y, wanted, g, create_graph=True))
            of_channels, of_spline_weight, of_base_weight, of_scaler = (next(found) if need else None for need in needs)
            return of_channels, of_spline_weight, None, of_base_weight, of_scaler, None, None
        jet = Jet(channels, layout)
        needed = (need_channels, need_spline_weight, need_scaler, need_base_weight)
        of_x, of_planes, of_spline_weight, of_scaler, of_base_weight = spline_channels_backward(
            jet.value,
            torch.stack(jet.planes()),
            g,
            spline_weight,
            scaler,
            grid,
            base_weight,
            activation,
            *layout.planes,
            *needed,
        )
        of_channels = _of_channels(jet, of_x, of_planes) if need_channels else None
        return (
            of_channels,
            of_spline_weight if need_spline_weight else None,
            None,
            of_base_weight if need_base_weight else None,
            of_scaler if need_scaler else None,
            None,
            None,
        )


def _of_channels(jet: Jet, of_x: Tensor, of_planes: Tensor) -> Tensor:
    """Return the gradient of the channels from those of the value and the planes: the transpose of `Jet.planes`."""
    gradient = torch.empty_like(jet.channels)
    gradient[0] = of_x
    # Every channel has a term of order 1, which is the channel itself: it comes first, so that nothing needs zeros.
    places = list(enumerate(zip(*jet.layout.planes, strict=True)))
    for plane, (channel, order) in places:
        if order == 1:
            gradient[channel] = of_planes[plane]
    of_channel = dict(jet.layout.terms)
    for plane, (channel, order) in places:
        for term in of_channel[channel]:
            if term.order == order > 1:
                _add_product_rule(gradient, of_planes[plane], term, jet)
    return gradient


def _add_product_rule(gradient: Tensor, of_product: Tensor, term: Term, jet: Jet) -> None:
    for place, channel in enumerate(term.channels):
        others = term.channels[:place] + term.channels[place + 1 :]
        factor = of_product
        for other in others[:-1]:
            factor = factor * jet.parts[other]
        gradient[channel].addcmul_(factor, jet.parts[others[-1]], value=term.factor)
