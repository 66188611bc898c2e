"""A function for every edge of a network: what `KAN.symbolic` does."""

import contextlib
import copy
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..symbolic import Function, Report, ReportedEdge, SymbolicKAN, SymbolicLayer
from ..symbolic.suggest import Search, candidates
from .linear import KANLinear

Place = tuple[int, int, int]  # layer, output, input


@torch.no_grad()
def symbolic_network(
    layers: Sequence[KANLinear], x: Tensor, search: Search, r2_threshold: float, progress: bool
) -> SymbolicKAN:
    """Return the network of the best functions on x (N, I), whose layers get the inputs that `layers` compute.

    Raises:
        ValueError: an edge that is not masked is constant on x.
    """
    edges = sum(1 for _ in _curves(layers, x))  # which checks all of them before the search, which takes longer
    report = Report()
    for (level, o, i), inputs, values in _with_progress(_curves(layers, x), edges, progress):
        found = candidates(inputs, values, search)
        function = found[0].name if found[0].r2 >= r2_threshold else None
        report.append(ReportedEdge(level, o, i, function, found[0].r2, found))
    of_layers = [[edge for edge in report if edge.layer == level] for level in range(len(layers))]
    return SymbolicKAN([_symbolic_layer(*both) for both in zip(layers, of_layers, strict=True)], report)


def _curves(layers: Sequence[KANLinear], x: Tensor) -> Iterator[tuple[Place, Tensor, Tensor]]:
    """Yield the place, inputs and values of every edge that is not masked."""
    for level, layer in enumerate(layers):
        for o in range(layer.out_features):
            for i in range(layer.in_features):
                if layer.edge_mask is not None and layer.edge_mask[o, i] == 0:
                    continue
                values = layer.edge(o, i)(x[:, i].contiguous())
                place = f"layer {level}, out_feature {o}, in_feature {i}"
                if not bool(values.isfinite().all()):
                    raise ValueError(f"x: expected finite values of every edge, got a NaN or an infinity at {place}")
                if bool((values == values[0]).all()):
                    raise ValueError(
                        f"x: expected edges that are not constant, got {values[0].item():g} for all rows at {place};"
                        " remove such edges with KAN.prune first"
                    )
                yield (level, o, i), x[:, i], values
        x = layer(x)


def _with_progress(curves: Iterator[Any], edges: int, progress: bool) -> Iterator[Any]:
    """Add a progress bar on a terminal after 2 s, if tqdm is installed."""
    if progress:
        with contextlib.suppress(ImportError):
            from tqdm import tqdm

            return iter(tqdm(curves, desc="formulas", total=edges, unit="edge", leave=False, delay=2, disable=None))
    return curves


def _symbolic_layer(layer: KANLinear, edges: Sequence[ReportedEdge]) -> SymbolicLayer:
    functions: list[list[Function | None]] = [[None] * layer.in_features for _ in range(layer.out_features)]
    affine = layer.spline_weight.new_zeros(layer.out_features, layer.in_features, 4)
    splines = torch.zeros_like(layer.spline_weight[..., 0])
    for _, o, i, name, _, found in edges:
        if name is None:
            splines[o, i] = 1
        else:
            functions[o][i] = found[0].function
            affine[o, i] = affine.new_tensor(found[0][2:6])
    rest = None
    if bool(splines.any()):
        rest = copy.deepcopy(layer)
        rest.edge_mask = splines
    return SymbolicLayer(functions, affine, rest)
