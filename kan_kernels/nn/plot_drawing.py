"""Drawing of `plot` in matplotlib."""

import math
import re
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .plot_layout import MARGIN, NODE, Arrangement, Band, ShownEdge, across, fit, natural_width, node_size, stack

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curve = Callable[[int, ShownEdge], tuple[list[float], list[float]]]
Point = tuple[float, float]

# Font sizes in points.
_TITLE = 10.0
_NAMES = (9.0, 8.0, 7.0)  # the largest that fits is used
_UPRIGHT = (8.0, 7.0, 6.0, 5.5)
_INDEX = 7.0  # in a node
_SMALL = 5.0  # box labels
_FOOT = 6.5

_NUMBERED = 0.13  # the minimum diameter in inches of a node that shows its index
_DOT = 0.1  # the diameter of nodes without an index
_FEW = 100  # fewer lines than this are drawn thick
_MEASURED = 50  # texts measured per row
_MANY = 1000  # more lines than this are rasterized in vector files
_LIGHTEST_LINE, _LIGHTEST = 0.9, 0.72  # grey level for opacity 0


@dataclass(frozen=True)
class Content:
    """The content of a figure: node opacities and names per row, edges per layer, the title, and labels of edges."""

    nodes: list[dict[int, float]]
    edges: list[list[ShownEdge]]
    names: list[list[str]]
    title: str | None
    labels: dict[tuple[int, int, int], str]  # by (layer, output, input)


@dataclass(frozen=True)
class Labels:
    """The style of the names below or above the network; every `stride`-th name is drawn."""

    points: float
    rotation: float
    stride: int
    height: float  # inches


def draw(content: Content, curve: Curve, width: float | None, height: float | None) -> "Figure":
    """Draw the figure. `curve` returns the points and values of an edge. By default width and height fit the network.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: the height is too small.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("plot needs matplotlib: pip install kan_kernels[plot]") from error

    figure = Figure(facecolor="white")  # independent of the style, because low opacity is drawn as light grey
    FigureCanvasAgg(figure)  # required to measure texts
    shown = [[names[k] for k in nodes] for names, nodes in zip(content.names, content.nodes, strict=True)]
    if width is None:
        needed = [len(names) * (_size(figure, names, _NAMES[0])[0] + 0.08) for names in (shown[0], shown[-1])]
        needed.append(_size(figure, [content.title or ""], _TITLE)[0])
        width = natural_width(content.edges, needed)
    below, above = (_labels(figure, names, width - 2 * MARGIN) for names in (shown[0], shown[-1]))
    title, title_height = _title(figure, content.title, width - 2 * MARGIN)
    radius = NODE / 2
    for foot in (0.0, 0.15):
        bottom, top = MARGIN + foot + below.height + radius, radius + above.height + title_height + MARGIN
        arrangements, left = fit(content.edges, width, height, bottom + top)
        if all(a.leaves_out == 0 for a in arrangements):
            break
    bands = stack(arrangements, bottom, left)

    figure.set_size_inches(width, bands[-1].top + top)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set(xlim=(0, width), ylim=(0, bands[-1].top + top))
    places = _node_places(content, bands, width)
    for level, band in enumerate(bands):
        _draw_lines(axes, content, level, band, places)
        _draw_frames(axes, band)
        _draw_boxes(axes, level, band, _box_texts(figure, content, level, band), curve)
        _draw_labels(axes, content, level, band)
    for level, of_row in enumerate(places):
        _draw_nodes(axes, content, level, of_row, node_size(len(of_row), width))
    _draw_names(axes, shown[0], places[0], below, -radius)
    _draw_names(axes, shown[-1], places[-1], above, radius)
    if title:
        axes.text(width / 2, bands[-1].top + top - MARGIN, title, size=_TITLE, color="black", ha="center", va="top")
    _draw_foot(axes, content, arrangements)
    return figure


def _node_places(content: Content, bands: Sequence[Band], width: float) -> list[dict[int, Point]]:
    heights = [bands[0].bottom, *(band.top for band in bands)]
    return [
        {k: (across(rank, len(nodes), width), y) for rank, k in enumerate(nodes)}
        for nodes, y in zip(content.nodes, heights, strict=True)
    ]


def _draw_lines(axes: "Axes", content: Content, level: int, band: Band, places: Sequence[dict[int, Point]]) -> None:
    """Draw lines from input nodes through boxes or frames to output nodes, and direct lines for edges without a box."""
    below, above = places[level], places[level + 1]
    lines: list[tuple[float, list[Point]]] = []
    for box in band.boxes:
        lines.append((box.edge.opacity, [below[box.edge.in_], box.entry]))
        if box.edge.out not in band.frames:
            lines.append((box.edge.opacity, [(box.place.middle, box.place.top), above[box.edge.out]]))
    for out, frame in band.frames.items():
        lines.append((content.nodes[level + 1][out], [(frame.middle, frame.top), above[out]]))
    boxed = {(box.edge.out, box.edge.in_) for box in band.boxes}
    others = [edge for edge in content.edges[level] if (edge.out, edge.in_) not in boxed]
    darkest = min(0.6, 8 / math.sqrt(1 + len(others)))  # lighter if many lines overlap
    _add_lines(axes, [(darkest * edge.opacity, [below[edge.in_], above[edge.out]]) for edge in others], 0.3)
    _add_lines(axes, lines, 0.8 if len(lines) < _FEW else 0.4)


def _add_lines(axes: "Axes", lines: list[tuple[float, list[Point]]], thickness: float) -> None:
    from matplotlib.collections import LineCollection

    lines.sort(key=lambda line: line[0])  # draw the strongest last
    colors = [_grey(opacity, _LIGHTEST_LINE) for opacity, _ in lines]
    collection = LineCollection([points for _, points in lines], colors=colors, linewidths=thickness, zorder=1)
    collection.set_rasterized(len(lines) > _MANY)
    axes.add_collection(collection, autolim=False)


def _draw_frames(axes: "Axes", band: Band) -> None:
    from matplotlib.patches import Rectangle

    for frame in band.frames.values():
        corner = (frame.left, frame.bottom)
        axes.add_patch(
            Rectangle(corner, frame.width, frame.height, facecolor="white", edgecolor="0.75", linewidth=0.5, zorder=2)
        )


def _draw_boxes(axes: "Axes", level: int, band: Band, texts: Sequence[str], curve: Curve) -> None:
    """Draw the boxes with their curves, and labels if the boxes are in frames."""
    from matplotlib.patches import Rectangle

    for box, text in zip(band.boxes, texts, strict=True):
        edge, place = box.edge, box.place
        color = _grey(edge.opacity, _LIGHTEST)
        ids = f"{level}-{edge.out}-{edge.in_}"
        line = 0.4 if band.frames else 0.6
        corner = (place.left, place.bottom)
        rectangle = Rectangle(corner, place.width, place.height, facecolor="white", edgecolor=color, linewidth=line, zorder=3)
        rectangle.set_gid(f"box-{ids}")
        axes.add_patch(rectangle)
        points, values = curve(level, edge)
        along, up = _scaled(points, place.left, place.width), _scaled(values, place.bottom, place.height)
        thickness = 0.9 if band.frames else 1.3
        axes.plot(along, up, color=color, linewidth=thickness, solid_capstyle="round", zorder=4, gid=f"curve-{ids}")
        if band.frames:
            axes.text(place.middle, place.top + 0.015, text, size=_SMALL, color="0.35", ha="center", va="bottom", zorder=4)


def _draw_labels(axes: "Axes", content: Content, level: int, band: Band) -> None:
    """Draw the labels of edges: above the left corner of the box, or inside the box if boxes are in frames."""
    for box in band.boxes:
        label = content.labels.get((level, box.edge.out, box.edge.in_))
        if label is None:
            continue
        place = box.place
        if band.frames:
            axes.text(place.left + 0.015, place.top - 0.01, label, size=_SMALL, color="black", ha="left", va="top", zorder=5)
        else:
            axes.text(place.left, place.top + 0.02, label, size=_FOOT, color="black", ha="left", va="bottom", zorder=5)


def _box_texts(figure: "Figure", content: Content, level: int, band: Band) -> list[str]:
    """Return the box labels: input names, indices if names are too long, or "input→output" if not all edges have a box."""
    edges = [box.edge for box in band.boxes]
    if len(edges) < len(content.edges[level]):
        return [f"{edge.in_}→{edge.out}" for edge in edges]
    names = [content.names[level][edge.in_] for edge in edges]
    if edges and _size(figure, sorted(set(names)), _SMALL)[0] > band.boxes[0].place.width:
        return [str(edge.in_) for edge in edges]
    return names


def _draw_nodes(axes: "Axes", content: Content, level: int, places: dict[int, Point], diameter: float) -> None:
    """Draw the nodes of a row; hidden nodes that are large enough show their index."""
    from matplotlib.patches import Circle

    is_hidden = 0 < level < len(content.nodes) - 1
    for k, place in places.items():
        numbered = is_hidden and diameter >= _NUMBERED
        opacity = content.nodes[level][k]
        node = Circle(place, diameter / 2 if numbered else min(diameter, _DOT) / 2, zorder=5, linewidth=0)
        node.set(facecolor=_grey(opacity, _LIGHTEST), gid=f"node-{level}-{k}")
        axes.add_patch(node)
        if numbered:
            color = "white" if opacity > 0.4 else "black"
            points = min(_INDEX, 90 * diameter / len(str(k)))
            axes.text(*place, str(k), size=points, color=color, ha="center", va="center_baseline", zorder=6)


def _draw_names(axes: "Axes", names: Sequence[str], places: dict[int, Point], labels: Labels, offset: float) -> None:
    """Draw the names below (offset < 0) or above the nodes."""
    for rank, (name, (x, y)) in enumerate(zip(names, places.values(), strict=True)):
        if rank % labels.stride == 0:
            side = "top" if offset < 0 else "bottom"
            axes.text(x, y + offset, name, size=labels.points, rotation=labels.rotation, color="black", ha="center", va=side)


def _draw_foot(axes: "Axes", content: Content, arrangements: Sequence[Arrangement]) -> None:
    told = [
        f"layer {level}: {len(edges) - arrangement.leaves_out} of {len(edges)} edges have a curve"
        for level, (edges, arrangement) in enumerate(zip(content.edges, arrangements, strict=True))
        if arrangement.leaves_out
    ]
    if told:
        axes.text(MARGIN, MARGIN / 2, "; ".join(told).capitalize(), size=_FOOT, color="0.35", ha="left", va="bottom")


def _labels(figure: "Figure", names: Sequence[str], width: float) -> Labels:
    """Return the largest label style that fits into `width`: horizontal, rotated, or only every n-th name."""
    if not names:
        return Labels(_NAMES[0], 0.0, 1, 0.0)
    place = width / len(names)
    wide, high = (length / _NAMES[0] for length in _size(figure, names, _NAMES[0]))  # per point of font size
    for points in _NAMES:
        if points * wide + 0.06 <= place:
            return Labels(points, 0.0, 1, points * high + 0.04)
    for points in _UPRIGHT:
        if points * high <= place:
            return Labels(points, 90.0, 1, points * wide + 0.04)
    return Labels(points, 90.0, math.ceil(points * high / place), points * wide + 0.04)


def _title(figure: "Figure", title: str | None, width: float) -> tuple[str, float]:
    """Return the title, wrapped to `width`, and its height."""
    if not title:
        return "", 0.0
    wide, _ = _size(figure, [title], _TITLE)
    if wide > width:
        longest = max(map(len, title.splitlines()))
        title = "\n".join(_broken(line, int(longest * width / wide)) for line in title.splitlines())
    return title, _size(figure, [title], _TITLE)[1] + 0.08


def _broken(line: str, characters: int) -> str:
    """Wrap a line at spaces, except inside formulas between dollar signs."""
    unbroken = re.sub(r"\$[^$]*\$", lambda formula: formula[0].replace(" ", "\N{NO-BREAK SPACE}"), line)
    lines = textwrap.fill(unbroken, max(1, characters), break_long_words=False)
    return lines.replace("\N{NO-BREAK SPACE}", " ")


def _size(figure: "Figure", texts: Sequence[str], points: float) -> tuple[float, float]:
    """Return the largest width and height of the texts in inches. Only the longest `_MEASURED` texts are measured."""
    sizes = [(0.0, 0.0)]
    for text in sorted(set(texts), key=len)[-_MEASURED:]:
        artist = figure.text(0, 0, text, size=points)
        box = artist.get_window_extent()
        sizes.append((box.width / figure.dpi, box.height / figure.dpi))
        artist.remove()
    return max(wide for wide, _ in sizes), max(high for _, high in sizes)


def _scaled(values: Sequence[float], low: float, length: float) -> list[float]:
    """Scale values into a box with a margin. Constant values are mapped to the middle."""
    least, most = min(values), max(values)
    if not most > least:
        return [low + length / 2] * len(values)
    return [low + length * (0.08 + 0.84 * (value - least) / (most - least)) for value in values]


def _grey(opacity: float, lightest: float) -> str:
    """Return a grey level for an opacity. Overlapping light lines, unlike transparent ones, remain distinguishable."""
    return f"{lightest * (1 - opacity):.3f}"
