"""Tests of the share of inputs inside the grid range, and of a grid range for each layer."""

import pytest
import torch

import kan_kernels as kk


@pytest.mark.parametrize("spline_order", [0, 1, 3])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_coverage_is_the_share_inside(spline_order, dtype):
    layer = kk.KANLinear(3, 2, grid_size=4, spline_order=spline_order, grid_range=(-1, 1), dtype=dtype)
    x = torch.tensor([[-1.0, 0.0, 2.0], [0.5, -1.5, 3.0], [0.75, 1.5, -8.0], [-0.25, 0.25, 0.5]])
    share = layer.coverage(x)
    assert share.dtype is torch.float32
    assert share.tolist() == [1.0, 0.5, 0.25]
    assert layer.coverage(x.double().view(2, 2, 3)).tolist() == [1.0, 0.5, 0.25]
    assert not share.requires_grad


@pytest.mark.parametrize("spline_order", [0, 1, 2, 5])
def test_inside_the_bases_sum_to_one(spline_order):
    """A point is inside if and only if the bases sum to 1, also at the ends. Elsewhere the sum is, for example, 0 or 0.5."""
    torch.manual_seed(0)
    layer = kk.KANLinear(1, 1, grid_size=4, spline_order=spline_order).double()
    layer.set_grid(torch.randn(1, layer.grid.shape[1]).double().sort().values)
    points = torch.cat([layer.grid[0], torch.linspace(-3, 3, 201).double()])
    inside = torch.tensor([layer.coverage(point.view(1, 1)).item() for point in points])
    sums = layer.b_splines(points.unsqueeze(1)).sum((1, 2))
    torch.testing.assert_close((sums > 1 - 1e-9).float(), inside)
    assert 0 < inside.mean() < 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_outside(value):
    layer = kk.KANLinear(2, 1)
    assert layer.coverage(torch.tensor([[0.0, value], [value, value]])).tolist() == [0.5, 0.0]


def test_coverage_follows_the_grid():
    torch.manual_seed(0)
    layer, x = kk.KANLinear(4, 2), 20 + 5 * torch.randn(200, 4)
    assert layer.coverage(x).tolist() == [0.0] * 4
    layer.update_grid(x)
    assert layer.coverage(x).tolist() == [1.0] * 4
    assert layer.coverage(x[:100] + 100).tolist() == [0.0] * 4


def test_coverage_of_a_net():
    """A net returns the coverage of every layer on the layer's own inputs, and it does not change."""
    torch.manual_seed(0)
    net, x = kk.KAN([3, 4, 2], grid_range=(-0.5, 0.5)), torch.rand(5, 10, 3)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    first, second = net.coverage(x)
    assert torch.equal(first, net.layers[0].coverage(x))
    assert torch.equal(second, net.layers[1].coverage(net.layers[0](x)))
    assert 0 < first.mean() < 1
    for name, value in net.state_dict().items():
        assert torch.equal(value, before[name])


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        ([[0.0, 0.0]], TypeError, "x: expected a torch.Tensor, got list"),
        (torch.zeros(3, 2, dtype=torch.int64), TypeError, "x: expected a floating-point dtype"),
        (torch.zeros(3, 4), ValueError, r"x: expected 2 features in the last dimension, got shape \(3, 4\)"),
        (torch.zeros(0, 2), ValueError, r"x: expected at least 1 row, got shape \(0, 2\)"),
        (torch.zeros(3, 2, device="meta"), ValueError, "x: expected cpu, the device of the layer's parameters"),
    ],
    ids=str,
)
def test_bad_input(x, error, message):
    with pytest.raises(error, match=message):
        kk.KANLinear(2, 1).coverage(x)


@pytest.mark.parametrize("pairs", [((-1, 1), (-4, 4)), [[-1, 1], [-4.0, 4.0]]], ids=["tuples", "lists"])
def test_a_grid_range_for_each_layer(pairs):
    torch.manual_seed(0)
    net = kk.KAN([3, 4, 2], grid_range=pairs)
    torch.manual_seed(0)
    first, second = kk.KANLinear(3, 4, grid_range=(-1, 1)), kk.KANLinear(4, 2, grid_range=(-4, 4))
    x = torch.randn(7, 3)
    assert torch.equal(net(x), second(first(x)))
    assert [layer.grid_range for layer in net.layers] == [(-1.0, 1.0), (-4.0, 4.0)]
    other = kk.KAN([3, 4, 2])
    assert repr(other) == repr(net)
    assert list(other.state_dict()) == list(net.state_dict())
    other.load_state_dict(net.state_dict())
    assert torch.equal(other(x), net(x))


def test_one_grid_range_for_all_layers():
    assert [layer.grid_range for layer in kk.KAN([2, 2, 2], grid_range=(-3, 3)).layers] == [(-3.0, 3.0)] * 2
    assert kk.KAN([2, 2], grid_range=[(-3, 3)]).layers[0].grid_range == (-3.0, 3.0)


@pytest.mark.parametrize(
    ("grid_range", "error", "message"),
    [
        ([(-1, 1)] * 3, ValueError, "grid_range: expected one pair of numbers, or one for each of 2 layers, got 3 pairs"),
        ([(-1, 1), (2, 1)], ValueError, r"grid_range\[1\]: expected low < high, got \[2, 1\]"),
        ([(-1, 1), (1, 2, 3)], ValueError, r"grid_range\[1\]: expected two numbers, got \[1, 2, 3\]"),
        ([(-1, 1), 3], TypeError, r"grid_range\[1\]: expected a pair of numbers, got int"),
        ([(-1, 1), (0, "a")], TypeError, r"grid_range\[1\]\[1\]: expected a number, got str"),
        ([0, 1, 2], ValueError, r"grid_range: expected two numbers, got \[0, 1, 2\]"),
        ([], ValueError, r"grid_range: expected two numbers, got \[\]"),
        ("ab", TypeError, "grid_range: expected a pair of numbers, got str"),
        (2.0, TypeError, "grid_range: expected a pair of numbers, got float"),
    ],
    ids=str,
)
def test_bad_grid_range(grid_range, error, message):
    with pytest.raises(error, match=message):
        kk.KAN([3, 4, 2], grid_range=grid_range)
