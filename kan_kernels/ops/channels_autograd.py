"""Derivatives of `spline_channels`. Its gradient has a kernel; derivatives of the gradient are composed of other operators."""

from typing import Any

from .. import reference
from . import library, vmap
from .autograd import Differentiable, drop_unneeded, register


class SplineChannels(Differentiable):
    """Inputs x, w, spline_weight, spline_scaler, grid, base_weight, activation, channels, orders."""

    operator = library.spline_channels

    @staticmethod
    def backward(ctx, g):
        x, w, spline_weight, spline_scaler, grid, base_weight = ctx.saved_tensors
        need_x, need_w, need_spline_weight, need_spline_scaler, _, need_base_weight, *_ = ctx.needs_input_grad
        needs = (need_x or need_w, need_spline_weight, need_spline_scaler, need_base_weight)
        gradients = library.spline_channels_backward(
            x, w, g, spline_weight, spline_scaler, grid, base_weight, *ctx.rest, *needs
        )
        of_x, of_w, *of_weights = drop_unneeded(gradients, (need_x, need_w, *needs[1:]))
        of_spline_weight, of_spline_scaler, of_base_weight = of_weights
        return of_x, of_w, of_spline_weight, of_spline_scaler, None, of_base_weight, None, None, None


def _composed(*arguments: Any) -> Any:
    """Compute `library.spline_channels` with `library.spline_forward`, which is differentiable in every mode."""
    return reference.spline_channels(*arguments, forward=library.spline_forward)


def _composed_backward(*arguments: Any) -> Any:
    """Compute `library.spline_channels_backward` with operators that are differentiable in every mode."""
    return reference.spline_channels_backward(
        *arguments, backward_input=library.spline_backward_input, backward_weight=library.spline_backward_weight
    )


register(library.spline_channels, SplineChannels.apply_at_any_level, _composed, vmap.channels)
register(library.spline_channels_backward, _composed_backward, _composed_backward, vmap.one_by_one)
