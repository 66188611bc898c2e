"""`torch.autocast`, as `F.linear` takes it: the operands in its type, sums in float32, gradients in the parameters' types."""

from typing import Any

import torch
from torch import Tensor

_CAST = (torch.float32, torch.bfloat16, torch.float16)  # as torch, never float64


def autocast(x: Any, *others: Any) -> tuple[Any, ...]:
    """x and the other operands in the type of the autocast region of x's device; as they are outside of one."""
    dtype = _region(x)
    if dtype is None:
        return (x, *others)
    return tuple(t.to(dtype) if isinstance(t, Tensor) and t.dtype in _CAST else t for t in (x, *others))


def autocast_knots(x: Any, grid: Any) -> Any:
    """Knots stay as accurate as they are; those of the other half type become float32."""
    dtype = _region(x)
    if dtype is None or not isinstance(grid, Tensor) or grid.dtype not in _CAST[1:] or grid.dtype is dtype:
        return grid
    return grid.float()


def same_dtype(x: Tensor, weight: Tensor) -> bool:
    """Whether x and weight have the same dtype, or get it from the autocast region of x's device."""
    return x.dtype is weight.dtype or (_region(x) is not None and x.dtype in _CAST and weight.dtype in _CAST)


def _region(x: Any) -> torch.dtype | None:
    device = x.device.type if isinstance(x, Tensor) else ""
    return torch.get_autocast_dtype(device) if device in ("cpu", "cuda") and torch.is_autocast_enabled(device) else None
