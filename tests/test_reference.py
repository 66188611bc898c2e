"""The reference agrees with scipy's B-splines and with autograd, and has the properties of a spline basis."""

import numpy as np
import pytest
import torch
from cases import Case, make_grid, make_points
from scipy.interpolate import BSpline

from kan_kernels import reference


def scipy_basis(x, knots, degree, derivative):
    """Return the derivative of every B-spline (N, M), computed by scipy."""
    columns = []
    bases = len(knots) - degree - 1
    clamped = degree > 0 and knots[0] == knots[degree]
    for m in range(bases):
        # scipy supports repeated knots only at the ends, and evaluates a whole knot vector only between its inner knots.
        if clamped:
            element = BSpline(knots, np.eye(bases)[m], degree, extrapolate=False)
        else:
            element = BSpline.basis_element(knots[m : m + degree + 2], extrapolate=False)
        values = element(x) if derivative == 0 else element.derivative(derivative)(x)
        columns.append(np.nan_to_num(values))
    return np.stack(columns, 1)


@pytest.mark.parametrize("knots", ["uniform", "adaptive", "clamped"])
@pytest.mark.parametrize("degree", [0, 1, 2, 3, 4, 5, 7])
def test_basis_is_scipys(degree, knots):
    """Values and derivatives up to the degree agree with scipy on uniform, random and clamped knots.

    Higher derivatives are 0.
    """
    case = Case(129, 3, 1, G=6, K=degree, knots=knots)
    generator = torch.Generator().manual_seed(degree)
    grid = make_grid(case, generator)
    x = make_points(case, grid, generator)
    for m in range(degree + 1, grid.shape[1]):  # scipy includes the last knot of every basis, the reference does not
        x = torch.where(x == grid[:, m], x + 1e-3, x)
    for derivative in range(degree + 1):
        values = reference.basis(x, grid, degree, derivative)
        for i in range(case.I):
            expected = scipy_basis(x[:, i].numpy(), grid[i].numpy(), degree, derivative)
            scale = max(1.0, np.abs(expected).max())
            np.testing.assert_allclose(values[:, i].numpy() / scale, expected / scale, atol=2e-13)
    assert not reference.basis(x, grid, degree, degree + 1).any()


@pytest.mark.parametrize("degree", [0, 1, 3, 5])
def test_partition_of_unity(degree):
    """The bases sum to 1 inside the grid range and to 0 beyond the extended knots. All values are between 0 and 1."""
    case = Case(301, 7, 1, G=5, K=degree, knots="adaptive")
    generator = torch.Generator().manual_seed(1)
    grid = make_grid(case, generator)
    x = make_points(case, grid, generator)
    values = reference.basis(x, grid, degree)
    assert (values >= 0).all()
    assert (values <= 1 + 1e-12).all()
    total = values.sum(-1)
    inside = (x >= grid[:, degree]) & (x < grid[:, degree + case.G])
    outside = (x < grid[:, 0]) | (x >= grid[:, -1])
    assert inside.any()
    assert outside.any()
    torch.testing.assert_close(total[inside], torch.ones_like(total[inside]), rtol=0, atol=1e-12)
    assert not total[outside].any()


def test_derivatives_are_autograds():
    """The formula of the n-th derivative equals the autograd derivative of the (n-1)-th, for the bases and for silu."""
    case = Case(63, 2, 1, K=4)
    generator = torch.Generator().manual_seed(2)
    grid = make_grid(case, generator)
    x = make_points(case, grid, generator).requires_grad_()
    for derivative in range(4):
        values = reference.basis(x, grid, 4, derivative)
        for m in range(values.shape[-1]):
            (slope,) = torch.autograd.grad(values[..., m].sum(), x, retain_graph=True)
            torch.testing.assert_close(slope, reference.basis(x, grid, 4, derivative + 1)[..., m], rtol=1e-9, atol=1e-9)
    for derivative in range(6):
        (slope,) = torch.autograd.grad(reference.base_activation(x, "silu", derivative).sum(), x)
        torch.testing.assert_close(slope, reference.base_activation(x, "silu", derivative + 1), rtol=1e-10, atol=1e-11)
    identity = [reference.base_activation(x, "identity", n) for n in range(4)]
    assert torch.equal(identity[0], x)
    assert (identity[1] == 1).all()
    assert not torch.stack(identity[2:]).any()


def test_half_open_intervals():
    """A point on a knot belongs to the interval on its right. The last knot is outside."""
    grid = torch.tensor([[0.0, 1.0, 2.0, 3.0]], dtype=torch.float64)
    values = reference.basis(torch.tensor([[0.0], [1.0], [2.0], [3.0]], dtype=torch.float64), grid, 0)[:, 0]
    assert values.tolist() == [[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 0]]
