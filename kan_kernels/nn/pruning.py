"""Attribution scores of nodes and edges, and pruning by these scores."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .linear import KANLinear


@dataclass(frozen=True, eq=False)
class AttributionScores:
    """Scores like pykan's `node_scores` and `edge_scores`: nodes[l] (width of row l), inputs first; edges[l] (O, I).

    They are differentiable. Call `attribute` under `torch.no_grad()` to use them as plain numbers.
    """

    nodes: list[Tensor]
    edges: list[Tensor]


@dataclass(frozen=True)
class PruneResult:
    """What `KAN.prune` removed, with the node indices of the original network. Its string form has a line per layer."""

    nodes: list[list[int]]  # per hidden layer, the removed nodes
    edges: list[list[tuple[int, int]]]  # per layer, the masked (output, input) pairs between remaining nodes
    widths: list[int]

    def __str__(self) -> str:
        lines = [f"widths now {self.widths}"]
        lines += [f"hidden layer {k + 1}: {len(nodes)} nodes cut" for k, nodes in enumerate(self.nodes)]
        lines += [f"layer {k}: {len(edges)} edges cut" for k, edges in enumerate(self.edges)]
        return "\n".join(lines)


def attribute(layers: Sequence[KANLinear], x: Tensor) -> AttributionScores:
    """See `KAN.attribute`."""
    inputs = [x]
    for before in layers[:-1]:
        inputs.append(before(inputs[-1]))
    outputs = layers[-1].out_features
    scores = torch.eye(outputs, dtype=x.dtype, device=x.device)  # score of every node for every output of the network
    nodes = [scores.mean(0)]
    edges: list[Tensor] = []
    for layer, into in zip(reversed(layers), reversed(inputs), strict=True):
        of_edges = layer.edge_scores(into, scores)
        scores = of_edges.sum(1)
        edges.insert(0, of_edges.mean(0))
        nodes.insert(0, scores.mean(0))
    return AttributionScores(nodes, edges)


@torch.no_grad()
def prune(layers: Sequence[KANLinear], x: Tensor, node_th: float, edge_th: float) -> PruneResult:
    """Prune `layers` in place; see `KAN.prune`."""
    kept = [torch.arange(layers[0].in_features, device=x.device)]
    for level, scores in enumerate(attribute(layers, x).nodes[1:-1], 1):
        kept.append((scores > node_th).nonzero().flatten())
        if len(kept[-1]) == 0:
            raise ValueError(
                f"node_th: expected a value that keeps nodes in hidden layer {level}, whose largest score is"
                f" {scores.max().item():.3g}, got {node_th}"
            )
    kept.append(torch.arange(layers[-1].out_features, device=x.device))
    nodes = [
        sorted(set(range(layer.out_features)) - set(left.tolist()))
        for layer, left in zip(layers[:-1], kept[1:-1], strict=True)
    ]
    for layer, rows, columns in zip(layers, kept, kept[1:], strict=False):
        _take(layer, rows, columns)
    edges = []
    for k, (layer, scores) in enumerate(zip(layers, attribute(layers, x).edges, strict=True)):
        before = torch.ones_like(scores) if layer.edge_mask is None else layer.edge_mask
        layer.edge_mask = (scores > edge_th).to(before.dtype) * before
        masked = (before != layer.edge_mask).nonzero().tolist()
        edges.append(sorted((int(kept[k + 1][o]), int(kept[k][i])) for o, i in masked))
    return PruneResult(nodes, edges, [len(left) for left in kept])


def _take(layer: KANLinear, inputs: Tensor, outputs: Tensor) -> None:
    """Reduce a layer to some of its inputs and outputs."""
    layer.in_features, layer.out_features = len(inputs), len(outputs)
    layer.grid = layer.grid[inputs]
    left = (outputs.unsqueeze(1), inputs)
    layer.edge_mask = None if layer.edge_mask is None else layer.edge_mask[left]
    for name, value in list(layer.named_parameters(recurse=False)):  # all (O, I, ...)
        setattr(layer, name, nn.Parameter(value.detach()[left], requires_grad=value.requires_grad))
