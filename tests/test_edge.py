"""`layer.edge(o, i)`, the function of one edge, agrees with scipy, autograd and the layer."""

import copy

import numpy as np
import pytest
import torch
from scipy.interpolate import BSpline
from torch import nn
from torch.nn.functional import silu

import kan_kernels as kk
from kan_kernels import reference


def drawn_layer(K=3, **options):
    """Return a (3, 4) layer in float64 with random weights and different knots for every feature."""
    generator = torch.Generator().manual_seed(K)
    layer = kk.KANLinear(3, 4, grid_size=6, spline_order=K, dtype=torch.float64, **options)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
        layer.grid.add_(0.12 * torch.rand(layer.grid.shape, generator=generator, dtype=torch.float64))
    return layer


def within(layer, i, count=257):
    """Return points within the extended knots of feature i, without the last knot."""
    low, high = layer.grid[i, 0].item(), layer.grid[i, -1].item()
    return torch.linspace(low, high, count, dtype=torch.float64)[:-1]


def scipys(layer, o, i, t, derivative=0):
    """Return the spline of an edge, computed as the sum of scipy's basis elements."""
    knots, degree = layer.grid[i].numpy(), layer.spline_order
    weight = (layer.spline_weight[o, i] * layer.spline_scaler[o, i]).detach().numpy()
    total = np.zeros(len(t))
    for m, coefficient in enumerate(weight):
        element = BSpline.basis_element(knots[m : m + degree + 2], extrapolate=False)
        values = element(t.numpy()) if derivative == 0 else element.derivative(derivative)(t.numpy())
        total += coefficient * np.nan_to_num(values)
    return total


@pytest.mark.parametrize("K", [1, 2, 3, 5])
def test_values_are_scipys(K):
    layer = drawn_layer(K)
    for o, i in ((0, 0), (3, 1), (1, 2)):
        edge = layer.edge(o, i)
        t = within(layer, i)
        spline = edge.to_scipy()
        assert isinstance(spline, BSpline)
        assert spline.k == K
        base = edge.base(t).detach()
        assert torch.equal(base, (layer.base_weight[o, i] * silu(t)).detach())
        for values in (edge.spline(t).detach(), (edge(t) - edge.base(t)).detach(), torch.from_numpy(spline(t.numpy()))):
            np.testing.assert_allclose(values.numpy(), scipys(layer, o, i, t), rtol=0, atol=1e-12)
        np.testing.assert_allclose(edge(t).detach().numpy(), spline(t.numpy()) + base.numpy(), rtol=0, atol=1e-12)


def test_beyond_the_knots_the_spline_is_zero():
    layer = drawn_layer()
    edge = layer.edge(2, 1)
    t = torch.tensor([-1e6, layer.grid[1, 0] - 1e-3, layer.grid[1, -1], layer.grid[1, -1] + 1e-3, 50.0], dtype=torch.float64)
    assert not edge.spline(t).any()
    torch.testing.assert_close(edge(t), edge.base(t), rtol=1e-14, atol=1e-14)
    assert not edge.to_scipy()(t.numpy()).any()


@pytest.mark.parametrize("K", [2, 3, 5])
def test_derivatives_are_autograds_and_scipys(K):
    layer = drawn_layer(K)
    edge = layer.edge(1, 2)
    t = within(layer, 2, 100)[1:].requires_grad_()
    assert torch.equal(edge.derivative(t, 0), edge(t))
    values = edge(t)
    for order in range(1, K):
        (values,) = torch.autograd.grad(values.sum(), t, create_graph=True)
        found = edge.derivative(t, order)
        scale = values.detach().abs().max().item()
        torch.testing.assert_close(found, values, rtol=1e-9, atol=1e-10 * scale)
        spline = edge.to_scipy().derivative(order)(t.detach().numpy())
        np.testing.assert_allclose(spline, scipys(layer, 1, 2, t.detach(), order), rtol=0, atol=1e-12 * scale)
    assert torch.equal(edge.derivative(t), edge.derivative(t, 1))
    constant = torch.ones_like(t).detach().requires_grad_()
    assert edge.derivative(constant, 30).isfinite().all()


@pytest.mark.parametrize("activation", [nn.SiLU, nn.Identity, nn.Tanh, nn.PReLU(3, dtype=torch.float64), None])
@pytest.mark.parametrize("scaled", [True, False], ids=["scaler", "no scaler"])
def test_edges_add_up_to_the_layer(activation, scaled):
    layer = drawn_layer(base_activation=activation, enable_standalone_scale_spline=scaled)
    x = torch.randn(5, 7, 3, dtype=torch.float64)
    total = torch.stack([sum(layer.edge(o, i)(x[..., i]) for i in range(3)) for o in range(4)], -1)
    torch.testing.assert_close(total, layer(x), rtol=1e-11, atol=1e-12)
    edge = layer.edge(3, 2)
    torch.testing.assert_close(edge(x[..., 2]), edge.base(x[..., 2]) + edge.spline(x[..., 2]), rtol=1e-11, atol=1e-12)
    assert (edge.base_weight is None) == (activation is None)
    t = x[..., 2].clone().requires_grad_()
    (slope,) = torch.autograd.grad(edge(t).sum(), t)
    torch.testing.assert_close(edge.derivative(t).detach(), slope, rtol=1e-10, atol=1e-10)


def test_its_docstrings_equivalent():
    layer = drawn_layer()
    t = torch.randn(33, dtype=torch.float64)
    x = torch.zeros(33, 3, dtype=torch.float64)
    x[:, 1] = t
    values = reference.edge_values(x, layer.spline_weight, layer.spline_scaler, layer.grid, layer.base_weight, "silu")
    torch.testing.assert_close(layer.edge(2, 1)(t), values[:, 2, 1], rtol=1e-11, atol=1e-12)


def test_it_follows_the_layer_and_gives_gradients():
    layer = drawn_layer()
    edge = layer.edge(2, 1)
    t = torch.linspace(-0.9, 0.9, 33, dtype=torch.float64)
    before, spline = edge(t).detach(), edge.to_scipy()  # `to_scipy` copies the weights
    edge(t).sum().backward()
    of_base = torch.zeros(4, 3, dtype=torch.float64)
    of_base[2, 1] = silu(t).sum()
    torch.testing.assert_close(layer.base_weight.grad, of_base)
    assert layer.spline_weight.grad.any(-1).nonzero().tolist() == [[2, 1]]
    with torch.no_grad():
        layer.spline_weight[2, 1] *= 2
        layer.base_weight[2, 1] *= 2
    torch.testing.assert_close(edge(t), 2 * before)
    np.testing.assert_allclose(spline(t.numpy()), (edge.spline(t).detach() / 2).numpy(), rtol=0, atol=1e-12)


def test_a_pruned_edge_is_zero():
    layer = drawn_layer()
    layer.edge_mask = torch.ones(4, 3, dtype=torch.float64)
    layer.edge_mask[2, 1] = 0
    t = torch.randn(33, dtype=torch.float64)
    assert not layer.edge(2, 1)(t).any()
    assert not layer.edge(2, 1).to_scipy()(t.numpy()).any()
    assert layer.edge(2, 1).base_weight == 0
    assert layer.edge(1, 2)(t).any()


def test_negative_indices_count_from_the_end():
    layer = drawn_layer()
    edge = layer.edge(-1, -3)
    assert (edge.out_feature, edge.in_feature) == (3, 0)
    t = torch.randn(9, dtype=torch.float64)
    assert torch.equal(edge(t), layer.edge(3, 0)(t))
    assert repr(edge) == "Edge(out_feature=3, in_feature=0)"


T = torch.zeros(3, dtype=torch.float64)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda layer: layer.edge(4, 0), IndexError, "out_feature: expected an index from -4 to 3, got 4"),
        (lambda layer: layer.edge(0, 3), IndexError, "in_feature: expected an index from -3 to 2, got 3"),
        (lambda layer: layer.edge(0, -4), IndexError, "in_feature: expected an index from -3 to 2, got -4"),
        (lambda layer: layer.edge(1.0, 0), TypeError, "out_feature: expected an int, got float"),
        (lambda layer: layer.edge(0, "0"), TypeError, "in_feature: expected an int, got str"),
        (lambda layer: layer.edge(True, 0), TypeError, "out_feature: expected an int, got bool"),
        (lambda layer: layer.edge(0, 0)(0.5), TypeError, "t: expected a torch.Tensor, got float"),
        (
            lambda layer: layer.edge(0, 0)(T.float()),
            TypeError,
            r"t: expected float64, the dtype of the layer's parameters, got float32; use layer\.float\(\) or t\.double\(\)",
        ),
        (lambda layer: layer.edge(0, 0)(T.long()), TypeError, "t: expected a floating-point dtype"),
        (
            lambda layer: layer.edge(0, 0)(T.to("meta")),
            ValueError,
            "t: expected cpu, the device of the layer's parameters, got meta",
        ),
        (lambda layer: layer.edge(0, 0).derivative(T, -1), ValueError, "order: expected at least 0, got -1"),
        (lambda layer: layer.edge(0, 0).derivative(T, 31), ValueError, "order: expected at most 30, got 31"),
        (lambda layer: layer.edge(0, 0).derivative(T, 1.0), TypeError, "order: expected an int, got float"),
    ],
)
def test_bad_input(call, error, message):
    with pytest.raises(error, match=message):
        call(drawn_layer())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_other_dtypes(dtype):
    """`to_scipy` uses the exact values of the rounded weights."""
    layer = drawn_layer().to(dtype)
    edge, exact = layer.edge(3, 1), copy.deepcopy(layer).double().edge(3, 1)
    t = (torch.rand(65) * 2 - 1).to(dtype)
    values, truth = edge(t), exact(t.double()).detach()
    assert values.dtype is dtype
    torch.testing.assert_close(values.double(), truth, rtol=0, atol=8 * torch.finfo(dtype).eps * truth.abs().max().item())
    points = t.double()
    np.testing.assert_allclose(edge.to_scipy()(points.numpy()), exact.spline(points).detach().numpy(), rtol=0, atol=1e-12)
