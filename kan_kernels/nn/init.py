"""Parameter initialisation, with the same distribution as efficient-kan."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..grid.knots import uniform_knots
from ..grid.refit import interpolation_matrix
from ..utils.dtensor import local, own_part, share_random_state


@torch.no_grad()
def draw(layer: Any) -> None:
    """Initialise a layer (`KANLinear.reset_parameters`) in efficient-kan's order: base_weight, spline noise, spline_scaler.

    A sharded layer draws full (O, I) matrices and keeps its shard, so the values are those of a single process with the first
    rank's seed.
    """
    share_random_state(layer.spline_weight)
    knots = uniform_knots(layer.grid_size, layer.spline_order, *layer.grid_range)
    local(layer.grid).copy_(knots)
    if layer.base_weight is not None:
        _kaiming_uniform(layer.base_weight, layer.scale_base, layer)
    weight = local(layer.spline_weight)
    values = (torch.cat([_noise(layer) for _ in range(layer.grid_size + 1)], 1) - 0.5) * (layer.scale_noise / layer.grid_size)
    fit = interpolation_matrix(knots, layer.grid_size, layer.spline_order).to(
        device=weight.device, dtype=torch.float32 if weight.dtype.itemsize == 2 else weight.dtype
    )
    weight.copy_(torch.einsum("mg,igo->imo", fit, values.to(fit.dtype)).permute(2, 0, 1))
    if layer.spline_scaler is None:
        weight.mul_(layer.scale_spline)
    else:
        _kaiming_uniform(layer.spline_scaler, layer.scale_spline, layer)


def _noise(layer: Any) -> Tensor:
    """Draw (I, 1, O) uniform numbers in [0, 1) for the spline values at one inner knot; the local part if sharded."""
    like = layer.spline_weight
    drawn = torch.rand(layer.in_features, 1, layer.out_features, device=like.device, dtype=like.dtype)
    return own_part(drawn.permute(2, 0, 1), like).permute(1, 2, 0)


def _kaiming_uniform(weight: Tensor, scale: float, layer: Any) -> None:
    """Apply `nn.init.kaiming_uniform_` with a = sqrt(5) * scale to weight (O, I)."""
    drawn = torch.empty(layer.out_features, layer.in_features, device=weight.device, dtype=weight.dtype)
    nn.init.kaiming_uniform_(drawn, a=math.sqrt(5) * scale)
    local(weight).copy_(own_part(drawn, weight))
