"""NaN and infinities propagate as in the reference and never index memory. AddressSanitizer checks this file as well."""

import pytest
import torch
from cases import Case, make

from kan_kernels import ops, reference

NAN, INF = float("nan"), float("inf")
# Values above 1e30 overflow in the quotients of the reference.
VALUES = [NAN, INF, -INF, 1e30, -1e30, 1e-45, -0.0, 1.0, -1.0]
CASES = [
    Case(37, 3, 5, K=1),
    Case(37, 3, 5, K=3, knots="adaptive"),
    Case(37, 3, 64, K=5, scaled=True),
    Case(37, 3, 33, layout="in_first", scaled=True),
    Case(37, 2, 5, K=0),
    Case(37, 2, 5, K=7),
    Case(37, 3, 5, G=100, knots="adaptive", weighted=True),
]


def same(value: torch.Tensor, expected: torch.Tensor) -> None:
    """Check that values are equal up to rounding and are NaN exactly where NaN is expected."""
    largest = torch.cat([expected.nan_to_num(0, 0, 0).abs().flatten(), expected.new_zeros(1)]).max().item()
    torch.testing.assert_close(value, expected, rtol=1e-3, atol=1e-3 * largest, equal_nan=True)


@pytest.mark.parametrize("order", [0, 1, 3, 6])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_as_the_reference(instruction_set, case, dtype, order):
    t = make(case, dtype)
    for k, value in enumerate(VALUES):
        t.x[3 * k, k % case.I] = value
    calls = {
        "spline_forward": (t.x, t.w, t.spline_weight, t.spline_scaler, t.grid, t.base_weight, "silu", order),
        "spline_backward_input": (t.x, t.g, t.spline_weight, t.spline_scaler, t.grid, t.base_weight, "silu", order),
        "spline_backward_weight": (
            t.x,
            t.w,
            t.g,
            t.spline_weight,
            t.spline_scaler,
            t.grid,
            case.K,
            "silu",
            order,
            True,
            case.scaled,
            True,
        ),
    }
    for name, arguments in calls.items():
        values, expected = getattr(ops, name)(*arguments), getattr(reference, name)(*arguments)
        for value, truth in zip(*((r,) if isinstance(r, torch.Tensor) else r for r in (values, expected)), strict=True):
            if case.K == 0 and name == "spline_backward_input":
                # The splines are finite at infinity only for K = 0. The reference multiplies b(inf) by a sum and returns inf,
                # while the kernel adds products with b(inf), which are infinities of both signs.
                value, truth = (v.nan_to_num(NAN, NAN, NAN) for v in (value, truth))
            same(value, truth)


@pytest.mark.parametrize("bad", [NAN, INF, -INF], ids=str)
def test_only_its_own_row_is_lost(bad):
    """A non-finite input affects only its row of the output and the gradient of its feature."""
    t = make(Case(37, 3, 5, points="inside"), torch.float32)
    clean = ops.spline_forward(t.x, None, t.spline_weight, None, t.grid, t.base_weight, "silu", 0)
    t.x[4, 1] = bad
    y = ops.spline_forward(t.x, None, t.spline_weight, None, t.grid, t.base_weight, "silu", 0)
    assert y[4].isnan().all()
    rest = torch.arange(37) != 4
    # Rounding may differ: if an input of a block is outside of the knots, the kernel cannot assume that bases sum to 1.
    torch.testing.assert_close(y[rest], clean[rest], rtol=1e-6, atol=1e-6)
    gradient, _, _ = ops.spline_backward_weight(t.x, None, t.g, None, None, t.grid, 3, "silu", 0, True, False, True)
    assert gradient[:, 1].isnan().all()
    assert gradient[:, [0, 2]].isfinite().all()


@pytest.mark.parametrize("grid_size", [5, 40])
def test_infinite_coefficients_and_gradients_spread_to_what_they_touch(instruction_set, grid_size):
    """The kernels multiply only by the K+1 live bases. The reference multiplies zero bases by infinity, which is NaN."""
    t = make(Case(1029, 3, 16, grid_size, points="inside"), torch.float32)
    # The points are not close to a knot, where a live basis rounds to 0.
    within = 0.2 + 0.6 * torch.rand(t.x.shape, generator=torch.Generator().manual_seed(0))
    t.x = ((t.x + 1) / 2 * grid_size).floor().clamp(0, grid_size - 1).add(within) * (2 / grid_size) - 1
    t.spline_weight[2, 1, grid_size // 2] = INF
    t.spline_weight[5, 2] = -INF
    t.g[7, 4] = INF

    def live_products(derivative: int, factors: torch.Tensor) -> torch.Tensor:
        live = reference.basis(t.x, t.grid, 3, derivative)[:, None]  # (N, 1, I, M)
        return torch.where(live != 0, live * factors, 0.0)

    y = ops.spline_forward(t.x, None, t.spline_weight, None, t.grid, None, "silu", 0)
    same(y, live_products(0, t.spline_weight).sum((2, 3)))
    gradient, _, _ = ops.spline_backward_weight(t.x, None, t.g, None, None, t.grid, 3, "silu", 0, True, False, False)
    same(gradient, live_products(0, t.g[..., None, None]).sum(0))
    input_gradient = ops.spline_backward_input(t.x, t.g, t.spline_weight, None, t.grid, None, "silu", 1)
    expected = (live_products(1, t.spline_weight) * t.g[..., None, None]).sum((1, 3))
    assert torch.equal(input_gradient.isfinite(), expected.isfinite())
    finite = expected.isfinite()
    same(input_gradient[finite], expected[finite])


@pytest.mark.parametrize("knots", [[NAN] * 12, [INF] * 12, [-INF, INF] * 6, [0.0] * 12, list(range(12))[::-1]], ids=str)
def test_any_knots_are_safe(instruction_set, knots):
    """Not every call checks the knots, but no values of the knots cause reads out of range."""
    t = make(Case(37, 3, 5), torch.float32)
    grid = torch.tensor(knots, dtype=torch.float32).expand(3, -1)
    for k, value in enumerate(VALUES):
        t.x[3 * k, k % 3] = value
    y = ops.spline_forward(t.x, None, t.spline_weight, None, grid, t.base_weight, "silu", 0)
    gradient, _, _ = ops.spline_backward_weight(t.x, None, t.g, None, None, grid, 3, "silu", 0, True, False, True)
    assert y.shape == (37, 5)
    assert gradient.shape == (5, 3, 8)
