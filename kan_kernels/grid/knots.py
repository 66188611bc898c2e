"""Construction of knots: equidistant, from quantiles of the data, or refined."""

from typing import Literal, get_args

import torch
from torch import Tensor

Quantiles = Literal["efficient-kan", "pykan"]
QUANTILES: tuple[Quantiles, ...] = get_args(Quantiles)
_MARGIN = {"efficient-kan": 0.01, "pykan": 0.0}
_SORTED_AT_ONCE = 1 << 20  # values per sort, to bound memory


def uniform_knots(grid_size: int, spline_order: int, low: float, high: float) -> Tensor:
    """Return G + 2K + 1 equidistant knots, arange(-K, G+K+1) h + low (float64, CPU). The inner G + 1 span [low, high]."""
    step = (high - low) / grid_size
    places = torch.arange(-spline_order, grid_size + spline_order + 1, dtype=torch.float64, device="cpu")
    return places * step + low


def data_knots(x: Tensor, grid_size: int, spline_order: int, grid_eps: float, margin: float | None, quantiles: str) -> Tensor:
    """Return knots (I, G+2K+1), float64, for finite x (N, I): quantiles blended with equidistant knots, plus K on either side.

    The rule is that of `update_grid` in efficient-kan or pykan. For any x, `separated` makes the knots increasing in the dtype
    of x. A constant feature gets at least efficient-kan's margin and its fraction of equidistant knots.
    """
    G, K, N = grid_size, spline_order, x.shape[0]
    if quantiles == "pykan":
        places = [int(N / G * i) for i in range(G)] + [N - 1]
    else:
        places = torch.linspace(0, N - 1, G + 1, dtype=torch.int64, device="cpu").tolist()
    parts = x.split(max(1, _SORTED_AT_ONCE // N), dim=1)
    adaptive = torch.cat([part.sort(dim=0).values[places] for part in parts], dim=1).double()
    low, high = adaptive[0], adaptive[-1]
    spreads = high > low
    given = _MARGIN[quantiles] if margin is None else margin
    margins = torch.full_like(low, given).where(spreads, max(given, _MARGIN["efficient-kan"]))
    blend = torch.full_like(low, grid_eps).where(spreads, max(grid_eps, 0.02))
    step = (high - low + 2 * margins) / G
    count = torch.arange(G + 1, dtype=torch.float64, device=x.device).unsqueeze(1)
    inner = blend * (count * step + low - margins) + (1 - blend) * adaptive
    return extended(inner.t(), K, step, x.dtype)


def extended(inner: Tensor, spline_order: int, step: Tensor, dtype: torch.dtype) -> Tensor:
    """Extend inner knots (I, G+1), float64, by K knots on either side, spaced by step (I,) and distinct in dtype."""
    K = spline_order
    step = torch.maximum(step, _resolution(inner.abs().amax(1), inner.shape[1] + 2 * K, dtype))
    beyond = torch.arange(1, K + 1, dtype=torch.float64, device=inner.device) * step.unsqueeze(1)
    knots = torch.cat([inner[:, :1] - beyond.flip(1), inner, inner[:, -1:] + beyond], dim=1)
    return separated(knots, dtype, 1e-3 * step)


def _resolution(size: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    """Return the spacing at which `count` knots of magnitude up to `size` remain distinct when rounded to dtype."""
    info = torch.finfo(dtype)
    room = 1 - min(2 * info.eps * count, 0.75)  # separating the knots increases their magnitude
    return (2 * info.eps * size / room).clamp_min(info.tiny**0.5)  # keeps 1 / spacing^3 finite


def separated(knots: Tensor, dtype: torch.dtype, least: Tensor | None = None) -> Tensor:
    """Separate non-decreasing knots (I, T), float64, that are closer than the resolution of dtype or than `least` (I,)."""
    distance = _resolution(knots.abs().amax(1), knots.shape[1], dtype)
    if least is not None:
        distance = torch.maximum(distance, least)
    offsets = torch.arange(knots.shape[1], dtype=knots.dtype, device=knots.device) * distance.unsqueeze(1)
    up = (knots - offsets).cummax(1).values + offsets
    down = (knots - offsets).flip(1).cummin(1).values.flip(1) + offsets
    apart = (up + down) / 2  # both have the required spacing; their mean covers the range of the knots
    crowded = (knots.diff(dim=1) < distance.unsqueeze(1)).any(1, keepdim=True)
    return torch.where(crowded, apart, knots)


def refined_knots(grid: Tensor, spline_order: int, grid_size: int) -> Tensor:
    """Interpolate the inner knots of grid (I, G+2K+1) to (I, grid_size+2K+1), keeping the K knots on either side.

    If grid_size is a multiple of G, the result contains all of the old knots.
    """
    K, G = spline_order, grid.shape[1] - 2 * spline_order - 1
    inner = grid[:, K : K + G + 1]
    place = torch.arange(grid_size + 1, device=grid.device) * G
    below = (place // grid_size).clamp_max(G - 1)
    share = (place - below * grid_size).to(grid.dtype) / grid_size
    between = torch.lerp(inner[:, below], inner[:, below + 1], share)
    return torch.cat([grid[:, :K], between, grid[:, K + G + 1 :]], dim=1)
