"""A layer and sums of its derivatives: the definition of the operators for directional derivatives and Laplacians."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .spline import infer_spline_order, spline_backward_input, spline_backward_weight, spline_forward


def spline_channels(
    x: Tensor,
    w: Tensor,
    spline_weight: Tensor,
    spline_scaler: Tensor | None,
    grid: Tensor,
    base_weight: Tensor | None,
    activation: str,
    channels: Sequence[int],
    orders: Sequence[int],
    *,
    forward: Callable[..., Any] = spline_forward,
) -> Tensor:
    """Return y (C, N, O): the layer in channel 0, and sums of derivatives of its edges in the others.

    w is (P, N, I). y[c,n,o] is the sum over the p with channels[p] = c and over i of w[p,n,i] phi_{o,i}^(orders[p])(x[n,i]).
    Channels begin at 1, orders at 1, and C is the largest channel plus 1. `forward` is called for every term; the operators
    pass a kernel.
    """
    rest = (spline_weight, spline_scaler, grid, base_weight, activation)
    y = [forward(x, None, *rest, 0)]
    for channel in range(1, max(channels, default=0) + 1):
        terms = [forward(x, w[p], *rest, orders[p]) for p, c in enumerate(channels) if c == channel]
        y.append(sum(terms[1:], terms[0]) if terms else torch.zeros_like(y[0]))
    return torch.stack(y)


def spline_channels_backward(
    x: Tensor,
    w: Tensor,
    g: Tensor,
    spline_weight: Tensor,
    spline_scaler: Tensor | None,
    grid: Tensor,
    base_weight: Tensor | None,
    activation: str,
    channels: Sequence[int],
    orders: Sequence[int],
    need_input: bool,
    need_spline_weight: bool,
    need_spline_scaler: bool,
    need_base_weight: bool,
    *,
    backward_input: Callable[..., Any] = spline_backward_input,
    backward_weight: Callable[..., Any] = spline_backward_weight,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `spline_channels` for x, w, spline_weight, spline_scaler and base_weight; (0,) if not needed."""
    rest = (spline_weight, spline_scaler, grid, base_weight, activation)
    of_x, of_w = x.new_empty(0), x.new_empty(0)
    if need_input:
        of_x = backward_input(x, g[0], *rest, 1)
        planes = [backward_input(x, g[c], *rest, n) for c, n in zip(channels, orders, strict=True)]
        for p, (c, n) in enumerate(zip(channels, orders, strict=True)):
            of_x = of_x + w[p] * backward_input(x, g[c], *rest, n + 1)
        of_w = torch.stack(planes) if planes else torch.zeros_like(w)
    order = infer_spline_order(spline_weight.shape[2], grid.shape[1])
    needs = (need_spline_weight, need_spline_scaler, need_base_weight)
    factors = (spline_weight, spline_scaler, grid, order, activation)
    gradients = list(backward_weight(x, None, g[0], *factors, 0, *needs))
    for p, (c, n) in enumerate(zip(channels, orders, strict=True)):
        more = backward_weight(x, w[p], g[c], *factors, n, *needs)
        gradients = [total + term for total, term in zip(gradients, more, strict=True)]
    return of_x, of_w, gradients[0], gradients[1], gradients[2]
