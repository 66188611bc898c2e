"""Tests of `edge_norms` and `KANLinear.edge_norms`: values and gradients against all edge values, invalid input, memory."""

import pytest
import torch
from allocations import Allocations
from cases import Case, make
from torch import nn

import kan_kernels as kk
from kan_kernels import reference


def dense(t, ord, activation="silu"):
    values = reference.edge_values(t.x, t.spline_weight, t.spline_scaler, t.grid, t.base_weight, activation)
    return values.abs().mean(0) if ord == "l1" else values.std(0)


def problem(case, dtype=torch.float64, seed=0):
    t = make(case, dtype, seed)
    for name in ("x", "spline_weight", "spline_scaler", "base_weight"):
        if getattr(t, name) is not None:
            getattr(t, name).requires_grad_()
    leaves = [v for k, v in vars(t).items() if k in ("x", "spline_weight", "spline_scaler", "base_weight") and v is not None]
    return t, leaves


CASES = [
    Case(63, 7, 5, scaled=True),
    Case(129, 3, 17, knots="adaptive"),
    Case(7, 2, 1, K=1, base=None),
    Case(129, 2, 33, G=20, layout="strided", scaled=True),
    Case(2, 1, 63, K=5, base="identity"),
    Case(65, 3, 7, G=1, K=0),
]


@pytest.mark.parametrize("ord", ["l1", "std"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients(case, ord):
    t, leaves = problem(case)
    norms = kk.edge_norms(
        t.x, t.spline_weight, t.grid, t.base_weight, ord, base_activation=case.base, spline_scaler=t.spline_scaler
    )
    expected = dense(t, ord, case.base or "silu")
    assert norms.shape == (case.O, case.I)
    torch.testing.assert_close(norms, expected, rtol=1e-10, atol=1e-12)
    weight = torch.randn(norms.shape, dtype=norms.dtype, generator=torch.Generator().manual_seed(1))
    gradients = torch.autograd.grad((norms * weight).sum(), leaves)
    for gradient, truth in zip(gradients, torch.autograd.grad((expected * weight).sum(), leaves), strict=True):
        torch.testing.assert_close(gradient, truth, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("ord", ["l1", "std"])
def test_second_derivatives_run_on_the_reference_and_say_so(ord):
    t, leaves = problem(Case(33, 2, 3, scaled=True))

    def squares(norms):
        gradients = torch.autograd.grad(norms.sum(), leaves, create_graph=True)
        return torch.autograd.grad(sum(g.square().sum() for g in gradients), leaves)

    ours = squares(kk.edge_norms(t.x, t.spline_weight, t.grid, t.base_weight, ord, spline_scaler=t.spline_scaler))
    for value, truth in zip(ours, squares(dense(t, ord)), strict=True):
        torch.testing.assert_close(value, truth, rtol=1e-7, atol=1e-9)
    assert "second derivatives and tangents of edge norms run on the reference" in kk.info().fallbacks


def test_any_leading_dimensions_and_a_module_as_activation():
    t, _ = problem(Case(63, 3, 5))
    leading = t.x.view(7, 3, 3, 3)
    for ord in ("l1", "std"):
        torch.testing.assert_close(kk.edge_norms(leading, t.spline_weight, t.grid, t.base_weight, ord), dense(t, ord))
        tanh = kk.edge_norms(t.x, t.spline_weight, t.grid, t.base_weight, ord, base_activation=torch.tanh)
        values = reference.edge_values(t.x, t.spline_weight, None, t.grid, None, "silu")
        values = values + torch.tanh(t.x).unsqueeze(1) * t.base_weight
        torch.testing.assert_close(tanh, values.abs().mean(0) if ord == "l1" else values.std(0))
    with kk.use_backend("reference"):
        torch.testing.assert_close(kk.edge_norms(t.x, t.spline_weight, t.grid, t.base_weight), dense(t, "l1"))


def test_a_spread_small_beside_the_mean_is_not_cancelled():
    """The standard deviation is accurate in float32 for splines near 1000 that vary by 1e-2."""
    layer = kk.KANLinear(3, 5, base_activation=None, enable_standalone_scale_spline=False)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        layer.spline_weight.copy_(1000 + 0.02 * torch.rand(layer.spline_weight.shape, generator=generator))
    x = torch.rand(4096, 3, generator=generator) * 2 - 1
    exact = reference.edge_values(x.double(), layer.spline_weight.double(), None, layer.grid.double(), None, "silu").std(0)
    torch.testing.assert_close(layer.edge_norms(x, "std").double(), exact, rtol=1e-5, atol=0)


def test_a_dead_or_constant_edge_has_no_spread_and_finite_gradients():
    layer = kk.KANLinear(2, 3, dtype=torch.float64)
    with torch.no_grad():
        layer.spline_weight[1, 0] = 0
        layer.base_weight[1, 0] = 0
        layer.spline_weight[2, 1] = 3.0
        layer.base_weight[2, 1] = 0
    x = (torch.rand(65, 2, dtype=torch.float64) * 2 - 1).requires_grad_()
    for ord in ("l1", "std"):
        norms = layer.edge_norms(x, ord)
        assert norms[1, 0] == 0
        assert ord == "l1" or norms[2, 1] == 0
        gradients = torch.autograd.grad(norms.sum(), [x, *layer.parameters()])
        assert all(bool(g.isfinite().all()) for g in gradients)


def test_memory_is_free_of_edges_times_rows():
    """No tensor is larger than x. The values of all edges, for 65 536 rows and 64 x 64 edges, would take 1 GB."""
    layer = kk.KANLinear(64, 64)
    x = torch.rand(65536, 64, requires_grad=True)
    with Allocations() as seen:
        (layer.edge_norms(x, "l1").sum() + layer.edge_norms(x, "std").sum()).backward()
    assert seen.largest == x.numel() * 4


BAD = [
    ({"ord": "l2"}, ValueError, r"ord: expected one of \('l1', 'std'\), got 'l2'"),
    ({"x": torch.zeros(0, 3)}, ValueError, r"x: expected at least 1 row for ord 'l1', got shape \(0, 3\)"),
    ({"x": torch.zeros(1, 3), "ord": "std"}, ValueError, r"x: expected at least 2 rows for ord 'std', got shape \(1, 3\)"),
    ({"x": torch.zeros(4, 2)}, ValueError, "x: expected 3 features"),
    ({"x": [1.0]}, TypeError, "x: expected a torch.Tensor, got list"),
    ({"base_activation": "relu"}, ValueError, "base_activation: expected one of"),
]


@pytest.mark.parametrize(("changed", "error", "message"), BAD)
def test_bad_input(changed, error, message):
    layer = kk.KANLinear(3, 2)
    values = {
        "x": torch.zeros(4, 3),
        "spline_weight": layer.spline_weight,
        "grid": layer.grid,
        "base_weight": layer.base_weight,
        "ord": "l1",
    }
    values |= changed
    x, spline_weight, grid, base_weight = (values.pop(name) for name in ("x", "spline_weight", "grid", "base_weight"))
    with pytest.raises(error, match=message):
        kk.edge_norms(x, spline_weight, grid, base_weight, **values)


def test_layers_norms_are_those_of_its_edges():
    layer = kk.KANLinear(4, 3, base_activation=nn.Identity, dtype=torch.float64)
    x = torch.randn(63, 4, dtype=torch.float64)
    edges = [
        torch.stack([layer(torch.eye(4, dtype=torch.float64)[i] * x)[:, o] for o in range(3)]) for i in range(4)
    ]  # the values for input i, with the other inputs at 0
    at_zero = layer(torch.zeros(1, 4, dtype=torch.float64))[0]
    spread = torch.stack([e.std(1) for e in edges], dim=1)
    torch.testing.assert_close(layer.edge_norms(x, "std"), spread)
    assert at_zero.shape == (3,)


def test_a_tensor_that_is_two_arguments():
    x, spline_weight = torch.rand(63, 3, dtype=torch.float64), torch.randn(2, 3, 8, dtype=torch.float64)
    grid = kk.KANLinear(3, 2, dtype=torch.float64).grid
    w = torch.randn(2, 3, dtype=torch.float64, requires_grad=True)
    norms = kk.edge_norms(x, spline_weight, grid, w, "std", spline_scaler=w)
    (once,) = torch.autograd.grad(norms.sum(), w, retain_graph=True)
    (again,) = torch.autograd.grad(norms.sum(), w, create_graph=True)
    torch.testing.assert_close(again, once)


@pytest.mark.filterwarnings("ignore")
def test_errors_of_compiled_norms():
    layer = kk.KANLinear(3, 2)
    for ord, rows, message in (("std", 1, "expected at least 2 rows"), ("l2", 5, "ord: expected one of")):
        norms = torch.compile(lambda x, ord=ord: layer.edge_norms(x, ord), backend="aot_eager", fullgraph=True)
        with pytest.raises(ValueError, match=message):
            norms(torch.zeros(rows, 3))
