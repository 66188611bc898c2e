"""In which order the gradients of a layer's parameters lie in memory: one rule for every backend.

Their shapes are (O, I, M) and (O, I). pykan keeps its coefficients as (I, O, M), of which `spline_weight` is then a transposed
view: the gradients lie in memory as the coefficients do, so that autograd hands them to pykan's parameter without a copy.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def features_first(spline_weight: Tensor | None) -> bool:
    """Whether spline_weight (O, I, M) is a transposed view of a tensor (I, O, M)."""
    return spline_weight is not None and spline_weight.stride(1) > spline_weight.stride(0)


def new_gradient(like: Tensor, shape: Sequence[int], transposed: bool, dtype: torch.dtype | None = None) -> Tensor:
    """An uninitialised gradient of shape (O, I, ...), in memory (I, O, ...) if transposed; dtype and device of `like`."""
    if not transposed:
        return like.new_empty(shape, dtype=dtype)
    outputs, features, *rest = shape
    return like.new_empty(features, outputs, *rest, dtype=dtype).transpose(0, 1)


def laid_out(gradient: Tensor, transposed: bool) -> Tensor:
    """A gradient (O, I, ...), or an empty one (0,), in memory as `new_gradient` makes it."""
    if transposed and gradient.dim() > 1:
        return gradient.transpose(0, 1).contiguous().transpose(0, 1)
    return gradient.contiguous()
