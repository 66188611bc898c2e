"""Tests of what `plot` draws, of its size and legibility, and of its errors."""

import re
from itertools import pairwise

import matplotlib.style
import pytest
import torch

import kan_kernels as kk


def network(*widths, **arguments):
    torch.manual_seed(0)
    return kk.KAN(widths, scale_noise=1.0, **arguments), torch.rand(97, widths[0], dtype=arguments.get("dtype")) * 2 - 1


def artists(figure, kind):
    """Return the artists of a kind by the numbers in their ids: (layer, output, input) of edges, (row, index) of nodes."""
    found = [(artist, re.fullmatch(rf"{kind}-([\d-]+)", artist.get_gid() or "")) for artist in figure.axes[0].get_children()]
    return {tuple(map(int, match[1].split("-"))): artist for artist, match in found if match}


def texts(figure):
    return [text.get_text() for text in figure.axes[0].texts]


def is_inside(figure, boxes):
    width, height = figure.bbox.width, figure.bbox.height
    return all(box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height for box in boxes)


@pytest.mark.parametrize("widths", [(1, 1), (3, 1), (1, 7, 1), (2, 5, 1), (4, 8, 3), (20, 10, 2), (5, 4, 3, 3, 2), (64, 1)])
def test_every_edge_has_a_box_in_a_picture_of_a_column(widths):
    net, x = network(*widths)
    figure = kk.plot(net, x, beta=100.0, least=0.0)
    edges = {
        (level, o, i)
        for level, layer in enumerate(net.layers)
        for o in range(layer.out_features)
        for i in range(layer.in_features)
    }
    boxes = artists(figure, "box")
    assert set(boxes) == set(artists(figure, "curve")) == edges
    assert set(artists(figure, "node")) == {(row, k) for row, width in enumerate(widths) for k in range(width)}
    assert figure.get_figwidth() <= 7
    assert figure.get_figheight() < 9
    places = [box.get_window_extent() for box in boxes.values()]
    assert min(place.width for place in places) > 0.18 * figure.dpi
    assert is_inside(figure, places + [text.get_window_extent() for text in figure.axes[0].texts])
    assert not any(one.overlaps(other) for k, one in enumerate(places) for other in places[:k])


def test_curves_are_the_edges_functions():
    """Every curve covers the range of its inputs and fills the height of its box."""
    net, x = network(3, 2, 1, dtype=torch.float64)
    figure = kk.plot(net, x)
    hidden = net.layers[0](x)
    for (layer, out, in_), line in artists(figure, "curve").items():
        of_input = (x, hidden)[layer][:, in_]
        across, up = (torch.as_tensor(values) for values in line.get_data())
        points = of_input.min() + (across - across[0]) / (across[-1] - across[0]) * (of_input.max() - of_input.min())
        values = net.layers[layer].edge(out, in_)(points).detach()
        torch.testing.assert_close(
            (up - up.min()) / (up.max() - up.min()), (values - values.min()) / (values.max() - values.min())
        )
        box = artists(figure, "box")[layer, out, in_]
        assert box.get_x() < across[0] < across[-1] < box.get_x() + box.get_width()
        assert box.get_y() < up.min() < up.max() < box.get_y() + box.get_height()


def grey(artist):
    color = artist.get_color() if hasattr(artist, "get_color") else artist.get_facecolor()[0]
    return float(color)


def test_edges_and_nodes_are_as_dark_as_their_scores_say():
    net, x = network(4, 5, 2)
    with torch.no_grad():
        net.layers[0].spline_weight[:, 1] *= 0.1
        net.layers[0].base_weight[:, 1] *= 0.1
    figure, scores = kk.plot(net, x, beta=1.0), net.attribute(x)
    for layer, of_edges in enumerate(scores.edges):
        curves = {key: line for key, line in artists(figure, "curve").items() if key[0] == layer}
        expected = sorted(curves, key=lambda key: -of_edges[key[1], key[2]].item())
        assert sorted(curves, key=lambda key: grey(curves[key])) == expected
        assert len({grey(line) for line in curves.values()}) == len(curves)
    nodes = artists(figure, "node")
    assert max((0, 1, 2, 3), key=lambda k: grey(nodes[0, k])) == int(scores.nodes[0].argmin()) == 1


def test_what_is_dead_is_gone():
    """`plot` omits masked edges, inputs without edges and hidden nodes that feed nothing.

    It also omits the edges to such hidden nodes.
    """
    net, x = network(3, 4, 2)
    with torch.no_grad():
        net.layers[0].edge_mask = torch.ones(4, 3)
        net.layers[0].edge_mask[:, 0] = 0
        net.layers[0].edge_mask[3, 1] = 0
        net.layers[1].spline_weight[:, 2] = 0
        net.layers[1].base_weight[:, 2] = 0
    figure = kk.plot(net, x, beta=100.0, least=0.0)
    expected = {(0, o, i) for o in (0, 1, 3) for i in (1, 2)} - {(0, 3, 1)} | {(1, o, i) for o in (0, 1) for i in (0, 1, 3)}
    assert set(artists(figure, "box")) == expected
    assert set(artists(figure, "node")) == {(0, 1), (0, 2), (1, 0), (1, 1), (1, 3), (2, 0), (2, 1)}
    assert sorted(texts(figure)) == sorted(["$x_{1}$", "$x_{2}$", "0", "1", "3", "$y_{0}$", "$y_{1}$"])


def test_a_net_that_is_constant_has_only_its_outputs():
    net, x = network(2, 3, 2)
    net.layers[1].edge_mask = torch.zeros(2, 3)
    figure = kk.plot(net, x, in_names=["a", "b"])
    assert set(artists(figure, "node")) == {(2, 0), (2, 1)}
    assert not artists(figure, "box")


def test_a_pruned_net(tmp_path):
    net, x = network(6, 5, 1)
    pruned, _ = net.prune(x, edge_th=0.1)
    figure = kk.plot(pruned, x, beta=100.0, least=0.0)
    assert len(artists(figure, "box")) == sum(int(layer.edge_mask.sum()) for layer in pruned.layers) < 35
    for ending in ("png", "pdf", "svg"):
        figure.savefig(tmp_path / f"net.{ending}")
        assert (tmp_path / f"net.{ending}").stat().st_size > 5_000
    assert 'id="curve-0-' in (tmp_path / "net.svg").read_text()


def test_least_leaves_out_weak_edges():
    net, x = network(4, 5, 2)
    scores = net.attribute(x).edges[1]
    kept = {(1, o, i) for o, i in ((2 * scores / scores.max()).tanh() > 0.6).nonzero().tolist()}
    boxes = artists(kk.plot(net, x, 2.0, 0.6), "box")  # the order of arguments in pykan
    assert 0 < len(kept) < 10
    assert {key for key in boxes if key[0] == 1} == kept


def test_a_wide_net_shows_its_strongest_edges_and_says_so():
    net, x = network(40, 30, 3)
    figure = kk.plot(net, x, beta=1.0, least=0.0)
    boxes = [key for key in artists(figure, "box") if key[0] == 0]
    assert 50 < len(boxes) < 1200
    (foot,) = [text for text in texts(figure) if text.startswith("Layer 0: ")]
    assert foot == f"Layer 0: {len(boxes)} of 1200 edges have a curve"
    scores = net.attribute(x).edges[0]
    for out in {out for _, out, _ in boxes}:
        drawn = {in_ for _, o, in_ in boxes if o == out}
        assert drawn == set(scores[out].topk(len(drawn)).indices.tolist())
    assert f"{boxes[0][2]}→{boxes[0][1]}" in texts(figure)
    assert is_inside(figure, [text.get_window_extent() for text in figure.axes[0].texts])


def test_names_and_title():
    net, x = network(3, 2, 1)
    names = ["sepal length", "", "petal length (in cm)"]
    figure = kk.plot(net, x, in_names=names, out_names=("$p$(setosa)",), title="Iris")
    assert {*names, "$p$(setosa)", "Iris"} <= set(texts(figure))
    lower = kk.plot(net, x, in_names=names, out_names=("$p$(setosa)",))
    assert lower.get_figheight() < figure.get_figheight()


@pytest.mark.parametrize("widths", [(2, 3, 1), (12, 8, 2)], ids=["one row", "frames"])
def test_labels_of_edges(widths):
    """A label is near its box; labels of edges that are not drawn are left out."""
    net, x = network(*widths)
    figure = kk.plot(net, x, least=0.0, edge_labels={(0, 1, 0): "sin", (1, 0, 2): "exp", (0, 99, 0): "none"})
    texts = {text.get_text(): text for text in figure.axes[0].texts}
    assert "none" not in texts
    for label, edge in (("sin", "0-1-0"), ("exp", "1-0-2")):
        box = next(patch for patch in figure.axes[0].patches if patch.get_gid() == f"box-{edge}")
        x0, y0, wide, high = box.get_x(), box.get_y(), box.get_width(), box.get_height()
        left, bottom = texts[label].get_position()
        assert x0 <= left <= x0 + wide
        assert y0 + high / 2 <= bottom <= y0 + high + 0.1


def test_long_names_and_titles_stay_apart_and_inside():
    net, x = network(30, 2)
    names = [f"the feature of number {k}" for k in range(30)]
    figure = kk.plot(net, x, in_names=names, title="A title of many words, " * 8)
    figure.draw_without_rendering()
    written = [text for text in figure.axes[0].texts if text.get_text() in names]
    assert len(written) == 30
    places = [text.get_window_extent() for text in written]
    assert all(one.x1 <= other.x0 for one, other in pairwise(places))
    assert is_inside(figure, [text.get_window_extent() for text in figure.axes[0].texts])
    (title,) = [text for text in texts(figure) if text.startswith("A title")]
    assert "\n" in title


def test_of_a_row_that_is_too_dense_every_so_many_names_are_written():
    net, x = network(300, 1)
    written = [text for text in texts(kk.plot(net, x, size=3.5)) if text.startswith("$x")]
    assert written[0] == "$x_{0}$"
    assert 10 < len(written) < 60


@pytest.mark.parametrize(
    ("size", "expected"), [(3, (3, None)), (3.5, (3.5, None)), ((6, 4), (6, 4)), ([5.0, 9.5], (5, 9.5)), ((7, 3), (7, 3))]
)
@pytest.mark.parametrize("widths", [(4, 8, 3), (20, 10, 2), (64, 30, 4)])
def test_size(widths, size, expected):
    net, x = network(*widths)
    figure = kk.plot(net, x, size=size)
    width, height = figure.get_size_inches()
    assert width == expected[0]
    assert expected[1] is None or height == pytest.approx(expected[1], abs=1e-3)
    places = [box.get_window_extent() for box in artists(figure, "box").values()]
    assert is_inside(figure, places)
    assert min(place.height for place in places) > 0.05 * figure.dpi


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtypes_and_leading_dimensions(dtype):
    net = kk.KAN([2, 3, 1]).to(dtype)
    x = torch.rand(4, 25, 2, dtype=dtype)
    assert len(artists(kk.plot(net, x, least=0.0), "curve")) == 9


def test_a_dark_style_leaves_it_black_on_white():
    net, x = network(2, 1)
    with matplotlib.style.context("dark_background"):
        figure = kk.plot(net, x, title="title")
    assert figure.get_facecolor() == (1, 1, 1, 1)
    assert {text.get_color() for text in figure.axes[0].texts} == {"black"}


def test_bad_input():
    net, x = network(4, 6, 2)
    for call, error, message in [
        (lambda: kk.plot(net.layers[0], x), TypeError, "net: expected a kan_kernels.KAN, got kan_kernels.nn.linear.KANLinear"),
        (lambda: kk.plot(net, x[0, :0]), ValueError, "x: expected 4 features"),
        (lambda: kk.plot(net, x[:1]), ValueError, "x: expected at least 2 rows"),
        (lambda: kk.plot(net, x * float("inf")), ValueError, "x: expected finite inputs"),
        (lambda: kk.plot(net, x.double()), TypeError, "float64"),
        (lambda: kk.plot(net, x, beta=-1.0), ValueError, "beta: expected a finite number >= 0.0"),
        (lambda: kk.plot(net, x, beta="3"), TypeError, "beta: expected a number, got str"),
        (lambda: kk.plot(net, x, least=1.5), ValueError, r"least: expected a finite number in \[0.0, 1.0\], got 1.5"),
        (lambda: kk.plot(net, x, size="7"), TypeError, "size: expected a number, got str"),
        (lambda: kk.plot(net, x, size=0), ValueError, r"size: expected a finite number in \[1.0, 100.0\], got 0"),
        (lambda: kk.plot(net, x, size=(7, None)), TypeError, r"size\[1\]: expected a number, got NoneType"),
        (
            lambda: kk.plot(net, x, size=(7, 4, 2)),
            ValueError,
            "size: expected a width, or a width and a height, got 3 numbers",
        ),
        (lambda: kk.plot(net, x, size=(7, 1)), ValueError, r"size: expected a height of at least [\d.]+ inches for this net"),
        (lambda: kk.plot(net, x, in_names="abcd"), TypeError, "in_names: expected a sequence of strings, got str"),
        (lambda: kk.plot(net, x, in_names={"a": 1}), TypeError, "in_names: expected a sequence of strings, got dict"),
        (lambda: kk.plot(net, x, in_names=["a", "b"]), ValueError, "in_names: expected 4 names, got 2"),
        (lambda: kk.plot(net, x, out_names=["a", 2]), TypeError, r"out_names\[1\]: expected a string, got int"),
        (lambda: kk.plot(net, x, title=3), TypeError, "title: expected a string or None, got int"),
        (lambda: kk.plot(net, x, edge_labels=["a"]), TypeError, "edge_labels: expected a mapping or None, got list"),
        (lambda: kk.plot(net, x, edge_labels={(0, 1): "a"}), ValueError, r"edge_labels: expected keys .* got \(0, 1\)"),
        (
            lambda: kk.plot(net, x, edge_labels={(0, 1, 0): 1}),
            TypeError,
            r"edge_labels\[\(0, 1, 0\)\]: expected a string, got int",
        ),
    ]:
        with pytest.raises(error, match=message):
            call()
