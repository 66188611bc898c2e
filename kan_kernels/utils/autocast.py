"""`torch.autocast` as in `F.linear`: operands are cast, sums are float32, and gradients have the parameters' dtypes."""

from typing import Any

import torch
from torch import Tensor

_CAST = (torch.float32, torch.bfloat16, torch.float16)  # like torch, float64 is not cast


def autocast(x: Any, *others: Any) -> tuple[Any, ...]:
    """Cast x and the other operands to the autocast dtype of the device of x. Without autocast, return them unchanged."""
    dtype = _region(x)
    if dtype is None:
        return (x, *others)
    return tuple(t.to(dtype) if isinstance(t, Tensor) and t.dtype in _CAST else t for t in (x, *others))


def autocast_knots(x: Any, grid: Any) -> Any:
    """Return the knots in their own precision. Under autocast, knots of the other half type are cast to float32."""
    dtype = _region(x)
    if dtype is None or not isinstance(grid, Tensor) or grid.dtype not in _CAST[1:] or grid.dtype is dtype:
        return grid
    return grid.float()


def same_dtype(x: Tensor, weight: Tensor) -> bool:
    """Return whether x and weight have the same dtype, or autocast casts both to the same dtype."""
    return x.dtype is weight.dtype or (_region(x) is not None and x.dtype in _CAST and weight.dtype in _CAST)


def _region(x: Any) -> torch.dtype | None:
    device = x.device.type if isinstance(x, Tensor) else ""
    return torch.get_autocast_dtype(device) if device in ("cpu", "cuda") and torch.is_autocast_enabled(device) else None
