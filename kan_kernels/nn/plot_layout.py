"""The layout of `plot`, in inches: rows of nodes, and between two rows a box for the curve of each edge."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

MARGIN = 0.1  # on each side of the figure
_WIDEST = 7.0  # the default maximum width, a double column in a journal
_NARROWEST = 2.0
NODE = 0.2  # the maximum diameter of a node
_SLOT = 0.25  # the minimum width per box in a single row
_LARGEST_SLOT = 1.1
_WRAPPED_SLOT = 0.28  # the minimum width per box in a frame, where boxes have labels
LABEL = 0.09  # the height of a box label
_SHAPE = 0.75  # height / width of a box
_GUTTER = 0.07  # between two frames
_MOST_ROWS = 10  # of boxes in a frame
_FEW_ROWS = 5  # the maximum if some edges have no box in any case
_ABOVE, _BELOW = 0.33, 0.47  # between nodes and boxes
_LEAST_SHRINKING = 0.45  # the minimum vertical scale for a readable figure


@dataclass(frozen=True)
class Place:
    """A rectangle, given by its lower left corner and its size."""

    left: float
    bottom: float
    width: float
    height: float

    @property
    def middle(self) -> float:
        return self.left + self.width / 2

    @property
    def top(self) -> float:
        return self.bottom + self.height


@dataclass(frozen=True)
class ShownEdge:
    """An edge to draw, with opacity > 0."""

    out: int
    in_: int
    opacity: float


@dataclass(frozen=True)
class Box:
    """The rectangle of an edge's curve, and the end point (x, y) of the line from its input node."""

    edge: ShownEdge
    place: Place
    entry: tuple[float, float]


@dataclass(frozen=True)
class Arrangement:
    """The arrangement of a layer's boxes: in a single row, or wrapped in rows in a frame per output node.

    If not all boxes fit, the frames show the strongest output nodes, and each frame shows its strongest edges.
    """

    blocks: list[list[ShownEdge]]
    rows: int
    columns: int  # per block
    pitch: float  # width per block
    slot: float  # width per column
    is_wrapped: bool
    leaves_out: int  # edges without a box
    shrinking: float = 1.0

    @property
    def box_height(self) -> float:
        return _SHAPE * self.box_width * self.shrinking

    @property
    def box_width(self) -> float:
        return self.slot - 0.04 if self.is_wrapped else 0.82 * self.slot

    @property
    def row_height(self) -> float:
        return self.box_height + LABEL + 0.03 if self.is_wrapped else self.box_height

    @property
    def height(self) -> float:
        """The height of the boxes including their frame."""
        return self.rows * self.row_height + self.border

    @property
    def border(self) -> float:
        return 0.03 * self.is_wrapped

    @property
    def gaps(self) -> tuple[float, float]:
        """The distances from the nodes below to the boxes and from the boxes to the nodes above."""
        more = self.shrinking * (1.6 if self.leaves_out or self.rows * len(self.blocks) > 50 else 1.0)
        return NODE / 2 + _BELOW * more, NODE / 2 + _ABOVE * more


@dataclass(frozen=True)
class Band:
    """A layer's boxes and frames, between the y coordinates of its input and output nodes."""

    bottom: float
    top: float
    boxes: list[Box]
    frames: dict[int, Place]  # by output node; empty unless the boxes are wrapped


def natural_width(layers: Sequence[Sequence[ShownEdge]], texts: Sequence[float]) -> float:
    """Return the width that single rows of large boxes and texts of the given widths need, within limits."""
    needed = max(*(_LARGEST_SLOT * len(edges) for edges in layers), *texts)
    return min(max(needed + 2 * MARGIN, _NARROWEST), _WIDEST)


def across(rank: int, count: int, width: float) -> float:
    """Return the x coordinate of item `rank` of `count` in a row."""
    return MARGIN + (rank + 0.5) / count * (width - 2 * MARGIN)


def node_size(count: int, width: float) -> float:
    """Return the diameter of the nodes in a row of `count`."""
    return min(NODE, 0.7 * (width - 2 * MARGIN) / max(1, count))


def arrange(edges: Sequence[ShownEdge], width: float, most_rows: int = _MOST_ROWS) -> Arrangement:
    """Arrange the boxes of a layer's edges within `width`."""
    width -= 2 * MARGIN
    if len(edges) * _SLOT <= width:
        slot = min(width / max(1, len(edges)), _LARGEST_SLOT)
        return Arrangement([list(edges)], 1, len(edges), width, slot, is_wrapped=False, leaves_out=0)

    by_output: dict[int, list[ShownEdge]] = {}
    for edge in edges:
        by_output.setdefault(edge.out, []).append(edge)
    strongest = sorted(by_output.values(), key=lambda block: -sum(edge.opacity for edge in block))
    blocks = sorted(strongest[: max(1, int(width / (_WRAPPED_SLOT + _GUTTER)))], key=lambda block: block[0].out)
    pitch = width / len(blocks)
    columns = max(1, int((pitch - _GUTTER) / _WRAPPED_SLOT))
    longest = max(len(block) for block in blocks)
    rows = math.ceil(longest / columns)
    if rows > most_rows or len(blocks) < len(by_output):
        rows = min(rows, most_rows, _FEW_ROWS)
    columns = min(columns, math.ceil(longest / rows))
    slot = min((pitch - _GUTTER) / columns, 0.5)
    kept = [_strongest(block, rows * columns) for block in blocks]
    left_out = len(edges) - sum(len(block) for block in kept)
    return Arrangement(kept, rows, columns, pitch, slot, is_wrapped=True, leaves_out=left_out)


def _strongest(edges: Sequence[ShownEdge], count: int) -> list[ShownEdge]:
    return sorted(sorted(edges, key=lambda edge: -edge.opacity)[:count], key=lambda edge: edge.in_)


def fit(
    layers: Sequence[Sequence[ShownEdge]], width: float, height: float | None, rest: float
) -> tuple[list[Arrangement], float]:
    """Arrange all layers in a figure of the given size, where labels take `rest` of the height. Also return the unused height.

    Raises ValueError if the height is too small.
    """
    arrangements = [arrange(edges, width) for edges in layers]
    if height is None:
        return arrangements, 0.0
    for most_rows in range(_MOST_ROWS, 0, -1):
        arrangements = [arrange(edges, width, most_rows) for edges in layers]
        left = height - rest - _height(arrangements)
        if left >= 0:
            return arrangements, left
    low, high = _LEAST_SHRINKING, 1.0
    least = rest + _height([replace(a, shrinking=low) for a in arrangements])
    if least > height:
        raise ValueError(f"size: expected a height of at least {math.ceil(10 * least) / 10} inches for this net, got {height}")
    for _ in range(20):
        middle = (low + high) / 2
        fits = rest + _height([replace(a, shrinking=middle) for a in arrangements]) <= height
        low, high = (middle, high) if fits else (low, middle)
    return [replace(a, shrinking=low) for a in arrangements], 0.0


def _height(arrangements: Sequence[Arrangement]) -> float:
    return sum(sum(a.gaps) + a.height for a in arrangements)


def stack(arrangements: Sequence[Arrangement], bottom: float, left: float = 0.0) -> list[Band]:
    """Stack the layers, with the first input nodes at y = `bottom`, and distribute `left` inches over the gaps."""
    bands = []
    for arrangement in arrangements:
        below, above = (gap + left / len(arrangements) / 2 for gap in arrangement.gaps)
        band = _band(arrangement, bottom, below, above)
        bands.append(band)
        bottom = band.top
    return bands


def _band(a: Arrangement, bottom: float, below: float, above: float) -> Band:
    boxes, frames = [], {}
    frame_bottom = bottom + below
    for number, block in enumerate(a.blocks):
        middle = MARGIN + (number + 0.5) * a.pitch
        step = a.slot if a.is_wrapped else a.pitch / max(1, a.columns)
        frame_width = a.columns * a.slot
        for k, edge in enumerate(block):
            row, column = divmod(k, a.columns)
            left = middle + (column + 0.5 - a.columns / 2) * step - a.box_width / 2
            place = Place(left, frame_bottom + (a.rows - 1 - row) * a.row_height + a.border, a.box_width, a.box_height)
            entry = middle + ((k + 0.5) / len(block) - 0.5) * frame_width if a.is_wrapped else place.middle
            boxes.append(Box(edge, place, (entry, frame_bottom)))
        if a.is_wrapped:
            frames[block[0].out] = Place(middle - frame_width / 2, frame_bottom, frame_width, a.height)
    return Band(bottom, frame_bottom + a.height + above, boxes, frames)
