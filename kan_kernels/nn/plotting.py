"""`plot`: draw a network as in the KAN paper, with the curve of every edge's function."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..utils.checks import check_number, check_rows, class_name
from ..utils.dtensor import check_whole
from .kan import KAN
from .plot_drawing import Content, draw
from .plot_layout import ShownEdge

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_POINTS = 65  # per curve
_SIZES = (1.0, 100.0)  # inches


@torch.no_grad()
def plot(
    net: KAN,
    x: Tensor,
    beta: float = 3.0,
    least: float = 0.02,
    *,
    size: float | tuple[float, float] | None = None,
    in_names: Sequence[str] | None = None,
    out_names: Sequence[str] | None = None,
    title: str | None = None,
    edge_labels: Mapping[tuple[int, int, int], str] | None = None,
) -> "Figure":
    """Draw a network: nodes in rows with the inputs at the bottom, and a small curve of every edge's function.

    Each curve covers the range of the edge's inputs on x and has its own scale. An edge or node with score s (`KAN.attribute`)
    has opacity tanh(beta s / s_max), where s_max is the largest score in its layer or row. (pykan uses tanh(beta s), which
    makes wide layers hard to see because all of their scores are small.) Edges whose opacity does not exceed `least`,
    including pruned edges, are omitted, and so are nodes without an edge that leads to an output.

    If the boxes of a layer would be too narrow side by side, each output node has a frame that contains its boxes in rows,
    labelled with the input names, or with indices if the names are too long. If not all boxes fit, the strongest nodes have
    frames with their strongest edges, labelled "input→output" by index. The other edges are drawn as lines, and a footer gives
    the number of edges that have a curve.

    Args:
        net: a `KAN`. Use `KAN.from_pykan` and `KAN.from_efficient_kan` to convert other networks.
        x: (..., layers_hidden[0]), finite, at least two rows: the data for the ranges and scores.
        beta: >= 0; larger values make weak edges and nodes more visible.
        least: in [0, 1], the opacity that an edge must exceed to be drawn.
        size: (width, height) or width in inches, from 1 to 100. The default height fits the network. The default width fits
            the network, up to 7 inches (a double column in a journal).
        in_names, out_names: layers_hidden[0] and layers_hidden[-1] strings, by default x and y with indices. Long names are
            rotated; if they still do not fit, only every n-th name is drawn.
        title: text above the network, wrapped to the width of the figure.
        edge_labels: texts for the curves of edges by (layer, out_feature, in_feature), e.g. `SymbolicKAN.functions`. Texts for
            edges that are not drawn are ignored.

    Returns:
        A matplotlib Figure, e.g. for `plot(net, x).savefig("net.pdf")`. Its artists have ids (`get_gid()`), which are kept in
        SVG files: "curve-l-o-i" and "box-l-o-i" for layer l, output o and input i, and "node-l-k", where l = 0 is the inputs.

    Raises:
        ImportError: matplotlib is not installed (`pip install kan_kernels[plot]`).
        TypeError, ValueError: an argument is invalid; the message names it.
    """
    if not isinstance(net, KAN):
        hint = "KAN.from_pykan and KAN.from_efficient_kan convert other networks"
        raise TypeError(f"net: expected a kan_kernels.KAN, got {class_name(net)}; {hint}")
    check_whole("plot", net)
    layers = net._kan_layers()
    rows = check_rows(x, layers[0].in_features, 2)
    check_number("beta", beta, 0.0)
    check_number("least", least, 0.0, 1.0)
    width, height = _checked_size(size)
    names = [
        _checked_names("in_names", in_names, layers[0].in_features, "x"),
        *([str(k) for k in range(layer.out_features)] for layer in layers[:-1]),
        _checked_names("out_names", out_names, layers[-1].out_features, "y"),
    ]
    if title is not None and not isinstance(title, str):
        raise TypeError(f"title: expected a string or None, got {type(title).__name__}")
    labels = _checked_labels(edge_labels)

    scores = net.attribute(rows)
    edges = _shown([_opacity(of_layer, beta) for of_layer in scores.edges], least)
    alive = [{edge.in_ for edge in of_layer} for of_layer in edges] + [set(range(layers[-1].out_features))]
    opacities = [_opacity(of_row, beta).tolist() for of_row in scores.nodes]
    nodes = [{k: of_row[k] for k in sorted(left)} for left, of_row in zip(alive, opacities, strict=True)]
    inputs = [rows]
    for layer in layers[:-1]:
        inputs.append(layer(inputs[-1]))

    def curve(level: int, edge: ShownEdge) -> tuple[list[float], list[float]]:
        of_input = inputs[level][:, edge.in_]
        low, high = float(of_input.min()), float(of_input.max())
        points = torch.linspace(low, high, _POINTS, dtype=x.dtype, device=x.device)
        return points.tolist(), layers[level].edge(edge.out, edge.in_)(points).tolist()

    return draw(Content(nodes, edges, names, title, labels), curve, width, height)


def _opacity(scores: Tensor, beta: float) -> Tensor:
    scores = scores.double()
    return (beta * scores / scores.max().clamp_min(torch.finfo(scores.dtype).tiny)).tanh()


def _shown(opacities: Sequence[Tensor], least: float) -> list[list[ShownEdge]]:
    """Return the edges of every layer whose opacity exceeds `least` and that lead to an output."""
    layers: list[list[ShownEdge]] = []
    for opacity in reversed(opacities):
        edges = [ShownEdge(o, i, float(opacity[o, i])) for o, i in (opacity > least).nonzero().tolist()]
        if layers:
            leads_on = {edge.in_ for edge in layers[0]}
            edges = [edge for edge in edges if edge.out in leads_on]
        layers.insert(0, edges)
    return layers


def _checked_size(size: Any) -> tuple[float | None, float | None]:
    if size is None:
        return None, None
    if not isinstance(size, tuple | list):
        check_number("size", size, *_SIZES)
        return float(size), None
    if len(size) != 2:
        raise ValueError(f"size: expected a width, or a width and a height, got {len(size)} numbers")
    for position, length in enumerate(size):
        check_number(f"size[{position}]", length, *_SIZES)
    return float(size[0]), float(size[1])


def _checked_labels(labels: Any) -> dict[tuple[int, int, int], str]:
    if labels is None:
        return {}
    if not isinstance(labels, Mapping):
        raise TypeError(f"edge_labels: expected a mapping or None, got {type(labels).__name__}")
    for place, label in labels.items():
        if not isinstance(place, tuple) or len(place) != 3:
            raise ValueError(f"edge_labels: expected keys (layer, out_feature, in_feature), got {place!r}")
        if not isinstance(label, str):
            raise TypeError(f"edge_labels[{place}]: expected a string, got {type(label).__name__}")
    return dict(labels)


def _checked_names(argument: str, names: Any, count: int, letter: str) -> list[str]:
    if names is None:
        return [f"${letter}_{{{k}}}$" for k in range(count)]
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise TypeError(f"{argument}: expected a sequence of strings, got {type(names).__name__}")
    if len(names) != count:
        raise ValueError(f"{argument}: expected {count} names, got {len(names)}")
    for position, name in enumerate(names):
        if not isinstance(name, str):
            raise TypeError(f"{argument}[{position}]: expected a string, got {type(name).__name__}")
    return list(names)
