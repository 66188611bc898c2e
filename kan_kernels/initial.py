"""A layer's parameters at the start, drawn as efficient-kan draws them."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from .grid import uniform_knots
from .projection import interpolation_matrix
from .sharding import local, own_part, share_random_state


@torch.no_grad()
def draw(layer: Any) -> None:
    """`KANLinear.reset_parameters`: in efficient-kan's order base_weight, the splines' noise, spline_scaler.

    Drawn are whole (I, O) matrices, of which a sharded layer keeps its part: the numbers of one process with the first
    rank's seed.
    """
    share_random_state(layer.coef)
    knots = uniform_knots(layer.grid_size, layer.spline_order, *layer.grid_range)
    local(layer.grid).copy_(knots)
    if layer.base_coef is not None:
        _kaiming_uniform(layer.base_coef, layer.scale_base, layer)
    coef = local(layer.coef)
    shape, options = (layer.in_features, 1, layer.out_features), {"device": coef.device, "dtype": coef.dtype}
    noise = [own_part(torch.rand(shape, **options), layer.coef) for _ in range(layer.grid_size + 1)]
    values = (torch.cat(noise, 1) - 0.5) * (layer.scale_noise / layer.grid_size)
    fit = interpolation_matrix(knots, layer.grid_size, layer.spline_order).to(
        device=coef.device, dtype=torch.float32 if coef.dtype.itemsize == 2 else coef.dtype
    )
    coef.copy_(torch.einsum("mg,igo->imo", fit, values.to(fit.dtype)))
    if layer.scaler is None:
        coef.mul_(layer.scale_spline)
    else:
        _kaiming_uniform(layer.scaler, layer.scale_spline, layer)


def _kaiming_uniform(weight: Tensor, scale: float, layer: Any) -> None:
    """nn.init.kaiming_uniform_(a = sqrt(5) scale) of the (O, I) matrix that `weight (I, O)` transposes."""
    drawn = torch.empty(layer.out_features, layer.in_features, device=weight.device, dtype=weight.dtype)
    drawn = nn.init.kaiming_uniform_(drawn, a=math.sqrt(5) * scale).t()
    local(weight).copy_(own_part(drawn, weight))
