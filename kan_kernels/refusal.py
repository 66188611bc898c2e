"""Bad input where a graph must not break: the exception keeps its type and message.

torch's compiler turns what the code that it traces raises into an error of its own. What an operator raises when the compiler
asks for its shape passes, if it is one of the compiler's errors too. So checks that fail while code is traced end in an
operator, which raises when it is compiled what is both, and when it is called what it was told.
"""

import inspect

import torch
from torch import Tensor

_KINDS = {"TypeError": TypeError, "ValueError": ValueError}
_library = torch.library.Library("kan_kernels_checks", "DEF")
_library.define("refuse(Tensor x, str kind, str message) -> Tensor")


def _raise(x: Tensor, kind: str, message: str) -> Tensor:
    raise _KINDS[kind](message)


def _raise_to_the_compiler(x: Tensor, kind: str, message: str) -> Tensor:
    from torch._dynamo.exc import Unsupported

    both = type(kind, (Unsupported, _KINDS[kind]), {"__str__": lambda self: message})
    if "gb_type" in inspect.signature(Unsupported).parameters:
        raise both(message, gb_type=kind)
    raise both(message)


_library.impl("refuse", _raise, "CompositeExplicitAutograd")
torch.library.register_fake("kan_kernels_checks::refuse", _raise_to_the_compiler, lib=_library)


def refuse(x: object, error: TypeError | ValueError) -> Tensor:
    """Raise an error that a check raised while code was traced."""
    like = x if isinstance(x, Tensor) else torch.zeros(())
    kind = "TypeError" if isinstance(error, TypeError) else "ValueError"  # its type's name is not in old compilers' reach
    return torch.ops.kan_kernels_checks.refuse.default(like, kind, error.args[0])
