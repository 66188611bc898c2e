"""A dispatch mode that measures allocations."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Allocations(TorchDispatchMode):
    """Record the size in bytes of the largest storage of any operator's result."""

    largest = 0

    def __torch_dispatch__(self, function, types, arguments=(), keywords=None):
        result = function(*arguments, **(keywords or {}))
        made = [t for t in (result if isinstance(result, tuple | list) else (result,)) if isinstance(t, torch.Tensor)]
        self.largest = max([self.largest, *(t.untyped_storage().nbytes() for t in made)])
        return result
