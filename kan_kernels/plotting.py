"""`plot`: a net as the KAN paper draws it, every edge its function's curve."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .checks import check_number, check_rows
from .edge import Edge
from .network import KAN
from .sharding import check_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_POINTS = 65  # of a curve
_LAYER = 2.6  # a layer's height, in inches
_BOX = 1.3  # a curve's largest width; its height is 0.7 of its width
_WIDEST = 40.0  # of a figure


@torch.no_grad()
def plot(net: KAN, x: Tensor, beta: float = 3.0, least: float = 0.02) -> "Figure":
    """Draw a net: nodes as dots, every edge as a small curve of its function over the range of its inputs.

    Args:
        net: the `KAN`.
        x: (..., layers_hidden[0]), finite, at least two rows: the data that give ranges and scores.
        beta: > 0; an edge of score s (`KAN.attribute`) has opacity tanh(beta s), as in pykan.
        least: edges of less opacity than this are left out, so that wide nets can be drawn.

    Returns:
        A matplotlib Figure: `plot(net, x).savefig("net.png")`.

    Raises:
        ImportError: matplotlib is not installed (`pip install kan_kernels[plot]`).
        TypeError, ValueError: naming the argument.
    """
    if not isinstance(net, KAN):
        raise TypeError(f"net: expected a KAN, got {type(net).__name__}")
    check_whole("plot", net)
    layers = net.kan_layers()
    rows = check_rows(x, layers[0].in_features, 2)
    check_number("beta", beta, 0.0)
    check_number("least", least, 0.0)
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plot needs matplotlib: pip install kan_kernels[plot]") from error

    widths = [layers[0].in_features, *(layer.out_features for layer in layers)]
    opacity = [(beta * scores).tanh() for scores in net.attribute(rows).edges]
    shown = [(of_edges > least).nonzero().tolist() for of_edges in opacity]
    width = min(max(4.0, 0.6 * max(widths), *(_BOX * len(edges) for edges in shown)), _WIDEST)
    figure = Figure(figsize=(width, _LAYER * len(layers) + 0.6))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, 1)
    axes.set_ylim(-0.12, len(layers) + 0.12)
    for level, layer in enumerate(layers):
        wide = min(0.8 / max(1, len(shown[level])), _BOX / width)
        high = 0.7 * wide * width / _LAYER
        for place, (o, i) in enumerate(shown[level]):
            alpha = float(opacity[level][o, i])
            middle = ((place + 0.5) / len(shown[level]), level + 0.5)
            ends = (_across(i, widths[level]), level), (_across(o, widths[level + 1]), level + 1)
            for (across, up), towards in zip(ends, (-0.5, 0.5), strict=True):
                edge_of_box = middle[1] + high * towards
                axes.plot([across, middle[0]], [up, edge_of_box], color="black", alpha=alpha, linewidth=1, zorder=1)
            points, values = _curve(layer.edge(o, i), rows[:, i])
            inset = axes.inset_axes((middle[0] - wide / 2, middle[1] - high / 2, wide, high), transform=axes.transData)
            inset.plot(points, values, color="black", alpha=alpha, linewidth=1.5)
            inset.set(xticks=[], yticks=[])
            for spine in inset.spines.values():
                spine.set_alpha(alpha)
        rows = layer(rows)
    for level, nodes in enumerate(widths):
        axes.scatter([_across(k, nodes) for k in range(nodes)], [level] * nodes, color="black", s=25, zorder=2)
    return figure


def _across(k: int, width: int) -> float:
    return (k + 0.5) / width


def _curve(edge: Edge, x: Tensor) -> tuple[Tensor, Tensor]:
    """The edge's function over the range of x (N,)."""
    points = torch.linspace(float(x.min()), float(x.max()), _POINTS, dtype=x.dtype, device=x.device)
    return points.cpu(), edge(points).cpu()
