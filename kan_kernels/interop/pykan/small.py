"""Small copies of a pykan network, for comparing forwards: the same class and depth, with a few nodes per layer."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..equivalence import changed, chosen, spread, twin
from . import layers as pykan_layers

AFFINE = ("node_bias", "node_scale", "subnode_bias", "subnode_scale")


@dataclass(frozen=True)
class _Nodes:
    """The nodes between two layers that a copy keeps: some sums, some products, and all factors of those products."""

    nodes: list[int]
    subnodes: list[int]
    width: list[int]
    arities: list[int]


def small_network(net: nn.Module, known: Sequence[bool], share: float, with_formulas: bool) -> nn.Module:
    """Return a float64 copy that keeps the first and last sums and products between layers.

    Args:
        net: pykan's `MultKAN`. Its layers may be fused; the layers of the copy are not.
        known: which of its layers are pykan's. A stand-in with the same kind of outputs replaces each other layer.
        share: fraction of the elements of splines and affine transforms to change.
        with_formulas: make only the first edge of every layer symbolic. Otherwise the copy keeps the network's formulas, and
            disables them if all their masks are zero.
    """
    it = cast(Any, net)
    kept = [_kept(width, _arities(it, l)) for l, width in enumerate(it.width)]
    between = list(pairwise(kept))
    layers = [
        pykan_layers.small_copy(layer, before.nodes, after.subnodes, share) if its else _StandIn(before, after, it.input_id)
        for layer, its, (before, after) in zip(it.act_fun, known, between, strict=True)
    ]
    formulas = [
        _small_formulas(layer, before.nodes, after.subnodes, with_formulas)
        for layer, (before, after) in zip(it.symbolic_fun, between, strict=True)
    ]
    masks = [bool(cast(Any, layer).mask.any()) for layer in formulas]
    attributes = {
        "width": [nodes.width for nodes in kept],
        "mult_arity": it.mult_arity if it.mult_homo else [nodes.arities for nodes in kept],
        "input_id": it.input_id[kept[0].nodes],
        "symbolic_enabled": with_formulas or (it.symbolic_enabled and any(masks)),
        "save_act": True,
    }
    for name in AFFINE:
        ids = [after.subnodes if name.startswith("sub") else after.nodes for _, after in between]
        attributes[name] = [changed(chosen(t, some), share) for t, some in zip(getattr(it, name), ids, strict=True)]
    children = {"act_fun": nn.ModuleList(layers), "symbolic_fun": nn.ModuleList(formulas)}
    return twin(type(net), net, {}, attributes, children)


def network_inputs(ids: Tensor, inputs: Tensor) -> Tensor:
    """Return x (N, columns) with `inputs` in the columns `ids` that a network selects; -1 is the last column."""
    columns = int(torch.where(ids < 0, -ids, ids + 1).max())
    x = inputs.new_zeros(len(inputs), columns)
    x[:, ids.long()] = inputs
    return x


class _StandIn(nn.Module):
    """A layer with a scaled sine on every edge."""

    def __init__(self, before: _Nodes, after: _Nodes, like: Tensor) -> None:
        super().__init__()
        inputs, outputs = len(before.nodes), len(after.subnodes)
        self.grid = torch.tensor([[-1.0, 1.0]], dtype=torch.float64, device=like.device).repeat(inputs, 1)
        self.weight = changed(torch.zeros(outputs, inputs, device=like.device), 1.0)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the outputs of `KANLayer.forward`."""
        inputs = x.unsqueeze(1).expand(-1, len(self.weight), -1)
        splines = inputs.sin()
        values = self.weight * splines
        return values.sum(2), inputs, values, splines


def _arities(net: Any, l: int) -> list[int]:
    """Return the number of factors of every product node before layer l."""
    return [int(net.mult_arity)] * int(net.width[l][1]) if net.mult_homo else [int(a) for a in net.mult_arity[l]]


def _kept(width: Sequence[int], arities: list[int]) -> _Nodes:
    sums, products = map(int, width)
    some, few = spread(sums, 2), spread(products, 2)
    factors = [sums + sum(arities[:j]) + a for j in few for a in range(arities[j])]
    return _Nodes([*some, *(sums + j for j in few)], [*some, *factors], [len(some), len(few)], [arities[j] for j in few])


def _small_formulas(layer: nn.Module, inputs: list[int], outputs: list[int], with_formula: bool) -> nn.Module:
    it = cast(Any, layer)
    tensors = {n: chosen(getattr(it, n), outputs, inputs).to(torch.float64, copy=True) for n in ("mask", "affine")}
    attributes: dict[str, Any] = {"in_dim": len(inputs), "out_dim": len(outputs)}
    for name in ("funs", "funs_avoid_singularity"):
        attributes[name] = [[_in_float64(getattr(it, name)[o][i]) for i in inputs] for o in outputs]
    if with_formula:
        tensors["mask"].zero_()[0, 0] = 0.7
        tensors["affine"][0, 0] = torch.tensor([0.5, 0.3, 1.2, -0.4])
        attributes["funs"][0][0] = torch.sin
        attributes["funs_avoid_singularity"][0][0] = lambda x, y_th: ((), torch.sin(x))
    return twin(type(layer), layer, tensors, attributes)


def _in_float64(formula: Any) -> Any:
    return copy.deepcopy(formula).double() if isinstance(formula, nn.Module) else formula
