"""A peer's module made fast in place: its class is exchanged for a subclass, everything it holds stays.

So parameters, `state_dict` keys, hooks, optimizers and other references to the module know nothing of the change, and it is
undone by giving the class back.
"""

import inspect
from typing import Any, ClassVar, cast

from torch import nn

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


def fused_class(mixin: type[Fused], peer: type[nn.Module]) -> type[nn.Module]:
    """The subclass of a peer's class, one for each. A method that a user's subclass overrides stays the user's."""
    if (mixin, peer) not in _classes:
        origin = definer(peer, "forward")
        names = {name: getattr(peer, name) for name in mixin.replaced if definer(peer, name) is not origin}
        names |= {"peer": peer, "mixin": mixin, "__module__": mixin.__module__, "__doc__": peer.__doc__}
        _classes[mixin, peer] = type("Fused" + peer.__name__, (mixin, peer), names)
    return _classes[mixin, peer]


def definer(cls: type, name: str) -> type | None:
    """The class of which `cls` has its method, None if it has none."""
    return next((base for base in cls.__mro__ if name in vars(base)), None)


def _revived(mixin: type[Fused], peer: type[nn.Module]) -> nn.Module:
    cls = fused_class(mixin, peer)
    return cls.__new__(cls)
