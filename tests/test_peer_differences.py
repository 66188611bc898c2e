"""efficient-kan and pykan differ in some numbers. This library agrees with each of them where it replaces it."""

import inspect
import math

import numpy
import peer_layers
import pytest
import torch
from pykan_models import kan, network

import kan_kernels as kk

pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("float64_in_a_directory_of_its_own")]


def test_layout_of_coefficients():
    """The coefficients have shape (O, I, G+K) in efficient-kan and here, and (I, O, G+K) in pykan."""
    theirs = network((3, 4))
    ours = kk.KAN.from_pykan(theirs)
    coef = theirs.act_fun[0].coef
    assert coef.shape == (3, 4, 8)
    assert torch.equal(ours.layers[0].spline_weight, coef.transpose(0, 1))
    assert torch.equal(ours.state_dict()["layers.0.spline_weight"], coef.transpose(0, 1))


def test_spline_scale_at_the_start():
    """The initial spline scales are uniform in +-1/sqrt(I) in efficient-kan and here, and 1/sqrt(I) in pykan."""
    I = 64  # noqa: E741
    ours = kk.KANLinear(I, 65).spline_scaler.detach()
    assert ours.abs().max() <= 1 / math.sqrt(I)
    assert ours.std().item() == pytest.approx(1 / math.sqrt(3 * I), rel=0.05)
    theirs = kan.KANLayer(I, 5).scale_sp
    torch.testing.assert_close(theirs, torch.full_like(theirs, 1 / math.sqrt(I)))


def test_noise_at_the_start():
    """The default scale of the initial noise is 0.1 in efficient-kan and here, 0.3 in pykan's network and 0.5 in its layer.

    The splines' values on the inner knots are uniform noise divided by G.
    """
    assert inspect.signature(kk.KANLinear).parameters["scale_noise"].default == 0.1
    assert inspect.signature(kan.MultKAN).parameters["noise_scale"].default == 0.3
    assert inspect.signature(kan.KANLayer).parameters["noise_scale"].default == 0.5
    layer = kk.KANLinear(63, 65, grid_size=5)
    knots = torch.linspace(-1, 1, 6)[:-1]  # the last knot is outside of the half-open grid range
    values = kk.kan_linear(knots.unsqueeze(1), layer.spline_weight[:, :1], layer.grid[:1]).detach()
    assert values.abs().max() <= 0.1 / 5 / 2 * 1.0001
    assert values.std().item() == pytest.approx(0.1 / 5 / math.sqrt(12), rel=0.15)


@pytest.mark.parametrize("rows", [7, 129, 1000])
def test_quantiles_and_margins(rows):
    """efficient-kan uses the positions of linspace and a margin of 0.01, and pykan uses int(N/G i) and no margin."""
    x = torch.randn(rows, 3)
    ordered = x.sort(dim=0).values.numpy()
    G, K, eps = 5, 3, 0.02
    places = {
        "efficient-kan": numpy.linspace(0, rows - 1, G + 1).astype(int),
        "pykan": numpy.array([int(rows / G * i) for i in range(G)] + [rows - 1]),
    }
    for peer, margin in (("efficient-kan", 0.01), ("pykan", 0.0)):
        h = (ordered[-1] - ordered[0] + 2 * margin) / G
        uniform = numpy.arange(G + 1)[:, None] * h + ordered[0] - margin
        inner = eps * uniform + (1 - eps) * ordered[places[peer]]
        steps = numpy.arange(1, K + 1)[:, None]
        of_extension = (inner[-1] - inner[0]) / G if peer == "pykan" else h
        expected = numpy.concatenate([inner[0] - steps[::-1] * of_extension, inner, inner[-1] + steps * of_extension]).T
        layer = kk.KANLinear(3, 2, grid_size=G, spline_order=K, grid_eps=eps)
        layer.update_grid(x, quantiles=peer)
        numpy.testing.assert_allclose(layer.grid.numpy(), expected, rtol=1e-12, atol=1e-12)
    theirs, efficient = kk.accelerate(network((3, 2))), kk.accelerate(peer_layers.KANLinear(3, 2).double())
    theirs.act_fun[0].update_grid_from_samples(x)
    numpy.testing.assert_allclose(theirs.act_fun[0].grid.numpy(), expected, rtol=1e-12, atol=1e-12)
    efficient.update_grid(x)
    layer = kk.KANLinear(3, 2)
    layer.update_grid(x)
    assert torch.equal(efficient.grid, layer.grid)
    assert not torch.allclose(efficient.grid, theirs.act_fun[0].grid, atol=1e-3)


def test_repeated_knots():
    """For repeated knots, efficient-kan returns NaN, and pykan returns 0 with a gradient of NaN.

    This library returns 0 with a gradient of 0, accelerated or not, and `set_grid` does not accept such knots.
    """
    knots = torch.full((2, 12), 0.3)
    x = torch.linspace(-1, 1, 9).repeat(2, 1).t().clone()
    efficient = peer_layers.KANLinear(2, 3).double()
    efficient.grid.copy_(knots)
    assert efficient(x).isnan().all()
    theirs = network((2, 3), base_fun="zero")
    theirs.act_fun[0].grid.data = knots.clone()
    points = x.clone().requires_grad_()
    y = theirs(points)
    y.sum().backward()
    assert not y.any()
    assert points.grad.isnan().any()
    accelerated = kk.accelerate(network((2, 3), base_fun="zero"))
    accelerated.act_fun[0].grid.data = knots.clone()
    for net in (accelerated, lambda z: kk.kan_linear(z, torch.randn(3, 2, 8), knots)):
        points = x.clone().requires_grad_()
        y = net(points)
        y.sum().backward()
        assert not y.any()
        assert not points.grad.any()
    with pytest.raises(ValueError, match="grid: expected strictly increasing knots"):
        kk.KANLinear(2, 3).set_grid(knots)


def test_grid_updates_refit_what():
    """efficient-kan refits the scaled output into the unscaled weight. pykan and this library refit the unscaled spline."""
    x = torch.rand(300, 2) * 1.9 - 0.95
    layer = kk.KANLinear(2, 3, grid_eps=1.0)
    before = layer(x)
    layer.update_grid(x)
    assert (layer(x) - before).norm() < 0.01 * before.norm()
    theirs = network((2, 3), grid_eps=1.0)
    before = theirs(x)
    theirs.update_grid_from_samples(x)
    assert (theirs(x) - before).norm() < 0.3 * before.norm()


def test_outputs():
    """efficient-kan and this library return y for any leading dimensions.

    pykan returns y, preacts, postacts and postspline for inputs of two dimensions.
    """
    x = torch.randn(7, 3)
    theirs = network((3, 2))
    y, preacts, postacts, postspline = theirs.act_fun[0](x)
    assert preacts.shape == postacts.shape == postspline.shape == (7, 2, 3)
    accelerated = kk.accelerate(theirs).act_fun[0]
    for value, expected in zip(accelerated(x), (y, preacts, postacts, postspline), strict=True):
        torch.testing.assert_close(value, expected)
    assert kk.KANLinear(3, 2)(x.expand(4, 5, 7, 3)).shape == (4, 5, 7, 2)
