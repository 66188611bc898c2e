"""In-place replacement of a module's class with a fused subclass.

Only `__class__` changes. Parameters, `state_dict` keys, hooks, optimizers and other references to the module remain valid.
Assigning the original class undoes the replacement.
"""

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

from torch import Tensor, nn

from ..utils.checks import DTYPES

_classes: dict[tuple[type, type], type] = {}


class Fused:
    """Base class of mixins for another library's class `peer`; `replaced` lists the methods that the mixin overrides."""

    replaced: ClassVar[tuple[str, ...]] = ("forward",)
    peer: ClassVar[type[nn.Module]]
    mixin: ClassVar[type["Fused"]]

    def forget(self) -> None:
        """Convert the state that only the fused class can read, before the original class is restored."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Support copy and pickle, since the fused class cannot be imported by name."""
        reduced: Any = super().__reduce_ex__(protocol)
        return _revived, (self.mixin, self.peer), *reduced[2:]


Exchange = tuple[nn.Module, type[Fused]]


@dataclass(frozen=True)
class Verdict:
    """The result of examining a module that resembles a supported one."""

    reason: str = ""  # why the module is not replaced, "" if it is
    exchanges: tuple[Exchange, ...] = ()  # the modules to replace (itself and submodules) and their mixins
    left: Mapping[str, str] = field(default_factory=dict)  # the submodules that are not replaced, and why


def exchange_classes(exchanges: Iterable[Exchange]) -> None:
    """Fuse every module with its mixin, a shared module once; if one raises, undo all and raise."""
    done = []
    try:
        for module, mixin in {id(module): (module, mixin) for module, mixin in exchanges}.values():
            fuse(module, mixin)
            done.append(module)
    except BaseException:
        for module in done:
            unfuse(module)
        raise


def fuse(module: nn.Module, mixin: type[Fused]) -> None:
    """Replace the module's class with a subclass that has the mixin's methods."""
    module.__class__ = fused_class(mixin, type(module))


def unfuse(module: nn.Module) -> bool:
    """Restore the original class of a fused module. Return False if its class was changed again, as parametrizations do."""
    fused = cast(Any, module)
    if type(module) is not fused_class(fused.mixin, fused.peer):
        return False
    fused.forget()
    fused.__class__ = fused.peer
    return True


def own_class(module: nn.Module) -> type[nn.Module]:
    """Return the module's class, or the original class of a fused module."""
    return module.peer if isinstance(module, Fused) else type(module)


def forward_mismatch(module: nn.Module, parameters: tuple[str, ...]) -> str:
    """Return why the module's forward cannot be replaced, or "". The forward is not called.

    A forward that a subclass overrides is rejected: agreement on a few inputs does not prove that it has no other effects.
    """
    definers = [base.__name__ for base in type(module).__mro__ if "forward" in vars(base) and base is not nn.Module]
    if "forward" in vars(module):
        return "its forward was replaced on the instance"
    if len(definers) != 1:
        return f"{definers[0]} overrides the forward of {definers[1]}" if definers else "it has no forward"
    found = tuple(inspect.signature(type(module).forward).parameters)[1:]
    return "" if found == parameters else f"its forward takes ({', '.join(found)}), not ({', '.join(parameters)})"


def held_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return the parameters and buffers of the module itself, by name."""
    return dict(module.named_parameters(recurse=False)) | dict(module.named_buffers(recurse=False))


def tensors_mismatch(held: Mapping[str, Tensor], ranks: Mapping[str, int]) -> str:
    """Return why the parameters and buffers of a layer are unsupported, or ""."""
    for name, tensor in held.items():
        if nn.parameter.is_lazy(tensor):
            return f"its {name} is not initialized yet, as in a lazy module before its first forward"
        if tensor.is_meta:
            return f"its {name} is on the meta device and has no values"
        if tensor.dim() != ranks[name]:
            return f"its {name} has shape {tuple(tensor.shape)}, not {ranks[name]} dimensions"
        if tensor.dtype not in DTYPES:
            return f"its {name} has dtype {tensor.dtype}"
    return "its grid is trained" if held["grid"].requires_grad else ""


def fused_class(mixin: type[Fused], peer: type[nn.Module]) -> type[nn.Module]:
    """Return the cached subclass of `peer` with the mixin's methods.

    A method that a user's subclass overrides is kept, and a method that `peer` does not have is not added.
    """
    if (mixin, peer) not in _classes:
        origin = definer(peer, "forward")
        names: dict[str, Any] = {"peer": peer, "mixin": mixin, "__module__": mixin.__module__, "__doc__": peer.__doc__}
        for name in mixin.replaced:
            defined_by = definer(peer, name)
            if defined_by is None:
                names[name] = _Absent(name)
            elif defined_by is not origin:
                names[name] = vars(defined_by)[name]
        _classes[mixin, peer] = type("Fused" + peer.__name__, (mixin, peer), names)
    return _classes[mixin, peer]


def definer(cls: type, name: str) -> type | None:
    """Return the class in the MRO of `cls` that defines the method, or None."""
    return next((base for base in cls.__mro__ if name in vars(base)), None)


class _Absent:
    """Hides a mixin's method from `hasattr`."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, instance: Any, owner: type) -> Any:
        raise AttributeError(f"{owner.__name__} has no attribute {self._name!r}")


def _revived(mixin: type[Fused], peer: type[nn.Module]) -> nn.Module:
    cls = fused_class(mixin, peer)
    return cls.__new__(cls)
