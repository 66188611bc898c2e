"""The memory layout of parameter gradients, the same for every backend.

Gradients have the shapes (O, I, M) and (O, I). pykan stores its coefficients as (I, O, M), and `spline_weight` is then a
transposed view. The gradients have the same memory layout, so autograd passes them to pykan's parameter without a copy.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def features_first(spline_weight: Tensor | None) -> bool:
    """Return whether spline_weight (O, I, M) is a transposed view of a tensor (I, O, M)."""
    return spline_weight is not None and spline_weight.stride(1) > spline_weight.stride(0)


def new_gradient(like: Tensor, shape: Sequence[int], transposed: bool, dtype: torch.dtype | None = None) -> Tensor:
    """Allocate a gradient (O, I, ...), stored as (I, O, ...) if transposed, with the device and default dtype of `like`."""
    if not transposed:
        return like.new_empty(shape, dtype=dtype)
    outputs, features, *rest = shape
    return like.new_empty(features, outputs, *rest, dtype=dtype).transpose(0, 1)


def laid_out(gradient: Tensor, transposed: bool) -> Tensor:
    """Return a gradient (O, I, ...), or an empty one (0,), in the memory layout of `new_gradient`."""
    if transposed and gradient.dim() > 1:
        return gradient.transpose(0, 1).contiguous().transpose(0, 1)
    return gradient.contiguous()
