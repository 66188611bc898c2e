"""`spline_channels` and its gradient, composed of the kernels of a layer and its derivatives."""

from typing import Any

from .. import reference
from .backward_input import spline_backward_input
from .backward_weight import spline_backward_weight
from .forward import spline_forward


def spline_channels(*arguments: Any) -> Any:
    """See `reference.spline_channels`."""
    return reference.spline_channels(*arguments, forward=spline_forward)


def spline_channels_backward(*arguments: Any) -> Any:
    """See `reference.spline_channels_backward`."""
    return reference.spline_channels_backward(
        *arguments, backward_input=spline_backward_input, backward_weight=spline_backward_weight
    )
