"""Where `plot` puts what it draws, in inches: rows of nodes, and between two rows a box for the curve of each edge."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

MARGIN = 0.1  # on each side of a picture
_WIDEST = 7.0  # a journal's double column
_NARROWEST = 2.0
NODE = 0.2  # the diameter of a node that has room for it
_SLOT = 0.25  # the narrowest place for a box in a single row
_LARGEST_SLOT = 1.1
_WRAPPED_SLOT = 0.28  # in a frame, where boxes have labels
LABEL = 0.09  # the height of such a label
_SHAPE = 0.75  # a box's height over its width
_GUTTER = 0.07  # between two frames
_MOST_ROWS = 10  # of boxes in a frame
_FEW_ROWS = 5  # where some edges have no box anyway
_ABOVE, _BELOW = 0.33, 0.47  # between nodes and boxes
_LEAST_SHRINKING = 0.45  # of heights, below which a picture is not readable


@dataclass(frozen=True)
class Place:
    """A rectangle: its lower left corner and its size."""

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
    """An edge to be drawn, of opacity > 0."""

    out: int
    in_: int
    opacity: float


@dataclass(frozen=True)
class Box:
    """The place of an edge's curve, and the x and y at which the line from its input node ends."""

    edge: ShownEdge
    place: Place
    entry: tuple[float, float]


@dataclass(frozen=True)
class Arrangement:
    """A layer's boxes: side by side, or, where these would be too narrow, in rows in a frame for each output node.

    Of edges for which there is no room, each frame leaves out the weakest, and frames are for the strongest output nodes.
    """

    blocks: list[list[ShownEdge]]
    rows: int
    columns: int  # of a block
    pitch: float  # of the blocks
    slot: float  # of the columns
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
        """Of the boxes, with their frame."""
        return self.rows * self.row_height + self.border

    @property
    def border(self) -> float:
        return 0.03 * self.is_wrapped

    @property
    def gaps(self) -> tuple[float, float]:
        """Between the nodes below and the boxes, and between the boxes and the nodes above."""
        more = self.shrinking * (1.6 if self.leaves_out or self.rows * len(self.blocks) > 50 else 1.0)
        return NODE / 2 + _BELOW * more, NODE / 2 + _ABOVE * more


@dataclass(frozen=True)
class Band:
    """A layer in its place, between the y of its input nodes and that of its output nodes."""

    bottom: float
    top: float
    boxes: list[Box]
    frames: dict[int, Place]  # by output node; empty unless boxes are wrapped


def natural_width(layers: Sequence[Sequence[ShownEdge]], texts: Sequence[float]) -> float:
    """As wide as single rows of large boxes and texts of these widths need, within limits."""
    needed = max(*(_LARGEST_SLOT * len(edges) for edges in layers), *texts)
    return min(max(needed + 2 * MARGIN, _NARROWEST), _WIDEST)


def across(rank: int, count: int, width: float) -> float:
    """The x of one of `count` things in a row."""
    return MARGIN + (rank + 0.5) / count * (width - 2 * MARGIN)


def node_size(count: int, width: float) -> float:
    """The diameter of each of `count` nodes in a row."""
    return min(NODE, 0.7 * (width - 2 * MARGIN) / max(1, count))


def arrange(edges: Sequence[ShownEdge], width: float, most_rows: int = _MOST_ROWS) -> Arrangement:
    """The boxes of a layer's edges within `width`."""
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
    """The layers' boxes in a picture of that size, of whose height labels take `rest`, and what is left of the height.

    Raises ValueError if the height does not suffice.
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
    """The layers one above the other, the first one's input nodes at y = `bottom`; gaps share `left` inches among them."""
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
