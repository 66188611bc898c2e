"""The rules that propagate jets through modules, by class."""

from collections.abc import Callable
from typing import Any, cast
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..functional import is_observed
from ..interop.efficient_kan import FusedKANLinear
from ..interop.efficient_kan import arguments as efficient_kans_arguments
from ..interop.pykan.networks import FusedMultKAN
from ..interop.pykan.networks import as_layers as pykans_layers
from ..nn import KAN, KANLinear
from ..reference import base_activation
from ..symbolic import SymbolicKAN
from ..utils.checks import class_name
from .jet import Jet
from .layer import propagate_through_layer

Rule = Callable[[Any, Jet], Jet]
_rules: dict[type[nn.Module], Rule] = {}
_sequences: WeakSet[nn.Module] = WeakSet()  # networks whose forward is known to apply their layers one after the other


def register_derivative_rule(module_class: type[nn.Module], rule: Rule) -> None:
    """Register how `laplacian`, `derivatives` and `hessian` propagate derivatives through a class of modules.

    Args:
        module_class: a subclass of `torch.nn.Module`. The rule applies to this class alone, not to its subclasses.
        rule: called as rule(module, jet) with the `Jet` of the module's input; it returns the jet of the output, e.g.
            `jet.elementwise(lambda x, n: torch.sin(x + n * torch.pi / 2))`, `jet.linear(module)` for a module without bias,
            or `jet.compose(module)` for any module that maps rows independently.

    Raises:
        TypeError: an argument is invalid.
    """
    if not (isinstance(module_class, type) and issubclass(module_class, nn.Module)):
        raise TypeError(f"module_class: expected a subclass of torch.nn.Module, got {module_class!r}")
    if not callable(rule):
        raise TypeError(f"rule: expected a callable, got {type(rule).__name__}")
    _rules[module_class] = rule


def propagate(module: nn.Module, jet: Jet) -> Jet:
    """Return the jet of module(x) for the jet of x.

    Raises:
        TypeError: the module, or one inside it, has no rule; the message names it.
        ValueError: a module has hooks, or another forward on the instance.
    """
    if is_observed(module):
        raise ValueError(
            f"net: expected modules without hooks and without another forward, got a {class_name(module)} with one"
        )
    rule = _rule_of(module)
    if rule is None:
        raise TypeError(
            f"net: expected modules with a rule for derivatives, got a {class_name(module)}; add one with"
            " kan_kernels.register_derivative_rule"
        )
    return rule(module, jet)


def _rule_of(module: nn.Module) -> Rule | None:
    own = _rules.get(type(module))
    if own is not None:
        return own
    if isinstance(module, FusedKANLinear):
        return _efficient_kans_layer
    if isinstance(module, FusedMultKAN):
        return _pykans_network
    for kind, rule in ((KANLinear, _kan_layer), (KAN, _kan), (nn.Sequential, _sequence)):
        if isinstance(module, kind) and type(module).forward is kind.forward:
            return rule
    layers = getattr(module, "layers", None)
    if isinstance(layers, nn.ModuleList) and len(layers) > 0 and all(isinstance(layer, FusedKANLinear) for layer in layers):
        return _efficient_kans_network
    return None


def _kan_layer(layer: KANLinear, jet: Jet) -> Jet:
    scaler, base_weight = layer._edge_factors()
    return _layer(jet, layer.spline_weight, layer.grid, base_weight, scaler, layer._activation())


def _efficient_kans_layer(layer: FusedKANLinear, jet: Jet) -> Jet:
    return _layer(jet, *efficient_kans_arguments(layer))


def _layer(jet: Jet, spline_weight: Tensor, grid: Tensor, base_weight: Tensor | None, scaler: Tensor | None, b: Any) -> Jet:
    fused = isinstance(b, str)
    result = propagate_through_layer(jet, spline_weight, grid, base_weight if fused else None, scaler, b if fused else "silu")
    if fused or base_weight is None or b is None:
        return result
    base = _of_activation(b, jet).linear(lambda t: F.linear(t, base_weight))
    return Jet(result.channels + base.channels, jet.layout)


def _of_activation(b: Any, jet: Jet) -> Jet:
    """Propagate through a base activation that is not fused, which is elementwise."""
    rule = _rules.get(type(b))
    if rule is not None and not is_observed(b):
        return rule(b, jet)
    return jet.compose(b)


def _kan(net: KAN, jet: Jet) -> Jet:
    return _sequence(net.layers, jet)


def _sequence(layers: Any, jet: Jet) -> Jet:
    for layer in layers:
        jet = propagate(layer, jet)
    return jet


def _efficient_kans_network(net: nn.Module, jet: Jet) -> Jet:
    """Propagate through efficient-kan's network, after one comparison of its forward with that of its layers."""
    layers = cast(nn.ModuleList, net.layers)
    if net not in _sequences:
        with torch.no_grad():
            x = jet.value[:4].detach()
            expected = x
            for layer in layers:
                expected = layer(expected)
            if not torch.allclose(net(x), expected, equal_nan=True):
                raise TypeError(
                    f"net: expected a network whose forward applies its layers one after the other, got a {class_name(net)}"
                )
        _sequences.add(net)
    return _sequence(layers, jet)


def _pykans_network(net: FusedMultKAN, jet: Jet) -> Jet:
    """Propagate through an accelerated pykan network: layers, affine transforms and products of nodes."""
    columns, layers = pykans_layers(net)
    jet = jet[columns]
    for arguments, (subnode_bias, subnode_scale), (node_bias, node_scale), groups in layers:
        jet = _layer(jet, *arguments)
        jet = _affine(jet, subnode_scale, subnode_bias)
        if groups is not None:
            sums, products = groups
            parts = [jet[:sums]]
            for places in products:
                product = jet[places[:1]]
                for place in places[1:]:
                    product = product * jet[[place]]
                parts.append(product)
            jet = Jet(torch.cat([part.channels for part in parts], -1), jet.layout)
        jet = _affine(jet, node_scale, node_bias)
    return jet


def _affine(jet: Jet, scale: Tensor, bias: Tensor) -> Jet:
    return jet.linear(lambda t: t * scale, bias)


def _linear(module: nn.Linear, jet: Jet) -> Jet:
    return jet.linear(lambda t: F.linear(t, module.weight), module.bias)


def _identity(_: nn.Module, jet: Jet) -> Jet:
    return jet


def _tanh(_: nn.Module, jet: Jet) -> Jet:
    t = torch.tanh(jet.value)
    return jet.elementwise(lambda _, n: _tanh_derivative(t, n))


def _tanh_derivative(t: Tensor, n: int) -> Tensor:
    """Return the n-th derivative of tanh where its value is t: a polynomial in t, since t' = 1 - t^2."""
    polynomial = [0.0, 1.0]  # lowest power first
    for _ in range(n):
        slope = [k * c for k, c in enumerate(polynomial)][1:]
        polynomial = [
            (slope[k] if k < len(slope) else 0.0) - (slope[k - 2] if 2 <= k < len(slope) + 2 else 0.0)
            for k in range(len(slope) + 2)
        ]
    total = torch.zeros_like(t)
    for c in reversed(polynomial):
        total = total * t + c
    return total


def _silu(_: nn.Module, jet: Jet) -> Jet:
    return jet.elementwise(lambda x, n: base_activation(x, "silu", n))


def _layer_norm(module: nn.LayerNorm, jet: Jet) -> Jet:
    """Propagate through the formula: nested forward mode of `torch.nn.functional.layer_norm` is wrong in torch 2.13."""
    if module.normalized_shape != (jet.value.shape[1],):
        raise ValueError(
            f"net: expected a LayerNorm over the last dimension of size {jet.value.shape[1]}, got {module.normalized_shape}"
        )

    def normalized(x: Tensor) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        y = centred * (centred.square().mean(-1, keepdim=True) + module.eps).rsqrt()
        y = y if module.weight is None else y * module.weight
        return y if module.bias is None else y + module.bias

    return jet.compose(normalized)


def _composed(module: nn.Module, jet: Jet) -> Jet:
    return jet.compose(module)


for _class, _rule in (
    (nn.Linear, _linear),
    (nn.Identity, _identity),
    (nn.Tanh, _tanh),
    (nn.SiLU, _silu),
    (nn.LayerNorm, _layer_norm),
    (nn.Sigmoid, _composed),
    (nn.GELU, _composed),
    (nn.Softplus, _composed),
    (SymbolicKAN, _composed),
):
    register_derivative_rule(cast(Any, _class), cast(Any, _rule))
