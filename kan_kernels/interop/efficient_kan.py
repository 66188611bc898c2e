"""Acceleration of efficient-kan layers in place, and conversion of their weights."""

import copy
from collections.abc import Callable, Mapping
from functools import partial
from itertools import pairwise
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from ..backends import log_fallback
from ..functional import BaseActivation, base_activation_of, kan_linear, refused_dtype
from ..grid.knots import data_knots
from ..grid.refit import transfer_matrix, transferred
from ..nn.linear import KANLinear
from ..reference import infer_spline_order
from ..utils.checks import check_floating, check_grid, check_number, check_rows, class_name
from .class_swap import Fused, Verdict, definer, forward_mismatch, fused_class, held_tensors, tensors_mismatch
from .equivalence import (
    Call,
    Kind,
    Watched,
    changed,
    chosen,
    compare_forwards,
    compare_whole,
    compared_edges,
    ignored_reads,
    kind_of,
    layer_values,
    on_its_own,
    probe_inputs,
    twin,
    whole_values,
)

KIND = "efficient-kan's KANLinear"
_RANKS = {"base_weight": 2, "spline_weight": 3, "grid": 2}
_SCALER = "spline_scaler"
_FLAG = "enable_standalone_scale_spline"
_PREFIX = "layers."
# The attributes that the fused forward reads, and sizes, which are compared with the shapes of the tensors
_KNOWN = {"in_features", "out_features", "grid_size", "spline_order", "base_activation", _SCALER, _FLAG}


class FusedKANLinear(Fused):
    """efficient-kan's `KANLinear` with the fused kernels.

    Its tensors are `base_weight (O, I)`, `spline_weight (O, I, G+K)` and `grid (I, G+2K+1)`.
    """

    replaced: ClassVar[tuple[str, ...]] = ("forward", "update_grid")
    # The activation that the original forward calls directly; None if the layer has it as a submodule.
    inline_activation: ClassVar[Literal["silu", "identity"] | None] = None
    _parameters: dict[str, Tensor]
    _buffers: dict[str, Tensor]

    def forward(self, x: Tensor) -> Tensor:
        """Return y (..., O) for x (..., I)."""
        weight, grid, base_weight, scaler, activation = arguments(self)
        if grid.requires_grad:
            return _with_trained_knots(self, x)
        refusal = refused_dtype(x, weight)
        if refusal is not None:
            return refusal
        return kan_linear(x, weight, grid, base_weight, spline_scaler=scaler, base_activation=activation)

    @torch.no_grad()
    def update_grid(self, x: Tensor, margin: float = 0.01) -> None:
        """Update the knots as efficient-kan does, but preserve every spline's function, as `kan_kernels.KANLinear` does.

        efficient-kan fits the scaled spline with the unscaled weight, which changes the function of a layer with a scaler.
        """
        layer = cast(Any, self)
        _, I, M = layer.spline_weight.shape
        K = infer_spline_order(M, layer.grid.shape[1])
        rows = check_rows(x, I, 1).detach().to(layer.grid.dtype)
        check_number("margin", margin, 0.0)
        knots = data_knots(rows, M - K, K, layer.grid_eps, margin, "efficient-kan").to(layer.grid.dtype)
        layer.spline_weight.copy_(transferred(layer.spline_weight, transfer_matrix(layer.grid, knots, K, rows)))
        layer.grid.copy_(knots)


def arguments(layer: FusedKANLinear) -> tuple[Tensor, Tensor, Tensor, Tensor | None, BaseActivation]:
    """Return spline_weight, grid, base_weight, spline_scaler and base_activation of `kan_linear` for a layer."""
    held = layer._parameters
    try:  # attribute access of nn.Module would take a quarter of a small layer's forward
        weight, base_weight, grid = held["spline_weight"], held["base_weight"], layer._buffers["grid"]
    except KeyError:  # the layer is parametrized or pruned, or its grid is a parameter
        weight, base_weight, grid = (getattr(layer, name) for name in ("spline_weight", "base_weight", "grid"))
    activation = layer.inline_activation or base_activation_of(cast(Any, layer).base_activation)
    return weight, grid, base_weight, _scaler_of(layer), activation


class FusedWithSiLU(FusedKANLinear):
    """A layer whose forward calls SiLU directly."""

    inline_activation = "silu"


class FusedWithIdentity(FusedKANLinear):
    """A layer whose forward has no base activation."""

    inline_activation = "identity"


def _scaler_of(layer: Any) -> Tensor | None:
    standalone = vars(layer).get(_FLAG)
    if standalone is None:
        return getattr(layer, _SCALER, None)
    return layer.spline_scaler if standalone else None


def _with_trained_knots(layer: Any, x: Tensor) -> Tensor:
    if not torch.compiler.is_compiling():
        log_fallback(f"a {layer.peer.__name__} runs its own forward", "its grid is trained")
    return layer.peer.forward(layer, x)


def looks_like_layer(module: nn.Module) -> bool:
    """Return whether the module has parameters with efficient-kan's names."""
    return {name for name, _ in module.named_parameters(recurse=False)} >= _RANKS.keys() - {"grid"}


def examine_layer(module: nn.Module, known: dict[Kind, type[Fused]]) -> Verdict:
    """Check that the module is efficient-kan's layer. `known` caches the kinds of layers whose comparison succeeded."""
    reason = _tensors_mismatch(module) or _attributes_mismatch(module) or forward_mismatch(module, ("x",))
    if reason:
        return Verdict(reason)
    kind = kind_of(module)
    if kind in known:
        return Verdict(exchanges=((module, known[kind]),))
    reasons = []
    for mixin in (FusedKANLinear,) if hasattr(module, "base_activation") else (FusedWithSiLU, FusedWithIdentity):
        reasons.append(_compare_with_fused(module, mixin))
        if not reasons[-1]:
            known[kind] = mixin
            return Verdict(exchanges=((module, mixin),))
    return Verdict(reasons[0])


def _tensors_mismatch(module: nn.Module) -> str:
    held = held_tensors(module)
    if held.keys() - {_SCALER} != _RANKS.keys():
        return f"its parameters and buffers are {sorted(held.keys() - {_SCALER})}, efficient-kan's are {sorted(_RANKS)}"
    reason = tensors_mismatch(held, _RANKS | {_SCALER: 2})
    if reason:
        return reason
    weight, base_weight, grid = held["spline_weight"], held["base_weight"], held["grid"]
    scaler = held.get(_SCALER)
    O, I, M = weight.shape
    K = infer_spline_order(M, grid.shape[1])
    G = M - K
    given = {name: getattr(module, name) for name in ("spline_order", "grid_size") if hasattr(module, name)}
    sizes_fit = grid.shape[0] == I and base_weight.shape == (O, I) and (scaler is None or scaler.shape == (O, I))
    if K < 0 or G < 1 or not sizes_fit or not given.items() <= {"spline_order": K, "grid_size": G}.items():
        found = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in held.items())
        return f"the shapes do not fit: {found}" + "".join(f", {name} = {value!r}" for name, value in given.items())
    return ""


def _attributes_mismatch(module: nn.Module) -> str:
    layer = cast(Any, module)
    if definer(type(module), "update_grid") is not None and not hasattr(layer, "grid_eps"):
        return "it has no grid_eps"
    if hasattr(layer, "base_activation") and not isinstance(layer.base_activation, nn.Module):
        return f"its base_activation is not a module: {layer.base_activation!r}"
    standalone = module._parameters.get(_SCALER) is not None
    if hasattr(layer, _FLAG) and bool(getattr(layer, _FLAG)) != standalone:
        return f"{_FLAG} is {bool(getattr(layer, _FLAG))}, which contradicts its spline_scaler"
    return ""


def _compare_with_fused(module: nn.Module, mixin: type[Fused]) -> str:
    layer = cast(Any, module)
    O, I = layer.base_weight.shape
    inputs, outputs = compared_edges(layer.grid, layer.spline_weight.shape)
    reason = _compare_some(module, mixin, inputs, outputs)
    if (len(inputs), len(outputs)) == (I, O):
        return reason
    if reason:  # the layer may store its sizes in unknown attributes
        return _compare_some(module, mixin, list(range(I)), list(range(O)))
    with on_its_own(layer.grid.device):
        theirs, ours = (whole_values(call, layer.grid) for call in _calls(module, Watched(type(module)), mixin))
        return compare_whole(module, theirs, ours)


def _compare_some(module: nn.Module, mixin: type[Fused], inputs: list[int], outputs: list[int]) -> str:
    layer = cast(Any, module)
    sizes = {"in_features": len(inputs), "out_features": len(outputs)}
    sizes = {name: size for name, size in sizes.items() if hasattr(layer, name)}

    def twin_of(share: float) -> nn.Module:
        tensors = {"grid": chosen(layer.grid, inputs).to(torch.float64, copy=True)}
        for name, weight in layer._parameters.items():
            if name != "grid" and weight is not None:
                tensors[name] = changed(chosen(weight, outputs, inputs), share)
        return twin(type(module), module, tensors, sizes)

    with on_its_own(layer.grid.device):
        points, watched = probe_inputs(chosen(layer.grid, inputs)), Watched(type(module))
        batched, reason = _supported_inputs(watched, twin_of(1.0), points)
        theirs, ours = (layer_values(call, points) for call in _calls(module, watched, mixin, batched))
        reason = reason or compare_forwards(twin_of, theirs, ours)
        return reason or ignored_reads(module, watched.names, _KNOWN, twin_of, theirs)


def _supported_inputs(own: Watched, copied: nn.Module, points: Tensor) -> tuple[bool, str]:
    """Return whether a forward supports x (..., I) of three dimensions, and why it cannot be replaced, or ""."""
    nn.Module.train(copied, False)
    batched = _runs(own, copied, _batch_of(points))
    if _runs(own, copied, points[:1].float()):
        return batched, "its forward casts x, which the fused forward refuses if its dtype differs from the parameters'"
    return batched, ""


@torch.no_grad()
def _runs(own: Watched, copied: nn.Module, x: Tensor) -> bool:
    try:
        own(copied, x)
    except Exception:  # an unknown forward may raise anything
        return False
    return True


def _batch_of(x: Tensor) -> Tensor:
    return x[:4].view(2, 2, -1)


def _calls(module: nn.Module, own: Watched, mixin: type[Fused], batched: bool = False) -> list[Call]:
    """Return the module's own forward and the fused one, if `batched` also of an x of three dimensions."""
    fused = cast(Any, fused_class(mixin, type(module)))

    def ours(copied: nn.Module, x: Tensor) -> Tensor:
        copied.__class__ = fused
        return cast(Tensor, fused.forward(copied, x))

    def of_both(forward: Callable[[nn.Module, Tensor], Tensor], copied: nn.Module, x: Tensor) -> list[Tensor]:
        y = [forward(copied, x)]
        return y if copied.training or not batched else [*y, forward(copied, _batch_of(x))]

    return [partial(of_both, own), partial(of_both, ours)]


def kan_layers(source: Mapping[str, Tensor] | nn.Module, base_activation: nn.Module | None) -> list[KANLinear]:
    """Convert efficient-kan's `KAN`, or its `state_dict`, to `KANLinear` layers; see `KAN.from_efficient_kan`."""
    state = source.state_dict() if isinstance(source, nn.Module) else source
    if not isinstance(state, Mapping):
        raise TypeError(f"source: expected efficient-kan's KAN or its state_dict, got {class_name(source)}")
    numbers = layer_numbers(state, _PREFIX)
    strange = [key for key in state if not str(key).startswith(_PREFIX)]
    if strange:
        raise ValueError(f"source: expected only efficient-kan's keys layers.*, got {strange[:4]}")
    layers = []
    for number in numbers:
        prefix = f"{_PREFIX}{number}."
        own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        peer = source.get_submodule(prefix.rstrip(".")) if isinstance(source, nn.Module) else None
        layers.append(_layer(own, peer, base_activation, prefix))
    for number, (layer, following) in enumerate(pairwise(layers)):
        if layer.out_features != following.in_features:
            raise ValueError(
                f"source: expected layers.{number + 1} to have {layer.out_features} in_features, the out_features of the layer"
                f" before it, got {following.in_features}"
            )
    return layers


def _layer(state: dict[str, Tensor], peer: nn.Module | None, base_activation: nn.Module | None, prefix: str) -> KANLinear:
    ranks = _RANKS | ({_SCALER: 2} if _SCALER in state else {})
    for name, rank in ranks.items():
        if name not in state:
            raise ValueError(f"source: expected a key {prefix}{name}, got {sorted(state)}")
        value = state[name]
        check_floating(f"source[{prefix + name!r}]", value)
        if value.is_meta:
            raise ValueError(f"source: expected values of {prefix}{name}, got a tensor on the meta device")
        if value.dim() != rank:
            raise ValueError(f"source: expected {rank} dimensions of {prefix}{name}, got shape {tuple(value.shape)}")
    weight, grid = state["spline_weight"], state["grid"]
    O, I, M = weight.shape
    K = infer_spline_order(M, grid.shape[1])
    if K < 0 or M - K < 1:
        raise ValueError(
            f"source: expected G+K bases and G+2K+1 knots, got {prefix}spline_weight {tuple(weight.shape)},"
            f" {prefix}grid {tuple(grid.shape)}"
        )
    shapes = {"base_weight": (O, I), "grid": (I, grid.shape[1]), _SCALER: (O, I)}
    for name in ranks.keys() - {"spline_weight"}:
        if state[name].shape != shapes[name]:
            raise ValueError(
                f"source: expected shape {shapes[name]} of {prefix}{name} for {prefix}spline_weight {tuple(weight.shape)},"
                f" got {tuple(state[name].shape)}"
            )
    activation = base_activation if peer is None else getattr(peer, "base_activation", base_activation)
    layer = layer_of(state, activation, 0.02 if peer is None else float(getattr(peer, "grid_eps", 0.02)))
    if peer is not None:
        take_frozen(layer, peer, {name: name for name in ("base_weight", "spline_weight", _SCALER)})
    return layer


def layer_numbers(state: Mapping[str, Tensor], prefix: str) -> list[int]:
    """Return the layer numbers in the keys `prefix` + "{number}.*". They must be 0, 1, 2, ..."""
    at, keys = prefix.count("."), sorted(map(str, state))
    numbers = sorted({int(key.split(".")[at]) for key in keys if key.startswith(prefix) and key.split(".")[at].isdigit()})
    if not numbers or numbers != list(range(len(numbers))):
        raise ValueError(f"source: expected keys {prefix}0.*, {prefix}1.*, ..., got {keys[:4]}")
    return numbers


def layer_of(state: Mapping[str, Tensor], activation: nn.Module | None, grid_eps: float) -> KANLinear:
    """Create a `KANLinear` with a copy of a state in efficient-kan's names, whose sizes must be consistent."""
    weight, grid = state["spline_weight"], state["grid"]
    K = infer_spline_order(weight.shape[2], grid.shape[1])
    check_grid(grid, weight.shape[1], K)
    layer = KANLinear(
        weight.shape[1],
        weight.shape[0],
        grid_size=weight.shape[2] - K,
        spline_order=K,
        enable_standalone_scale_spline=_SCALER in state,
        base_activation=copy.deepcopy(activation),
        grid_eps=grid_eps,
        device="meta",  # consumes no random numbers
        dtype=weight.dtype,
    ).to_empty(device=weight.device)
    layer.load_state_dict(state)
    return layer


def take_frozen(layer: KANLinear, peer: Any, names: Mapping[str, str]) -> None:
    """Copy requires_grad of the peer's parameters; `names` maps our names to the peer's."""
    for ours, theirs in names.items():
        parameter, other = getattr(layer, ours), getattr(peer, theirs, None)
        if parameter is not None and other is not None:
            parameter.requires_grad_(other.requires_grad)
