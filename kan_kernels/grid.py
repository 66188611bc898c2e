"""Where knots are: equidistant, by the data's quantiles, or finer than before."""

from typing import Literal, get_args

import torch
from torch import Tensor

Quantiles = Literal["efficient-kan", "pykan"]
QUANTILES: tuple[Quantiles, ...] = get_args(Quantiles)
_MARGIN = {"efficient-kan": 0.01, "pykan": 0.0}
_SORTED_AT_ONCE = 1 << 20  # values in memory


def uniform_knots(grid_size: int, spline_order: int, low: float, high: float) -> Tensor:
    """The G + 2K + 1 equidistant knots (float64, on the CPU) whose inner G + 1 span [low, high]: arange(-K, G+K+1) h + low."""
    step = (high - low) / grid_size
    places = torch.arange(-spline_order, grid_size + spline_order + 1, dtype=torch.float64, device="cpu")
    return places * step + low


def data_knots(x: Tensor, grid_size: int, spline_order: int, grid_eps: float, margin: float | None, quantiles: str) -> Tensor:
    """(I, G+2K+1) in float64 from finite x (N, I): the data's quantiles blended with equidistant knots, K more on either side.

    As efficient-kan's and pykan's `update_grid` place them; increasing in the dtype of x whatever x is (`separated`). A
    feature whose values are all equal gets efficient-kan's margin and at least its share of equidistant knots.
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
    """(I, G+2K+1) from inner knots (I, G+1), float64: K more on either side at a distance of step (I,), apart in dtype."""
    K = spline_order
    step = torch.maximum(step, _resolution(inner.abs().amax(1), inner.shape[1] + 2 * K, dtype))
    beyond = torch.arange(1, K + 1, dtype=torch.float64, device=inner.device) * step.unsqueeze(1)
    knots = torch.cat([inner[:, :1] - beyond.flip(1), inner, inner[:, -1:] + beyond], dim=1)
    return separated(knots, dtype, 1e-3 * step)


def _resolution(size: Tensor, count: int, dtype: torch.dtype) -> Tensor:
    """How far apart `count` knots of up to `size` have to be, that rounding to dtype keeps them apart."""
    info = torch.finfo(dtype)
    room = 1 - min(2 * info.eps * count, 0.75)  # of the knots that moving them apart makes larger
    return (2 * info.eps * size / room).clamp_min(info.tiny**0.5)  # the inverse's third power is finite


def separated(knots: Tensor, dtype: torch.dtype, least: Tensor | None = None) -> Tensor:
    """knots (I, T), float64, non-decreasing, moved apart where they are closer than dtype resolves, or than `least` (I,)."""
    distance = _resolution(knots.abs().amax(1), knots.shape[1], dtype)
    if least is not None:
        distance = torch.maximum(distance, least)
    offsets = torch.arange(knots.shape[1], dtype=knots.dtype, device=knots.device) * distance.unsqueeze(1)
    up = (knots - offsets).cummax(1).values + offsets
    down = (knots - offsets).flip(1).cummin(1).values.flip(1) + offsets
    apart = (up + down) / 2  # both keep their distance, and the mean covers what the knots did
    crowded = (knots.diff(dim=1) < distance.unsqueeze(1)).any(1, keepdim=True)
    return torch.where(crowded, apart, knots)


def refined_knots(grid: Tensor, spline_order: int, grid_size: int) -> Tensor:
    """(I, grid_size+2K+1): the inner knots of grid (I, G+2K+1) interpolated between them, the K on either side kept.

    A multiple of G contains all of the old knots.
    """
    K, G = spline_order, grid.shape[1] - 2 * spline_order - 1
    inner = grid[:, K : K + G + 1]
    place = torch.arange(grid_size + 1, device=grid.device) * G
    below = (place // grid_size).clamp_max(G - 1)
    share = (place - below * grid_size).to(grid.dtype) / grid_size
    between = torch.lerp(inner[:, below], inner[:, below + 1], share)
    return torch.cat([grid[:, :K], between, grid[:, K + G + 1 :]], dim=1)
