"""Argument errors under torch.compile that keep their type and message and do not break the graph.

torch.compile replaces exceptions raised in traced code by its own. An exception raised by an operator's fake kernel propagates
if it is also an instance of a compiler exception. Checks that fail during tracing therefore call an operator: its fake kernel
raises an exception of both types, and its eager kernel raises the original exception.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .torch_private import compiler_error

_KINDS = {"TypeError": TypeError, "ValueError": ValueError}
_library = torch.library.Library("kan_kernels_checks", "DEF")
_library.define("refuse(Tensor x, str kind, str message) -> Tensor")


def _raise(x: Tensor, kind: str, message: str) -> Tensor:
    raise _KINDS[kind](message)


def _raise_to_the_compiler(x: Tensor, kind: str, message: str) -> Tensor:
    error = compiler_error()
    both = type(kind, (error, _KINDS[kind]), {"__str__": lambda self: message})
    if "gb_type" in inspect.signature(error).parameters:
        raise both(message, gb_type=kind)
    raise both(message)


_library.impl("refuse", _raise, "CompositeExplicitAutograd")
torch.library.register_fake("kan_kernels_checks::refuse", _raise_to_the_compiler, lib=_library)


def _refuse(x: object, error: TypeError | ValueError) -> Tensor:
    """Return the result of the operator that raises an error which a check raised during tracing."""
    like = x if isinstance(x, Tensor) else torch.zeros(())
    kind = "TypeError" if isinstance(error, TypeError) else "ValueError"  # old compilers cannot trace type(error).__name__
    return torch.ops.kan_kernels_checks.refuse.default(like, kind, error.args[0])


def refused(check: Callable[..., None], x: Tensor, *others: Any) -> Tensor | None:
    """Check arguments. Under torch.compile, return a tensor whose tracing raises if the check failed, otherwise None."""
    if not torch.compiler.is_dynamo_compiling():
        check(x, *others)
        return None
    try:
        check(x, *others)
    except (TypeError, ValueError) as error:
        return _refuse(x, error)
    return None
