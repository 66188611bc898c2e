"""A peer's module made fast in place: its class is exchanged for a subclass, everything it holds stays.

So parameters, `state_dict` keys, hooks, optimizers and other references to the module know nothing of the change, and it is
undone by giving the class back.
"""

import inspect
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, cast

from torch import Tensor, nn

from ..checks import DTYPES

_classes: dict[tuple[type, type], type] = {}


class Fused:
    """What is mixed into a peer's class; `replaced` names the peer's methods that it replaces."""

    replaced: ClassVar[tuple[str, ...]] = ("forward",)
    peer: ClassVar[type[nn.Module]]
    mixin: ClassVar[type["Fused"]]

    def forget(self) -> None:
        """Drop what only the fused class can read, before the peer's class comes back."""

    def __reduce_ex__(self, protocol: Any) -> Any:
        """To copy and to pickle: the fused class has no name that could be imported."""
        reduced: Any = super().__reduce_ex__(protocol)
        return _revived, (self.mixin, self.peer), *reduced[2:]


Exchange = tuple[nn.Module, type[Fused]]


@dataclass(frozen=True)
class Verdict:
    """What is to become of a module that looks like a peer's."""

    reason: str = ""  # why it stays what it is, "" if it does not
    exchanges: tuple[Exchange, ...] = ()  # the module and its parts, and what each is to be mixed with
    left: Mapping[str, str] = field(default_factory=dict)  # the parts that stay what they are, and why


def exchange_classes(exchanges: Iterable[Exchange]) -> None:
    """Exchange the class of every module for one with its mixin's methods; of none if one of them refuses."""
    done = []
    try:
        for module, mixin in exchanges:
            fuse(module, mixin)
            done.append(module)
    except BaseException:
        for module in done:
            unfuse(module)
        raise


def fuse(module: nn.Module, mixin: type[Fused]) -> None:
    """Exchange the module's class for one with the mixin's methods."""
    module.__class__ = fused_class(mixin, type(module))


def unfuse(module: nn.Module) -> bool:
    """Give a fused module its own class back; False where another has exchanged its class since, as parametrizations do."""
    fused = cast(Any, module)
    if type(module) is not fused_class(fused.mixin, fused.peer):
        return False
    fused.forget()
    fused.__class__ = fused.peer
    return True


def own_class(module: nn.Module) -> type[nn.Module]:
    """The module's class, and of a fused module the peer's."""
    return module.peer if isinstance(module, Fused) else type(module)


def objection_to_forward(module: nn.Module, parameters: tuple[str, ...]) -> str:
    """Why the module's forward is not its peer's, before it is called; "" if nothing speaks against it.

    One that a subclass overrides would be lost: agreement on a few inputs does not tell what else it does.
    """
    definers = [base.__name__ for base in type(module).__mro__ if "forward" in vars(base) and base is not nn.Module]
    if "forward" in vars(module):
        return "its forward was replaced on the instance"
    if len(definers) != 1:
        return f"{definers[0]} overrides the forward of {definers[1]}" if definers else "it has no forward"
    found = tuple(inspect.signature(type(module).forward).parameters)[1:]
    return "" if found == parameters else f"its forward takes ({', '.join(found)}), not ({', '.join(parameters)})"


def held_tensors(module: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers of the module itself, by name."""
    return dict(module.named_parameters(recurse=False)) | dict(module.named_buffers(recurse=False))


def objection_to_tensors(held: Mapping[str, Tensor], ranks: Mapping[str, int]) -> str:
    """Why the tensors that a layer holds are none of a peer's layer in use, "" if they are."""
    for name, tensor in held.items():
        if nn.parameter.is_lazy(tensor):
            return f"its {name} is not initialized yet, as of a lazy module before its first forward"
        if tensor.is_meta:
            return f"its {name} is on the meta device, without values"
        if tensor.dim() != ranks[name]:
            return f"its {name} has shape {tuple(tensor.shape)}, not {ranks[name]} dimensions"
        if tensor.dtype not in DTYPES:
            return f"its {name} is of {tensor.dtype}"
    return "its grid is trained" if held["grid"].requires_grad else ""


def fused_class(mixin: type[Fused], peer: type[nn.Module]) -> type[nn.Module]:
    """The subclass of a peer's class, one for each.

    A method that a user's subclass overrides stays the user's, and one that the peer's class has not is not added.
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
    """The class of which `cls` has its method, None if it has none."""
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
