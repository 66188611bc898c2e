"""All private names of torch that this library uses, with the reason, the first torch version and the test that covers it.

All of them exist in torch 2.10 to 2.13. They are not part of torch's stable API, so a new torch version is supported once the
tests pass with it.
"""

from typing import Any

import torch
from torch._functorch.utils import enable_single_level_autograd_function
from torch._subclasses import fake_tensor
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction

# `torch.autograd.Function.apply` first binds default arguments and queries functorch, which takes a third of the time of a
# small layer. This base class has the same C++ `apply`. Since 2.0. tests/test_transforms.py
SingleLevelFunction = _SingleLevelFunction

# Allows `SingleLevelFunction.apply` while a functorch transform is active, like functorch's own dispatch: an operator's kernel
# for the Autograd key already runs at one functorch level. Since 2.0. tests/test_transforms.py
enable_single_level_function = enable_single_level_autograd_function

# A context in which an operator runs its backend kernel and autograd records nothing. Under `torch.no_grad` the operator would
# run its kernel for the Autograd key and recurse infinitely. Since 1.8. tests/test_gradients.py
BelowAutograd = torch._C._AutoDispatchBelowAutograd

# Returns whether vmap, grad, jvp or another functorch transform is active. Since 2.1. tests/test_transforms.py
functorch_is_active = torch._C._are_functorch_transforms_active

# The tensors that torch.compile and torch.export trace with; they have no values to check. Since 2.0. tests/test_export.py
FakeTensor = fake_tensor.FakeTensor


def forward_mode_is_active() -> bool:
    """Return whether forward-mode AD is active. Since 1.11. tests/test_transforms.py"""
    return forward_ad._current_level >= 0


def enable_forward_mode() -> Any:
    """Return a context that enables tangents, which a Function's forward disables. Since 2.0. tests/test_transforms.py"""
    return forward_ad._set_fwd_grad_enabled(True)


def is_jit_tracing() -> Any:
    """Return a true value if `torch.jit.trace` is tracing; costs one C++ call. Since 1.0. tests/test_export.py"""
    return torch._C._get_tracing_state()


def compiler_error() -> type[Exception]:
    """Return the exception with which a traced operator can stop `torch.compile`. Since 2.0. tests/test_export.py

    The import is lazy because the compiler takes longer to import than torch.
    """
    from torch._dynamo.exc import Unsupported

    return Unsupported
