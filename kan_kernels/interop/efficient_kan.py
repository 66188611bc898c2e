"""efficient-kan: its layers made fast in place, its weights carried over."""

import copy
from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from ..checks import check_number, check_rows
from ..functional import base_activation_of, kan_linear
from ..grid import data_knots
from ..layers import KANLinear
from ..projection import transfer_matrix
from ..reference import spline_order
from .fused import Fused, fused_class, objection_to_forward
from .probe import disagreement, extreme_inputs, probe_inputs

KIND = "efficient-kan's KANLinear"
_PARAMETERS = {"base_weight", "spline_weight"}
_SCALER = "spline_scaler"
_PREFIX = "layers."


class FusedKANLinear(Fused):
    """efficient-kan's `KANLinear` on the kernels. `base_weight (O, I)`, `spline_weight (O, I, G+K)`, `grid (I, G+2K+1)`."""

    replaced: ClassVar[tuple[str, ...]] = ("forward", "update_grid")

    def forward(self, x: Tensor) -> Tensor:
        """x (..., I) -> (..., O)."""
        layer = cast(Any, self)
        scaler = layer.spline_scaler.t() if layer.enable_standalone_scale_spline else None
        return kan_linear(
            x,
            layer.spline_weight.permute(1, 2, 0),
            layer.grid,
            layer.base_weight.t(),
            base_activation=base_activation_of(layer.base_activation),
            scaler=scaler,
        )

    @torch.no_grad()
    def update_grid(self, x: Tensor, margin: float = 0.01) -> None:
        """`KANLinear.update_grid`: efficient-kan's knots; but every spline stays the same function.

        efficient-kan refits the scaled spline into the unscaled weight, which changes the function wherever there is a scaler.
        """
        layer = cast(Any, self)
        rows = check_rows(x, layer.in_features, 1).detach().to(layer.grid.dtype)
        check_number("margin", margin, 0.0)
        knots = data_knots(rows, layer.grid_size, layer.spline_order, layer.grid_eps, margin, "efficient-kan")
        knots = knots.to(layer.grid.dtype)
        coef = transfer_matrix(layer.grid, knots, layer.spline_order, rows) @ layer.spline_weight.double().permute(1, 2, 0)
        layer.spline_weight.copy_(coef.permute(2, 0, 1))
        layer.grid.copy_(knots)


def looks_like_layer(module: nn.Module) -> bool:
    """Its parameters have efficient-kan's names."""
    return {name for name, _ in module.named_parameters(recurse=False)} >= _PARAMETERS


def objection_to_layer(module: nn.Module) -> str:
    """Why it is not efficient-kan's layer after all, "" if it is."""
    own = {name for name, _ in module.named_parameters(recurse=False)} - {_SCALER}
    buffers = {name for name, _ in module.named_buffers(recurse=False)}
    if own != _PARAMETERS or buffers != {"grid"}:
        return f"it holds {sorted(own | buffers)}, efficient-kan's holds {sorted(_PARAMETERS | {'grid'})}"
    layer = cast(Any, module)
    missing = [name for name in ("base_activation", "spline_order", "grid_size", "grid_eps") if not hasattr(layer, name)]
    if missing or not hasattr(layer, "enable_standalone_scale_spline"):
        return f"it has no {', '.join(missing) or 'enable_standalone_scale_spline'}"
    if not isinstance(layer.base_activation, nn.Module):
        return f"its base_activation is no module but {layer.base_activation!r}"
    standalone = bool(layer.enable_standalone_scale_spline)
    if standalone != (getattr(module, _SCALER, None) is not None):
        return f"enable_standalone_scale_spline is {standalone}, and spline_scaler says otherwise"
    O, I, M = layer.spline_weight.shape
    K, G = layer.spline_order, layer.grid_size
    if layer.grid.shape != (I, G + 2 * K + 1) or M != G + K or layer.base_weight.shape != (O, I):
        return f"the shapes do not fit: spline_weight {(O, I, M)}, grid {tuple(layer.grid.shape)}, K = {K}, G = {G}"
    objection = objection_to_forward(module, ("x",))
    if objection:
        return objection
    x = torch.cat([probe_inputs(layer.grid), extreme_inputs(I, layer.grid)])
    fused = cast(Any, fused_class(FusedKANLinear, type(module)))
    return disagreement(module, (), lambda twin: [type(module).forward(twin, x)], lambda twin: [fused.forward(twin, x)])


def kan_layers(source: Mapping[str, Tensor] | nn.Module, base_activation: nn.Module | None) -> list[KANLinear]:
    """efficient-kan's `KAN`, or its `state_dict`, as layers of ours; see `KAN.from_efficient_kan`."""
    state = source.state_dict() if isinstance(source, nn.Module) else source
    if not isinstance(state, Mapping):
        raise TypeError(f"source: expected efficient-kan's KAN or its state_dict, got {type(source).__name__}")
    numbers = layer_numbers(state, _PREFIX)
    strange = [key for key in state if not key.startswith(_PREFIX)]
    if strange:
        raise ValueError(f"source: expected efficient-kan's keys alone, layers.*, got {strange[:4]}")
    layers = []
    for number in numbers:
        prefix = f"{_PREFIX}{number}."
        own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        peer = source.get_submodule(prefix.rstrip(".")) if isinstance(source, nn.Module) else None
        layers.append(_layer(own, peer, base_activation, prefix))
    return layers


def _layer(state: dict[str, Tensor], peer: nn.Module | None, base_activation: nn.Module | None, prefix: str) -> KANLinear:
    for name, rank in (("base_weight", 2), ("spline_weight", 3), ("grid", 2)):
        if name not in state:
            raise ValueError(f"source: expected a key {prefix}{name}, got {sorted(state)}")
        if state[name].dim() != rank:
            raise ValueError(f"source: expected {rank} dimensions of {prefix}{name}, got shape {tuple(state[name].shape)}")
    weight, grid = state["spline_weight"], state["grid"]
    K = spline_order(weight.shape[2], grid.shape[1])
    if K < 0 or weight.shape[2] - K < 1:
        raise ValueError(
            f"source: expected G+K bases and G+2K+1 knots, got {prefix}spline_weight {tuple(weight.shape)},"
            f" {prefix}grid {tuple(grid.shape)}"
        )
    activation = base_activation if peer is None else getattr(peer, "base_activation", base_activation)
    layer = layer_of(state, activation, 0.02 if peer is None else float(getattr(peer, "grid_eps", 0.02)))
    if peer is not None:
        take_frozen(layer, peer, {"base_coef": "base_weight", "coef": "spline_weight", "scaler": _SCALER})
    return layer


def layer_numbers(state: Mapping[str, Tensor], prefix: str) -> list[int]:
    """Those of the keys `prefix` + "{number}.*", which have to be 0, 1, 2, ..."""
    at = prefix.count(".")
    numbers = sorted({int(key.split(".")[at]) for key in state if key.startswith(prefix) and key.split(".")[at].isdigit()})
    if not numbers or numbers != list(range(len(numbers))):
        raise ValueError(f"source: expected keys {prefix}0.*, {prefix}1.*, ..., got {sorted(state)[:4]}")
    return numbers


def layer_of(state: Mapping[str, Tensor], activation: nn.Module | None, grid_eps: float) -> KANLinear:
    """A layer of ours with a copy of a state in efficient-kan's names, whose sizes are consistent."""
    weight, grid = state["spline_weight"], state["grid"]
    K = spline_order(weight.shape[2], grid.shape[1])
    layer = KANLinear(
        weight.shape[1],
        weight.shape[0],
        grid_size=weight.shape[2] - K,
        spline_order=K,
        enable_standalone_scale_spline=_SCALER in state,
        base_activation=copy.deepcopy(activation),
        grid_eps=grid_eps,
        device="meta",  # draws no random numbers
        dtype=weight.dtype,
    ).to_empty(device=weight.device)
    layer.load_state_dict(state)
    return layer


def take_frozen(layer: KANLinear, peer: Any, names: Mapping[str, str]) -> None:
    """Freeze the parameters whose namesakes (our name -> theirs) are frozen."""
    for ours, theirs in names.items():
        parameter, other = getattr(layer, ours), getattr(peer, theirs, None)
        if parameter is not None and other is not None:
            parameter.requires_grad_(other.requires_grad)
