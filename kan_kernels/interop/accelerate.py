"""`accelerate`: the peers' layers in any module, on the kernels, in place; `restore` undoes it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import nn

from .. import fallbacks
from ..layers import KANLinear
from . import efficient_kan, pykan_layers, pykan_networks
from .fused import Fused, Verdict, exchange_classes, held_tensors, unfuse
from .probe import Kind, one_line

Model = TypeVar("Model", bound=nn.Module)

_ANOTHER_FAMILY = {
    "RadialBasisFunction": "fast-kan's radial basis functions are another family of functions than B-splines",
    "ReflectionalSwitchFunction": "faster-kan's switch functions are another family of functions than B-splines",
}


@dataclass(frozen=True)
class Peer:
    """A module of a peer's: how it is recognised, and what is found where it is looked at closely."""

    kind: str
    looks_like: Callable[[nn.Module], bool]
    examine: Callable[[nn.Module, dict[Kind, type[Fused]]], Verdict]


_PEERS = (
    Peer(pykan_networks.KIND, pykan_networks.looks_like_network, pykan_networks.examine_network),
    Peer(pykan_layers.KIND, pykan_layers.looks_like_layer, pykan_layers.examine_layer),
    Peer(efficient_kan.KIND, efficient_kan.looks_like_layer, efficient_kan.examine_layer),
)


def accelerate(model: Model, verbose: bool = False) -> Model:
    """Let every layer of efficient-kan's and pykan 0.2.8's in a module, itself included, run on the kernels.

    These are efficient-kan's `KANLinear`, also one that is copied into another file, without its `update_grid` or its
    spline_scaler, with SiLU in the text of its forward, or with a subclass that adds methods; pykan's `MultKAN` (`KAN`); and
    pykan's `KANLayer` in any other module. The modules, their parameters and their `state_dict` keys stay the same objects and
    names, so do optimizers, hooks and whatever else refers to them; only their classes are exchanged, for subclasses of what
    they were. They are recognised by the names and shapes of what they hold, not by where they were imported from, and
    believed only if their own forward and the fused one agree, with their gradients: on a few inputs, in float64, for a small
    copy of the layer whose parameters are changed, so that zeros and masks hide nothing.

    What looks like such a layer and is none stays as it is, as does one whose grid is trained; why is logged once, and is in
    `info()`. A network of pykan's in which a layer stays runs the others on the kernels.

    What changes beyond the speed: efficient-kan's `update_grid` keeps the function, where its own changes it; and pykan's
    `update_grid` and `refine` keep the function where the data do not determine it, as for a constant feature, where its own
    least-squares fits of least norm do not. If a grid is trained later, its layer runs its own forward again. A `KANLayer` in
    another module than pykan's network returns every edge's values beside its output, (N, O, I) twice, which its caller mostly
    drops: they are computed all the same.

    Args:
        model: any module.
        verbose: print what was and what was not replaced, and why.

    Returns:
        model.

    Raises:
        TypeError: model is not an nn.Module.

    Equivalent to, for every layer (of efficient-kan's names):
        layer.forward = lambda x: kan_linear(
            x, layer.spline_weight, layer.grid, layer.base_weight, spline_scaler=layer.spline_scaler)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected an nn.Module, got {type(model).__name__}")
    findings = list(_findings(model))  # before anything is changed
    exchange_classes(exchange for _, verdict in findings for exchange in verdict.exchanges)
    lines = []
    for what, verdict in findings:
        lines.append(f"{what}: left, {verdict.reason}" if verdict.reason else f"{what}: on the kernels")
        if verdict.reason:
            fallbacks.note(f"accelerate left {what}", verdict.reason)
    if verbose:
        print("\n".join(lines or ["no KAN layers in this model"]))
    elif not lines:
        fallbacks.note(f"accelerate left {type(model).__name__}", "no KAN layers in this model")
    return model


def restore(model: Model) -> Model:
    """Undo `accelerate`: every module in `model` has its own class again. Returns model.

    Raises:
        TypeError: model is not an nn.Module.

    Equivalent to:
        for layer in model.modules(): layer.__class__ = what it was
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected an nn.Module, got {type(model).__name__}")
    for module in list(model.modules()):
        if isinstance(module, Fused) and not unfuse(module):
            reason = f"its class was exchanged again since, for {type(module).__name__}"
            fallbacks.note(f"restore left a {module.peer.__name__}", reason)
    return model


def _findings(model: nn.Module) -> Iterator[tuple[str, Verdict]]:
    """Every module that has to do with KANs, by name and class, and the verdict on it."""
    settled, known = set[int](), dict[Kind, type[Fused]]()
    for name, module in model.named_modules():
        if id(module) in settled:
            continue
        verdict = _examined(module, known)
        if verdict is None:
            continue
        yield _called(name, module), verdict
        if isinstance(module, KANLinear):
            settled.update(id(part) for part in module.modules())
        settled.update(id(part) for part in module.modules() if isinstance(part, Fused))
        settled.update(id(fused) for fused, _ in verdict.exchanges)
        for part, reason in verdict.left.items():
            left = module.get_submodule(part)
            settled.add(id(left))
            yield _called(f"{name}.{part}".lstrip("."), left), Verdict(reason)


def _called(name: str, module: nn.Module) -> str:
    return f"{name or '(the model)'}, {type(module).__name__}"


def _examined(module: nn.Module, known: dict[Kind, type[Fused]]) -> Verdict | None:
    """None if it has nothing to do with KANs. Whatever a look-alike raises when it is examined is a reason to leave it."""
    if isinstance(module, (Fused, KANLinear)):
        return Verdict()
    try:
        peer = next((peer for peer in _PEERS if peer.looks_like(module)), None)
        reason = "" if peer else _known_otherwise(module)
    except Exception:  # of a module of any kind
        return None
    if peer is None:
        return Verdict(reason) if reason else None
    if isinstance(module, torch.jit.ScriptModule):
        return Verdict("it is compiled by TorchScript: accelerate the module that it was made of")
    try:
        verdict = peer.examine(module, known)
    except Exception as error:
        verdict = Verdict(f"it cannot be examined: {one_line(error)}")
    return replace(verdict, reason=f"not {peer.kind}: {verdict.reason}") if verdict.reason else verdict


def _known_otherwise(module: nn.Module) -> str:
    """What other kind of KAN layer it is, "" if it is none."""
    for part in module.children():
        if type(part).__name__ in _ANOTHER_FAMILY:
            return _ANOTHER_FAMILY[type(part).__name__]
    held = held_tensors(module)
    several = any(not nn.parameter.is_lazy(p) and p.dim() > 2 for p in module.parameters(recurse=False))
    return f"an unknown kind of KAN layer, which holds {sorted(held)}" if "grid" in held and several else ""
