"""In-place acceleration of efficient-kan and pykan layers in any module, and its reversal."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import nn

from ..backends import log_fallback
from ..nn.linear import KANLinear
from . import efficient_kan
from .class_swap import Fused, Verdict, exchange_classes, held_tensors, unfuse
from .equivalence import Kind, one_line
from .pykan import layers as pykan_layers
from .pykan import networks as pykan_networks

Model = TypeVar("Model", bound=nn.Module)

_ANOTHER_FAMILY = {
    "RadialBasisFunction": "fast-kan uses radial basis functions, not B-splines",
    "ReflectionalSwitchFunction": "faster-kan uses reflectional switch functions, not B-splines",
}


@dataclass(frozen=True)
class Peer:
    """A supported module class of another library: how to recognise and how to examine its instances."""

    kind: str
    looks_like: Callable[[nn.Module], bool]
    examine: Callable[[nn.Module, dict[Kind, type[Fused]]], Verdict]


_PEERS = (
    Peer(pykan_networks.KIND, pykan_networks.looks_like_network, pykan_networks.examine_network),
    Peer(pykan_layers.KIND, pykan_layers.looks_like_layer, pykan_layers.examine_layer),
    Peer(efficient_kan.KIND, efficient_kan.looks_like_layer, efficient_kan.examine_layer),
)


def accelerate(model: Model, verbose: bool = False) -> Model:
    """Run every efficient-kan and pykan 0.2.8 layer in `model`, including `model` itself, on the fused kernels, in place.

    Supported layers are efficient-kan's `KANLinear`, pykan's `MultKAN` (`KAN`), and pykan's `KANLayer` in any other module.
    Variants of `KANLinear` are supported too: copies in another file, layers without `update_grid` or spline_scaler, layers
    that call SiLU directly in their forward, and subclasses that add methods.

    The function replaces the class of each layer with a subclass of it. Modules, parameters, `state_dict` keys, optimizers
    and hooks do not change. Layers are recognised by the names and shapes of their parameters and buffers, not by the package
    they come from. A layer is replaced only if its own forward and the fused forward agree, including gradients. The
    comparison uses a few inputs, float64, and a copy of the layer with changed parameters, so that zeros and masks hide no
    differences. A forward that treats batches of different sizes differently is not detected, nor one of a network that
    depends on its widths.

    A layer that only resembles a supported one does not change, nor does a layer with a trained grid, nor one whose forward
    reads other attributes or calls other submodules that may change later, for example dropout. The reason is logged once and
    listed by `info()`. In a pykan network, the other layers are still accelerated.

    Besides speed, these behaviours change. efficient-kan's `update_grid` preserves the function; the original changes it.
    pykan's `update_grid` and `refine` preserve the function where the data do not determine it, for example for a constant
    feature; the original minimum-norm least-squares fit does not. A layer whose grid is trained later runs its original
    forward again. A `KANLayer` outside of a pykan network also computes every edge's values, two tensors of shape (N, O, I),
    because its forward returns them.

    Args:
        model: any module.
        verbose: print which layers were replaced, which were not, and why.

    Returns:
        model.

    Raises:
        TypeError: model is not an nn.Module.

    Equivalent to, for every layer (with efficient-kan's names):
        layer.forward = lambda x: kan_linear(
            x, layer.spline_weight, layer.grid, layer.base_weight, spline_scaler=layer.spline_scaler)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected an nn.Module, got {type(model).__name__}")
    findings = list(_findings(model))  # complete before the first change
    exchange_classes(exchange for _, verdict in findings for exchange in verdict.exchanges)
    lines = []
    for what, verdict in findings:
        lines.append(f"{what}: unchanged, {verdict.reason}" if verdict.reason else f"{what}: runs on the kernels")
        if verdict.reason:
            log_fallback(f"accelerate did not change {what}", verdict.reason)
    if verbose:
        print("\n".join(lines or ["no KAN layers in this model"]))
    elif not lines:
        log_fallback(f"accelerate did not change {type(model).__name__}", "no KAN layers in this model")
    return model


def restore(model: Model) -> Model:
    """Undo `accelerate`: give every module in `model` its original class.

    Returns:
        model.

    Raises:
        TypeError: model is not an nn.Module.

    Equivalent to:
        for layer in model.modules(): layer.__class__ = its original class
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected an nn.Module, got {type(model).__name__}")
    for module in list(model.modules()):
        if isinstance(module, Fused) and not unfuse(module):
            reason = f"its class was changed again, to {type(module).__name__}"
            log_fallback(f"restore did not change a {module.peer.__name__}", reason)
    return model


def _findings(model: nn.Module) -> Iterator[tuple[str, Verdict]]:
    """Yield a description (name and class) and the verdict for every module that is related to KANs."""
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
    """Return the verdict on a module, or None if it is unrelated to KANs. An exception in the examination is a reason."""
    if isinstance(module, (Fused, KANLinear)):
        return Verdict()
    try:
        peer = next((peer for peer in _PEERS if peer.looks_like(module)), None)
        reason = "" if peer else _known_otherwise(module)
    except Exception:  # attributes of an arbitrary module may raise
        return None
    if peer is None:
        return Verdict(reason) if reason else None
    if isinstance(module, torch.jit.ScriptModule):
        return Verdict("it is compiled by TorchScript: accelerate the module that it was compiled from")
    try:
        verdict = peer.examine(module, known)
    except Exception as error:
        verdict = Verdict(f"it cannot be examined: {one_line(error)}")
    return replace(verdict, reason=f"not {peer.kind}: {verdict.reason}") if verdict.reason else verdict


def _known_otherwise(module: nn.Module) -> str:
    """Return the reason if the module is an unsupported kind of KAN layer, else ""."""
    for part in module.children():
        if type(part).__name__ in _ANOTHER_FAMILY:
            return _ANOTHER_FAMILY[type(part).__name__]
    held = held_tensors(module)
    changed = sorted(name.removesuffix("_orig") for name in held if name.endswith("_orig"))
    changed += sorted(getattr(module, "parametrizations", {}))
    if "grid" in held and changed:
        return f"its {' and '.join(changed)} is pruned or parametrized: accelerate first, or remove that"
    several = any(not nn.parameter.is_lazy(p) and p.dim() > 2 for p in module.parameters(recurse=False))
    return f"an unknown kind of KAN layer with parameters and buffers {sorted(held)}" if "grid" in held and several else ""
