"""`torch.autocast`, as `F.linear` takes it: the operands in its type, sums in float32, gradients in the parameters' types."""

from typing import Any

import torch
from torch import Tensor

_CAST = (torch.float32, torch.bfloat16, torch.float16)  # as torch, never float64


def autocast(x: Any, *others: Any) -> tuple[Any, ...]:
    """x and the other operands in the type of the autocast region of x's device; as they are outside of one."""
    device = x.device.type if isinstance(x, Tensor) else ""
    if device not in ("cpu", "cuda") or not torch.is_autocast_enabled(device):
        return (x, *others)
    dtype = torch.get_autocast_dtype(device)
    return tuple(t.to(dtype) if isinstance(t, Tensor) and t.dtype in _CAST else t for t in (x, *others))
