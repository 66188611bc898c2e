"""`accelerate`: the peers' layers in any module, on the kernels, in place; `restore` undoes it."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from .. import fallbacks
from ..layers import KANLinear
from . import efficient_kan, pykan_networks
from .fused import Fused, fuse, unfuse

_ANOTHER_FAMILY = {
    "RadialBasisFunction": "fast-kan's radial basis functions are another family of functions than B-splines",
    "ReflectionalSwitchFunction": "faster-kan's switch functions are another family of functions than B-splines",
}


@dataclass(frozen=True)
class Peer:
    """A module of a peer's: how it is recognised, why one that looks like it is not, how it is fused."""

    kind: str
    looks_like: Callable[[nn.Module], bool]
    objection: Callable[[nn.Module], str]
    fuse: Callable[[nn.Module], object]


_PEERS = (
    Peer(
        pykan_networks.KIND,
        pykan_networks.looks_like_network,
        pykan_networks.objection_to_network,
        pykan_networks.fuse_network,
    ),
    Peer(
        efficient_kan.KIND,
        efficient_kan.looks_like_layer,
        efficient_kan.objection_to_layer,
        lambda module: fuse(module, efficient_kan.FusedKANLinear),
    ),
)


def accelerate(model: nn.Module, verbose: bool = False) -> nn.Module:
    """Let every efficient-kan `KANLinear` and pykan 0.2.8 `MultKAN` in a module, itself included, run on the kernels.

    The modules, their parameters and their `state_dict` keys stay the same objects and names, so do optimizers, hooks and
    whatever else refers to them; only their classes are exchanged, for subclasses of what they were. They are recognised by
    what they hold, not by where they were imported from, and believed only if their own forward and the fused one agree on a
    few inputs, in float64. What looks like a KAN layer and is none of these stays as it is; why is logged once, and `info()`
    lists it.

    What changes beyond the speed: efficient-kan's `update_grid` keeps the function, where its own changes it; and pykan's
    `update_grid` and `refine` keep the function where the data do not determine it, as for a constant feature, where its own
    least-squares fits of least norm do not.

    Args:
        model: any module.
        verbose: print what was and what was not replaced, and why.

    Returns:
        model.

    Raises:
        TypeError: model is not an nn.Module.

    Equivalent to, for every layer (of efficient-kan's shapes):
        layer.forward = lambda x: kan_linear(
            x, layer.spline_weight.permute(1, 2, 0), layer.grid, layer.base_weight.t(), scaler=layer.spline_scaler.t())
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected an nn.Module, got {type(model).__name__}")
    lines, handled = [], set[int]()
    for name, module in list(model.named_modules()):
        if id(module) in handled:
            continue
        what = f"{name or '(the model)'}, {type(module).__name__}"
        verdict = _verdict(module)
        if verdict is None:
            continue
        handled.update(id(part) for part in module.modules())
        if verdict:
            fallbacks.note(f"accelerate left {what}", verdict)
        lines.append(f"{what}: left, {verdict}" if verdict else f"{what}: on the kernels")
    if verbose:
        print("\n".join(lines or ["no KAN layers in this model"]))
    elif not lines:
        fallbacks.note(f"accelerate left {type(model).__name__}", "no KAN layers in this model")
    return model


def restore(model: nn.Module) -> nn.Module:
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


def _verdict(module: nn.Module) -> str | None:
    """None if it has nothing to do with KANs, "" if it runs on the kernels now, else why it does not."""
    if isinstance(module, (Fused, KANLinear)):
        return ""
    for peer in _PEERS:
        if peer.looks_like(module):
            if isinstance(module, torch.jit.ScriptModule):
                return "it is compiled by TorchScript: accelerate the module that it was made of"
            objection = peer.objection(module)
            if objection:
                return f"not {peer.kind}: {objection}"
            peer.fuse(module)
            return ""
    for part in module.children():
        if type(part).__name__ in _ANOTHER_FAMILY:
            return _ANOTHER_FAMILY[type(part).__name__]
    if "kan" in type(module).__name__.lower() and any(True for _ in module.parameters(recurse=False)):
        return "an unknown kind of KAN layer"
    return None
