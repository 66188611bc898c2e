"""Tests of grid updates from data and of finer grids, which keep the functions of the edges."""

import numpy as np
import pytest
import torch
from cases import Case, make_grid

import kan_kernels as kk
from kan_kernels import reference
from kan_kernels.grid.refit import transfer_matrix


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def drawn_layer(I, O=3, **arguments):  # noqa: E741
    layer = kk.KANLinear(I, O, **({"dtype": torch.float64} | arguments))
    with torch.no_grad():
        layer.spline_weight.copy_(normal(*layer.spline_weight.shape, seed=1))
    return layer


def splines(layer, x):
    """Return the splines (N, I, O) in float64, without the spline_scaler."""
    bases = reference.basis(x.double(), layer.grid.double(), layer.spline_order)
    return torch.einsum("nim,oim->nio", bases, layer.spline_weight.detach().double())


def efficient_kan_grid(x, G, K, eps, margin):
    """Return the knots that efficient-kan's `update_grid` computes."""
    ordered = torch.sort(x, dim=0)[0]
    adaptive = ordered[torch.linspace(0, x.shape[0] - 1, G + 1, dtype=torch.int64)]
    step = (ordered[-1] - ordered[0] + 2 * margin) / G
    uniform = torch.arange(G + 1, dtype=x.dtype).unsqueeze(1) * step + ordered[0] - margin
    grid = eps * uniform + (1 - eps) * adaptive
    before, after = torch.arange(K, 0, -1).unsqueeze(1) * step, torch.arange(1, K + 1).unsqueeze(1) * step
    return torch.cat([grid[:1] - before, grid, grid[-1:] + after]).t()


def pykan_grid(x, G, K, eps):
    ordered = torch.sort(x, dim=0)[0]
    adaptive = ordered[[int(x.shape[0] / G * i) for i in range(G)] + [-1]]
    step = (adaptive[-1:] - adaptive[:1]) / G
    grid = eps * (adaptive[:1] + step * torch.arange(G + 1).unsqueeze(1)) + (1 - eps) * adaptive
    beyond = torch.arange(1, K + 1).unsqueeze(1) * step
    return torch.cat([grid[:1] - beyond.flip(0), grid, grid[-1:] + beyond]).t()


@pytest.mark.parametrize(("N", "G", "K", "eps"), [(63, 5, 3, 0.02), (129, 20, 2, 0.5), (7, 1, 0, 1.0), (65, 7, 5, 0.1)])
def test_knots_are_the_peers(N, G, K, eps):
    x = normal(N, 3)
    layer = drawn_layer(3, grid_size=G, spline_order=K, grid_eps=eps)
    layer.update_grid(x)
    torch.testing.assert_close(layer.grid, efficient_kan_grid(x, G, K, eps, 0.01), rtol=1e-13, atol=1e-13)
    layer.update_grid(x, margin=0.3)
    torch.testing.assert_close(layer.grid, efficient_kan_grid(x, G, K, eps, 0.3), rtol=1e-13, atol=1e-13)
    layer.update_grid(x, quantiles="pykan")
    torch.testing.assert_close(layer.grid, pykan_grid(x, G, K, eps), rtol=1e-13, atol=1e-13)


INPUTS = {
    "normal": normal(1000, 3),
    "constant": torch.full((129, 3), 0.7, dtype=torch.float64),
    "zero": torch.zeros(129, 3, dtype=torch.float64),
    "far constant": torch.full((7, 3), -1e6, dtype=torch.float64),
    "three values": normal(129, 3).sign() * (normal(129, 3, seed=2) > 0),
    "one row": normal(1, 3),
    "fewer rows than intervals": normal(3, 3),
    "huge": normal(1000, 3) * 1e6,
    "tiny": normal(1000, 3) * 1e-7,
    "tiny spread": normal(1000, 3) * 1e-7 + 1,
    "heavy tails": (normal(1000, 3) * 6).exp() * normal(1000, 3, seed=2),
}


@pytest.mark.parametrize("name", INPUTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("eps", [0.0, 0.02, 1.0])
@pytest.mark.parametrize("quantiles", ["efficient-kan", "pykan"])
def test_any_data_give_increasing_knots_and_the_best_fit(name, dtype, eps, quantiles):
    """The error of the fit on the data is about that of numpy's least squares, which minimises only this error."""
    x = INPUTS[name].to(dtype)
    if not bool(x.isfinite().all()):
        pytest.skip(f"{name}: not finite in {dtype}")
    layer = drawn_layer(3, grid_size=20 if name.startswith("fewer") else 5, grid_eps=eps, dtype=dtype)
    before = splines(layer, x)
    layer.update_grid(x, quantiles=quantiles)
    assert bool((layer.grid.diff(dim=1) > 0).all())
    assert bool((layer.grid[:, 0] < x.amin(0)).all())
    assert bool((layer.grid[:, -1] > x.amax(0)).all())

    bases = reference.basis(x.double(), layer.grid.double(), 3)
    error = (splines(layer, x) - before).square().mean(0).sqrt()
    for i in range(3):
        best = np.linalg.lstsq(bases[:, i].numpy(), before[:, i].numpy(), rcond=None)[0]
        least = (bases[:, i] @ torch.from_numpy(best) - before[:, i]).square().mean(0).sqrt()
        rounding = torch.finfo(dtype).eps * layer.spline_weight[:, i].detach().abs().max().double()
        # With heavy tails most bases have almost no data. On a tiny range the knots reach far beyond the data.
        beside_the_data = {"heavy tails": 3e-3 * before[:, i].std(0, correction=0), "tiny": 3e-4, "tiny spread": 3e-4}.get(
            name, 1e-5
        )
        assert bool((error[i] <= 1.002 * least + rounding + beside_the_data).all())

    x = x.clone().requires_grad_()
    y = layer(x)
    y.double().sum().backward()
    for value in (y, x.grad, *(p.grad for p in layer.parameters())):
        assert bool(value.isfinite().all())


def test_few_distinct_values_keep_small_coefficients():
    """Pixels have few values. A basis that hardly reaches them gets no large coefficient, which would act beside the data."""
    levels, generator = torch.linspace(-1, 1, 17, dtype=torch.float64), torch.Generator().manual_seed(0)
    dark = torch.rand(1400, 16, generator=generator) < 0.3
    x = torch.where(dark, -1.0, levels[torch.randint(0, 17, (1400, 16), generator=generator)])
    layer = drawn_layer(16, grid_size=5)
    with torch.no_grad():
        layer.spline_weight.copy_(torch.sin(torch.linspace(-4.5, 4.5, 8)).expand_as(layer.spline_weight))
    before = layer(x - 0.05)
    layer.update_grid(x)
    assert layer.spline_weight.abs().max() < 5
    assert (layer(x - 0.05) - before).std() < 0.1 * before.std()


def test_refit_keeps_the_scaled_function():
    """The update keeps the scaled function. efficient-kan refits the scaled output into the unscaled weight."""
    layer = drawn_layer(3, grid_size=20)
    x = normal(2000, 3) * 0.4
    before = layer(x)
    layer.update_grid(x)
    assert (layer(x) - before).square().mean().sqrt() < 0.25 * before.std()


def test_equal_knots_change_nothing():
    layer = drawn_layer(3)
    spline_weight = layer.spline_weight.detach().clone()
    layer.set_grid(layer.grid.clone())
    torch.testing.assert_close(layer.spline_weight.detach(), spline_weight, rtol=1e-12, atol=1e-12)
    transfer = transfer_matrix(layer.grid, layer.grid, 3, normal(63, 3))
    torch.testing.assert_close(transfer, torch.eye(8, dtype=torch.float64).expand(3, 8, 8), rtol=1e-12, atol=1e-12)


def test_leading_dimensions_and_a_whole_net():
    x = normal(7, 9, 3)
    one, two = drawn_layer(3), drawn_layer(3)
    one.update_grid(x)
    two.update_grid(x.view(63, 3))
    assert torch.equal(one.grid, two.grid)
    assert torch.equal(one.spline_weight, two.spline_weight)
    net = kk.KAN([3, 4, 2], dtype=torch.float64)
    y = net(x, update_grid=True)
    assert y.shape == (7, 9, 2)
    assert torch.equal(net(x), y)
    torch.testing.assert_close(net.layers[1].grid, efficient_kan_grid(net.layers[0](x).view(63, 4), 5, 3, 0.02, 0.01))


@pytest.mark.parametrize("knots", ["uniform", "adaptive"])
@pytest.mark.parametrize("K", [0, 1, 3, 5])
def test_refining_to_a_multiple_is_exact_everywhere(knots, K):
    layer = drawn_layer(3, grid_size=4, spline_order=K)
    layer.set_grid(make_grid(Case(1, 3, 1, G=4, K=K, knots=knots), torch.Generator().manual_seed(0)))
    x = normal(1000, 3) * 2
    for finer in (4, 8, 20, 200):
        torch.testing.assert_close(layer.refine(finer)(x), layer(x), rtol=1e-11, atol=1e-11)


def test_refining_otherwise_is_the_best_approximation():
    """No other coefficients have a smaller mean square error over the range of the knots."""
    layer = drawn_layer(2, grid_size=5)
    finer = layer.refine(7)
    points = torch.linspace(-2.2, 2.2, 20001, dtype=torch.float64).unsqueeze(1).expand(-1, 2)
    difference = splines(finer, points) - splines(layer, points)
    bases = reference.basis(points, finer.grid, 3)
    assert torch.einsum("nim,nio->oim", bases, difference).abs().max() < 1e-4 * len(points) * difference.std()
    assert layer.refine(200)(points).sub(layer(points)).abs().max() < 1e-9


def test_refine_is_a_new_module_of_the_same_kind():
    net = kk.KAN([3, 4, 2], dtype=torch.float32).eval()
    net.layers[0].spline_weight.requires_grad_(False)
    finer = net.refine(10)
    assert net.grid_size == 5
    assert finer.grid_size == 10
    assert not finer.training
    assert not finer.layers[0].spline_weight.requires_grad
    assert finer.layers[1].spline_weight.requires_grad
    assert finer.layers[0].spline_weight.dtype is torch.float32
    again = kk.KAN([3, 4, 2], grid_size=10)
    again.load_state_dict(finer.state_dict())
    x = normal(63, 3).float()
    torch.testing.assert_close(again(x), net(x), rtol=1e-5, atol=1e-5)
    assert "grid_size=10" in repr(finer)


def test_bad_data_leave_the_layer_as_it_was():
    layer = drawn_layer(3)
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    x = normal(63, 3)
    bad = x.clone()
    bad[5, 1] = float("nan")
    infinite = x.clone()
    infinite[0, 0] = float("inf")
    crossed = layer.grid.clone()
    crossed[1, 4] = crossed[1, 3]
    for call, error, message in [
        (lambda: layer.update_grid(bad), ValueError, "x: expected finite inputs, got a NaN or an infinity"),
        (lambda: layer.update_grid(infinite), ValueError, "x: expected finite inputs"),
        (lambda: layer.update_grid(x[:0]), ValueError, r"x: expected at least 1 row, got shape \(0, 3\)"),
        (lambda: layer.update_grid(x[:, :2]), ValueError, "x: expected 3 features in the last dimension"),
        (lambda: layer.update_grid([0.0]), TypeError, "x: expected a torch.Tensor, got list"),
        (lambda: layer.update_grid(x, margin=-1), ValueError, "margin: expected a finite number"),
        (lambda: layer.update_grid(x, quantiles="numpy"), ValueError, "quantiles: expected one of"),
        (lambda: layer.set_grid(crossed), ValueError, "grid: expected strictly increasing knots"),
        (lambda: layer.set_grid(layer.grid * float("nan")), ValueError, "grid: expected finite knots"),
        (lambda: layer.set_grid(layer.grid[:, 1:]), ValueError, r"grid: expected shape \(3, 12\), got \(3, 11\)"),
        (lambda: layer.set_grid(layer.grid[0]), ValueError, "grid: expected 2 dimensions"),
        (lambda: layer.set_grid(5), TypeError, "grid: expected a torch.Tensor, got int"),
        (lambda: layer.refine(0), ValueError, "grid_size: expected at least 1, got 0"),
        (lambda: layer.refine(5.0), TypeError, "grid_size: expected an int, got float"),
        (lambda: layer.load_state_dict(before | {"grid": crossed}), RuntimeError, "grid: expected strictly increasing"),
        (lambda: kk.KAN([3, 2]).half().refine(10**4), ValueError, "grid: expected strictly increasing knots"),
    ]:
        with pytest.raises(error, match=message):
            call()
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


def test_updating_the_grids_of_a_network_is_all_or_nothing():
    net = kk.KAN([3, 4, 2])
    with torch.no_grad():
        net.layers[0].base_weight[1, 0] = float("inf")  # makes inputs of the second layer infinite
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    for update in (net.update_grid, lambda x: net(x, update_grid=True)):
        with pytest.raises(ValueError, match="x: expected finite inputs"):
            update(torch.rand(50, 3))
        assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_updating_the_grids_of_a_network_is_updating_every_layer():
    ours, layers = kk.KAN([3, 4, 2]), kk.KAN([3, 4, 2])
    layers.load_state_dict(ours.state_dict())
    x = torch.rand(50, 3)
    ours.update_grid(x, 0.1, "pykan")
    with torch.no_grad():
        inputs = x
        for layer in layers.layers:
            layer.update_grid(inputs, 0.1, "pykan")
            inputs = layer(inputs)
    assert all(torch.equal(a, b) for a, b in zip(ours.state_dict().values(), layers.state_dict().values(), strict=True))


def test_a_bad_grid_in_a_checkpoint_names_its_layer_and_leaves_it_alone():
    net = kk.KAN([3, 4, 2])
    before = {name: tensor.clone() for name, tensor in net.layers[1].state_dict().items()}
    state = kk.KAN([3, 4, 2]).state_dict()
    state["layers.1.grid"] = torch.zeros_like(state["layers.1.grid"])
    with pytest.raises(RuntimeError, match=r"Error\(s\) in loading state_dict for KAN:\n\tlayers.1.grid: expected strictly"):
        net.load_state_dict(state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.layers[1].state_dict().items())


def test_a_network_with_a_grid_of_nan_is_not_updated():
    net = kk.KAN([3, 4, 2])
    net.layers[1].grid[0, 0] = float("nan")
    before = [tensor.clone() for tensor in net.state_dict().values()]
    with pytest.raises(ValueError, match="grid: expected finite knots to refit the splines from"):
        net.update_grid(torch.rand(5, 3))
    for tensor, was in zip(net.state_dict().values(), before, strict=True):
        torch.testing.assert_close(tensor, was, rtol=0, atol=0, equal_nan=True)
