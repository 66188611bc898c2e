"""Gradients of `kan_linear` of every order agree with autograd of the reference, finite differences and scipy."""

import numpy as np
import pytest
import torch
from cases import CASES, Case, Tensors, make
from test_reference import scipy_basis
from tolerance import assert_twice_rule

import kan_kernels as kk
from kan_kernels import ops, reference
from kan_kernels.ops import library


def leaves(t: Tensors) -> dict[str, torch.Tensor]:
    """Return the differentiable tensors as leaves."""
    named = {"x": t.x, "spline_weight": t.spline_weight, "spline_scaler": t.spline_scaler, "base_weight": t.base_weight}
    return {k: v.detach().clone().requires_grad_() for k, v in named.items() if v is not None}


def layer(leaf: dict[str, torch.Tensor], t: Tensors, case: Case, fused: bool) -> torch.Tensor:
    base, spline_scaler = leaf.get("base_weight"), leaf.get("spline_scaler")
    if fused:
        return kk.kan_linear(
            leaf["x"],
            leaf["spline_weight"],
            t.grid,
            base,
            base_activation=case.base if base is not None else None,
            spline_scaler=spline_scaler,
        )
    return reference.kan_linear(leaf["x"], leaf["spline_weight"], t.grid, base, case.base or "silu", spline_scaler)


def first_order(t: Tensors, case: Case, fused: bool):
    leaf = leaves(t)
    return torch.autograd.grad(layer(leaf, t, case, fused), list(leaf.values()), t.g)


def second_order(t: Tensors, case: Case, fused: bool):
    """Return the gradients of a function of the first gradients with respect to all tensors, including the cotangent."""
    leaf = leaves(t)
    g = t.g.detach().clone().requires_grad_()
    gradients = torch.autograd.grad(layer(leaf, t, case, fused), list(leaf.values()), g, create_graph=True)
    generator = torch.Generator().manual_seed(7)
    total = sum((d * torch.randn(d.shape, generator=generator, dtype=torch.float64).to(d)).sum() for d in gradients)
    return torch.autograd.grad(total, [*leaf.values(), g])


@pytest.mark.parametrize("derivatives", [first_order, second_order], ids=lambda f: f.__name__)
@pytest.mark.parametrize("case", [c for c in CASES if not c.weighted and 0 < c.N < 1000 and c.K], ids=str)
def test_gradients_are_the_references(case, derivatives):
    """The closed formulas agree with autograd of the Cox-de Boor recursion in float64.

    test_operators covers the rounding in the other dtypes.
    """

    def compute(reference_dtype, seed):
        t, same = make(case, torch.float64, seed), make(case, reference_dtype, seed)
        values = derivatives(t, case, True)
        exact = derivatives(t, case, False)
        other = derivatives(same, case, False)
        other_exact = derivatives(same.to(torch.float64), case, False)
        for value, truth, rounded, other_truth in zip(values, exact, other, other_exact, strict=True):
            yield value, truth + (rounded.double() - other_truth), truth, truth

    trials = max(2, min(20, 400 // (case.N * case.O)))
    assert_twice_rule(compute, torch.float64, trials, derivatives.__name__)


@pytest.mark.parametrize(
    "case", [Case(3, 2, 2, scaled=True), Case(2, 2, 3, K=2, G=2, knots="adaptive"), Case(2, 1, 2, K=1)], ids=str
)
def test_gradcheck(case):
    """First and second derivatives, in reverse and forward mode, agree with finite differences."""
    t = make(Case(**{**vars(case), "points": "inside"}), torch.float64)
    leaf = leaves(t)

    def function(*values):
        return layer(dict(zip(leaf, values, strict=True)), t, case, True)

    assert torch.autograd.gradcheck(function, list(leaf.values()), check_forward_ad=True, check_batched_grad=True)
    if case.K > 1:
        assert torch.autograd.gradgradcheck(function, list(leaf.values()), check_batched_grad=True)


@pytest.mark.parametrize("operator", ["forward", "backward_input", "backward_weight", "backward"])
def test_every_operator_is_differentiable_in_everything(operator):
    """The operators pass gradcheck and gradgradcheck with respect to all arguments, including the weight w."""
    case = Case(3, 2, 2, G=3, weighted=True, scaled=True, points="inside")
    t = make(case, torch.float64)
    wanted = {
        "forward": (t.x, t.w, t.spline_weight, t.spline_scaler, t.base_weight),
        "backward_input": (t.x, t.g, t.spline_weight, t.spline_scaler, t.base_weight),
        "backward_weight": (t.x, t.w, t.g, t.spline_weight, t.spline_scaler),
        "backward": (t.x, t.w, t.g, t.spline_weight, t.spline_scaler, t.base_weight),
    }[operator]

    def function(*v):
        if operator == "forward":
            return ops.spline_forward(*v[:4], t.grid, v[4], "silu", 0)
        if operator == "backward_input":
            return ops.spline_backward_input(*v[:4], t.grid, v[4], "silu", 0)
        if operator == "backward_weight":
            return ops.spline_backward_weight(*v, t.grid, 3, "silu", 0, True, True, True)
        return ops.spline_backward(*v[:5], t.grid, v[5], "silu", 0, True, True, True)

    inputs = [v.clone().requires_grad_() for v in wanted]
    assert torch.autograd.gradcheck(function, inputs, check_forward_ad=True, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(function, inputs)


def test_third_nested_level():
    """u_xxx of a net and its gradients with respect to the parameters equal the reference's."""
    torch.manual_seed(0)
    net = kk.KAN([1, 4, 1], spline_order=4, dtype=torch.float64)
    x0 = torch.linspace(-0.9, 0.9, 31, dtype=torch.float64).unsqueeze(1)

    def gradients():
        x = x0.clone().requires_grad_()
        u = net(x)
        for _ in range(3):
            (u,) = torch.autograd.grad(u.sum(), x, create_graph=True)
        return [u.detach(), *torch.autograd.grad(u.square().mean(), list(net.parameters()))]

    fused = gradients()
    with kk.use_backend("reference"):
        expected = gradients()
    for value, truth in zip(fused, expected, strict=True):
        torch.testing.assert_close(value, truth, rtol=1e-9, atol=1e-9 * truth.abs().max().item())


def test_pinn_loss_is_scipys():
    """The gradient of mean((u_xx - f)^2) with respect to the coefficients agrees with scipy's second derivatives."""
    case = Case(63, 1, 1, G=6, base=None, points="inside", knots="adaptive")
    t = make(case, torch.float64)
    x, spline_weight = t.x.clone().requires_grad_(), t.spline_weight.clone().requires_grad_()
    f = torch.sin(3 * t.x)
    u = kk.kan_linear(x, spline_weight, t.grid, base_activation=None)
    (u_x,) = torch.autograd.grad(u.sum(), x, create_graph=True)
    (u_xx,) = torch.autograd.grad(u_x.sum(), x, create_graph=True)
    (gradient,) = torch.autograd.grad((u_xx - f).square().mean(), spline_weight)

    second = scipy_basis(t.x[:, 0].numpy(), t.grid[0].numpy(), 3, 2)
    residual = second @ t.spline_weight[0, 0].numpy() - f[:, 0].numpy()
    expected = 2 / case.N * second.T @ residual
    np.testing.assert_allclose(u_xx[:, 0].detach().numpy(), residual + f[:, 0].numpy(), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(gradient[0, 0].numpy(), expected, rtol=1e-9, atol=1e-8 * np.abs(expected).max())


def test_only_the_gradients_asked_for(monkeypatch):
    """A frozen input or parameter causes no operator call."""
    calls = []
    for name in ("spline_backward_input", "spline_backward_weight"):
        operator = getattr(library, name)
        monkeypatch.setattr(library, name, lambda *a, n=name, f=operator: (calls.append((n, a)), f(*a))[1])
    t = make(Case(7, 3, 5, scaled=True), torch.float32)
    arguments = {"x": t.x, "spline_weight": t.spline_weight, "base_weight": t.base_weight, "spline_scaler": t.spline_scaler}
    for wanted in arguments:
        calls.clear()
        leaf = {k: v.clone().requires_grad_(k == wanted) for k, v in arguments.items()}
        kk.kan_linear(
            leaf["x"], leaf["spline_weight"], t.grid, leaf["base_weight"], spline_scaler=leaf["spline_scaler"]
        ).sum().backward()
        assert leaf[wanted].grad is not None
        names = [name for name, _ in calls]
        assert names == (["spline_backward_input"] if wanted == "x" else ["spline_backward_weight"])
        if wanted != "x":
            assert calls[0][1][-3:] == (wanted == "spline_weight", wanted == "spline_scaler", wanted == "base_weight")


def test_saved_for_backward_are_the_inputs_only():
    """autograd saves no tensor of the size of the bases or of the output."""
    t = make(Case(129, 7, 17, scaled=True), torch.float32)
    leaf = leaves(t)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda s: (saved.append(s.data_ptr()), s)[1], lambda s: s):
        kk.kan_linear(leaf["x"], leaf["spline_weight"], t.grid, leaf["base_weight"], spline_scaler=leaf["spline_scaler"])
    assert sorted(saved) == sorted(v.data_ptr() for v in (*leaf.values(), t.grid))
