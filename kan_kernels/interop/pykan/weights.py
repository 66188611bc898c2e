"""Conversion of pykan 0.2.8's weights to `KANLinear` layers and back, with an error for each unsupported feature."""

import copy
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn

from ...functional import base_activation_of
from ...nn.linear import KANLinear
from ...reference import infer_spline_order
from ...utils.checks import class_name
from ..efficient_kan import layer_numbers, layer_of, take_frozen
from .layers import PARAMETERS, base_activation
from .networks import looks_like_network

_LAYERS = "act_fun."
_NODES = {"node_bias": 0.0, "node_scale": 1.0, "subnode_bias": 0.0, "subnode_scale": 1.0}
_OUR_NAMES = {"spline_weight": "coef", "base_weight": "scale_base", "spline_scaler": "scale_sp"}


def kan_layers(source: Mapping[str, Tensor] | nn.Module, activation: nn.Module | None) -> list[KANLinear]:
    """Convert a `MultKAN`, or its `state_dict`, to `KANLinear` layers; see `KAN.from_pykan`."""
    state, peers = _state_and_layers(source)
    numbers = layer_numbers(state, _LAYERS)
    for number in numbers:
        names = {key.split(".")[2] for key in state if key.startswith(f"{_LAYERS}{number}.")}
        if names != PARAMETERS:
            raise ValueError(f"source: expected {sorted(PARAMETERS)} in {_LAYERS}{number}, got {sorted(names)}")
    for number in numbers:
        coef = state[f"{_LAYERS}{number}.coef"]
        if coef.dim() != 3:
            raise ValueError(
                f"source: expected {_LAYERS}{number}.coef (I, O, G+K) of pykan 0.2.8, got shape {tuple(coef.shape)}"
                + (", the shape (I * O, G+K) of pykan 0.0.5 and older" if coef.dim() == 2 else "")
            )
    weights = [_Weights(**{name: state[f"{_LAYERS}{number}.{name}"] for name in PARAMETERS}) for number in numbers]
    _refuse_what_layers_cannot_hold(state, [layer.coef.shape for layer in weights])
    return [_layer(layer, None if peers is None else peers[number], activation) for number, layer in enumerate(weights)]


@dataclass(frozen=True)
class _Weights:
    """The tensors of one layer, with pykan's names."""

    grid: Tensor
    coef: Tensor
    mask: Tensor
    scale_base: Tensor
    scale_sp: Tensor


def _state_and_layers(source: Any) -> tuple[Mapping[str, Tensor], Sequence[Any] | None]:
    if isinstance(source, nn.Module):
        if not looks_like_network(source):
            raise TypeError(f"source: expected a MultKAN of pykan 0.2.8 or its state_dict, got {class_name(source)}")
        chosen = getattr(source, "input_id", None)
        if chosen is not None and chosen.tolist() != list(range(len(chosen))):
            raise ValueError(
                f"source: input_id {chosen.tolist()} selects inputs, which `KAN` does not support; select columns of x instead"
            )
        for name, parameter in source.named_parameters():
            if name.startswith(tuple(_NODES)) and parameter.requires_grad:
                raise ValueError(
                    f"source: {name} is trained (affine_trainable), which `KAN` does not support; use requires_grad_(False)"
                )
        return source.state_dict(), list(cast(Any, source).act_fun)
    if not isinstance(source, Mapping):
        raise TypeError(f"source: expected a MultKAN of pykan 0.2.8 or its state_dict, got {class_name(source)}")
    return source, None


def _refuse_what_layers_cannot_hold(state: Mapping[str, Tensor], shapes: list[torch.Size]) -> None:
    for number, (shape, following) in enumerate(pairwise([*shapes, None])):
        assert shape is not None
        nodes = state.get(f"node_bias_{number}")
        if (nodes is not None and len(nodes) != shape[1]) or (following is not None and following[0] != shape[1]):
            raise ValueError(
                f"source: layer {number} has multiplication nodes ({shape[1]} sums for"
                f" {len(nodes) if nodes is not None else cast(Any, following)[0]} nodes), which `KAN` does not support"
            )
        formulas = state.get(f"symbolic_fun.{number}.mask")
        if formulas is not None and bool(formulas.any()):
            output, input_ = formulas.nonzero()[0].tolist()
            raise ValueError(
                f"source: layer {number} has symbolic edges, the first from input {input_} to output {output}, which `KAN`"
                " does not support; unfix_symbolic_all() converts them back to splines"
            )
        for name, neutral in _NODES.items():
            value = state.get(f"{name}_{number}")
            if value is not None and bool((value != neutral).any()):
                raise ValueError(f"source: {name}_{number} is not {neutral:g} everywhere, which `KAN` does not support")


def _layer(weights: _Weights, peer: Any, activation: nn.Module | None) -> KANLinear:
    grid, coef, mask, scale_sp = weights.grid, weights.coef, weights.mask, weights.scale_sp
    I, _, M = coef.shape
    K = infer_spline_order(M, grid.shape[1])
    if grid.shape[0] != I or K < 0 or M - K < 1:
        raise ValueError(
            f"source: expected grid (I, G+2K+1) for coef (I, O, G+K), got {tuple(grid.shape)} for {tuple(coef.shape)}"
        )
    if peer is not None:
        activation = _module_of(peer.base_fun)
    # `multkan` converts a layer without spline_scaler to a frozen scale_sp of ones.
    without_scale = peer is not None and not peer.scale_sp.requires_grad and bool((scale_sp == 1).all())
    state = {"grid": grid, "spline_weight": coef.transpose(0, 1)}
    if activation is not None:
        state["base_weight"] = weights.scale_base.t()
        state |= {f"base_activation.{name}": value for name, value in activation.state_dict().items()}
    if not without_scale:
        state["spline_scaler"] = scale_sp.t()
    if not bool((mask == 1).all()):
        state["edge_mask"] = mask.t()
    layer = layer_of(state, activation, 0.02 if peer is None else float(peer.grid_eps))
    if peer is not None:
        take_frozen(layer, peer, _OUR_NAMES)
    return layer


def _module_of(base_fun: Any) -> nn.Module | None:
    if isinstance(base_fun, nn.Module):
        return base_fun
    if base_activation(base_fun) is None:
        return None
    raise ValueError(f"source: base_fun {base_fun!r} is a plain function, which `KAN` does not support; use an nn.Module")


def multkan(layers: Sequence[nn.Module]) -> Any:
    """Create pykan's `MultKAN` with the weights of these layers; see `KAN.to_pykan`."""
    try:
        import kan
    except ImportError as error:
        raise ImportError(f"pykan is not installed ({error}): pip install kan_kernels[pykan]") from error
    ours = [layer for layer in layers if isinstance(layer, KANLinear)]
    if len(ours) != len(layers):
        strange = next(layer for layer in layers if not isinstance(layer, KANLinear))
        raise ValueError(f"layers: expected only KANLinear layers, got a {type(strange).__name__}")
    activations = {repr(layer.base_activation) for layer in ours}
    if len(activations) > 1:
        raise ValueError(f"base_activation: expected the same in every layer, as in pykan, got {sorted(activations)}")
    if any(True for layer in ours if layer.base_activation is not None for _ in layer.base_activation.parameters()):
        raise ValueError(f"base_activation: expected no parameters, since pykan shares it, got {activations.pop()}")
    if any(layer.spline_order < 1 for layer in ours):
        raise ValueError("spline_order: expected at least 1, the smallest in pykan, got 0")
    first = ours[0]
    kind = base_activation_of(first.base_activation)
    names = {"silu": "silu", "identity": "identity", None: "zero"}
    with _untouched_random_state():
        net = kan.MultKAN(
            width=[first.in_features, *(layer.out_features for layer in ours)],
            grid=[layer.grid_size for layer in ours],
            k=[layer.spline_order for layer in ours],
            base_fun=names.get(cast(Any, kind), copy.deepcopy(first.base_activation)),
            grid_eps=first.grid_eps,
            auto_save=False,
        )
    if len({(layer.grid_size, layer.spline_order) for layer in ours}) == 1:
        net.grid, net.k = first.grid_size, first.spline_order
    net.type(first.spline_weight.dtype)
    net.to(first.spline_weight.device)
    for layer, peer in zip(ours, net.act_fun, strict=True):
        _fill(peer, layer)
    return net


def _fill(peer: Any, layer: KANLinear) -> None:
    ones = torch.ones_like(peer.mask)
    peer.grid_eps = layer.grid_eps
    peer.grid.data = layer.grid.clone()
    peer.mask.data = ones if layer.edge_mask is None else _transposed(layer.edge_mask)
    values = {"coef": layer.spline_weight, "scale_base": layer.base_weight, "scale_sp": layer.spline_scaler}
    absent = {"scale_base": torch.zeros_like(ones), "scale_sp": ones}
    for name, value in values.items():
        parameter = getattr(peer, name)
        parameter.data = absent[name] if value is None else _transposed(value)
        parameter.requires_grad_(value is not None and value.requires_grad)


def _transposed(tensor: Tensor) -> Tensor:
    """Return a contiguous copy of (O, I, ...) as (I, O, ...)."""
    return tensor.detach().transpose(0, 1).clone(memory_format=torch.contiguous_format)


@contextmanager
def _untouched_random_state() -> Iterator[None]:
    """Preserve the random states of torch, numpy and random, which pykan's constructor seeds."""
    import numpy

    of_numpy, of_python = numpy.random.get_state(), random.getstate()
    with torch.random.fork_rng():
        yield
    numpy.random.set_state(of_numpy)
    random.setstate(of_python)
