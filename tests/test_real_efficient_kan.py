"""The rewrite that other tests use and this library agree with the real efficient-kan, if it can be imported."""

import sys
from pathlib import Path

import peer_layers
import pytest
import torch

import kan_kernels as kk

sys.path.append(str(Path(__file__).parent.parent / "bench"))

import real_peers

try:
    real, _ = real_peers.efficient_kan()
except real_peers.Missing as missing:
    pytest.skip(str(missing), allow_module_level=True)


def results(layer, x):
    """Return the output and the gradients of x and of every parameter by name."""
    x = x.clone().requires_grad_()
    y = layer(x)
    names, parameters = zip(*layer.named_parameters(), strict=True)
    return dict(zip(["y", "x", *names], [y, *torch.autograd.grad(y.sin().sum(), [x, *parameters])], strict=True))


@pytest.fixture(params=[(5, 3), (1, 1), (20, 2), (7, 6)], ids=str)
def layers(request):
    """Return the real layer, the tests' rewrite, a `KANLinear` and an accelerated layer with equal weights."""
    grid_size, spline_order = request.param
    theirs, accelerated = (real.KANLinear(7, 5, grid_size=grid_size, spline_order=spline_order).double() for _ in range(2))
    rewrite = peer_layers.KANLinear(7, 5, grid_size, spline_order).double()
    native = kk.KANLinear(7, 5, grid_size, spline_order, dtype=torch.float64)
    for layer in (accelerated, rewrite, native):
        layer.load_state_dict(theirs.state_dict())
    kk.accelerate(accelerated)
    assert type(accelerated) is not real.KANLinear
    return theirs, rewrite, native, accelerated


def test_outputs_and_gradients(layers):
    theirs, *others = layers
    x = torch.rand(63, 7, dtype=torch.float64) * 3 - 1.5
    expected = results(theirs, x)
    for layer in others:
        found = results(layer, x)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-10, msg=f"{type(layer).__name__}: {name}")


def test_regularization(layers):
    theirs, _, native, accelerated = layers
    for layer in (native, accelerated):
        torch.testing.assert_close(layer.regularization_loss(0.7, 0.3), theirs.regularization_loss(0.7, 0.3))
