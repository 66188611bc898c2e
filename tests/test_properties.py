"""Kernels and reference agree and have the expected properties for random shapes, degrees, knots and inputs (hypothesis)."""

import torch
from cases import Case, make
from hypothesis import given, settings
from hypothesis import strategies as st

import kan_kernels as kk
from kan_kernels import backends, ops, reference

CASES = st.builds(
    Case,
    N=st.integers(0, 40),
    I=st.integers(1, 9),
    O=st.integers(1, 40),
    G=st.integers(1, 40),
    K=st.integers(0, 8),
    knots=st.sampled_from(["uniform", "adaptive"]),
    layout=st.sampled_from(["contiguous", "strided", "expanded", "in_first"]),
    base=st.sampled_from(["silu", "identity", None]),
    weighted=st.booleans(),
    scaled=st.booleans(),
)
SEEDS = st.integers(0, 2**31)
examples = settings(max_examples=120, deadline=None)


@examples
@given(case=CASES, seed=SEEDS, order=st.integers(0, 5), level=st.sampled_from(backends.available_instruction_sets()))
def test_kernels_agree_with_the_reference(case, seed, order, level):
    """Every operator agrees with the reference in float64 to 1e-9 of the largest value."""
    t = make(case, torch.float64, seed)
    b = case.base or "silu"
    needs = (True, case.scaled, case.base is not None)
    before = backends.instruction_set()
    backends.select_instruction_set(level)
    try:
        calls = [
            ("spline_forward", (t.x, t.w, t.spline_weight, t.spline_scaler, t.grid, t.base_weight, b, order)),
            ("spline_backward_input", (t.x, t.g, t.spline_weight, t.spline_scaler, t.grid, t.base_weight, b, order)),
            ("spline_backward_weight", (t.x, t.w, t.g, t.spline_weight, t.spline_scaler, t.grid, case.K, b, order, *needs)),
        ]
        for name, arguments in calls:
            values, expected = getattr(ops, name)(*arguments), getattr(reference, name)(*arguments)
            if isinstance(values, torch.Tensor):
                values, expected = (values,), (expected,)
            for value, truth in zip(values, expected, strict=True):
                largest = truth.abs().max().item() if truth.numel() else 0.0
                torch.testing.assert_close(value, truth, rtol=0, atol=1e-9 * max(largest, case.G**order))
    finally:
        backends.select_instruction_set(before)


@examples
@given(case=CASES, seed=SEEDS)
def test_linear_in_the_coefficients(case, seed):
    """layer(a + b) equals layer(a) + layer(b). This detects state between calls and reads of unrelated memory."""
    t, other = make(case, torch.float64, seed), make(case, torch.float64, seed + 1)
    together = kk.kan_linear(t.x, t.spline_weight + other.spline_weight, t.grid)
    apart = kk.kan_linear(t.x, t.spline_weight, t.grid) + kk.kan_linear(t.x, other.spline_weight, t.grid)
    torch.testing.assert_close(together, apart, rtol=1e-9, atol=1e-9)


@examples
@given(case=CASES, seed=SEEDS, rows=st.integers(1, 30))
def test_a_row_does_not_see_its_neighbours(case, seed, rows):
    """The output of the first rows does not depend on the other rows, up to the rounding of another code path."""
    t = make(case, torch.float64, seed)
    whole = kk.kan_linear(t.x, t.spline_weight, t.grid, t.base_weight, base_activation=case.base)
    part = kk.kan_linear(t.x[:rows], t.spline_weight, t.grid, t.base_weight, base_activation=case.base)
    torch.testing.assert_close(whole[:rows], part, rtol=1e-11, atol=1e-11)


@examples
@given(degree=st.integers(0, 6), grid_size=st.integers(1, 12), seed=SEEDS)
def test_constants_are_reproduced(degree, grid_size, seed):
    """Equal coefficients give a constant on the grid range for any knots, because the bases sum to 1."""
    case = Case(33, 2, 1, G=grid_size, K=degree, knots="adaptive", base=None)
    t = make(case, torch.float64, seed)
    low, high = t.grid[:, degree], t.grid[:, degree + grid_size]
    x = low + (high - low) * torch.rand(33, 2, dtype=torch.float64) * 0.999
    y = kk.kan_linear(x, torch.full_like(t.spline_weight, 0.5), t.grid)
    torch.testing.assert_close(y, torch.ones_like(y), rtol=1e-10, atol=1e-10)
