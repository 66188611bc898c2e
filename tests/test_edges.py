"""The edge operators agree with the float64 reference for every instruction set, case and dtype."""

import dataclasses
from contextlib import contextmanager

import pytest
import torch
from cases import CASES, DTYPES, Case, Tensors, make
from tolerance import assert_twice_rule

import kan_kernels as kk
from kan_kernels import ops, reference
from kan_kernels.reference import edges

SOME = [case for case in CASES if case.N > 0 and case.N * case.I * case.M * case.O <= 300_000]


@contextmanager
def absolute_terms():
    """Let the reference use |bases| and |b|, and so |phi|. Its results are then the sums of |terms|, without cancellation."""
    basis, activation = edges.basis, edges.base_activation
    edges.basis = lambda *a: basis(*a).abs()
    edges.base_activation = lambda *a: activation(*a).abs()
    try:
        yield
    finally:
        edges.basis, edges.base_activation = basis, activation


def magnitudes(t: Tensors) -> Tensors:
    """Return the problem in float64 with the absolute values of all factors except the bases."""
    values = vars(t.to(torch.float64)).items()
    return Tensors(**{k: v if v is None or k in ("x", "grid") else v.abs() for k, v in values})


def arguments(t: Tensors, case: Case):
    return t.x, t.spline_weight, t.spline_scaler, t.grid, t.base_weight, case.base or "silu"


def away_from_zero(t: Tensors, case: Case, seed: int) -> Tensors:
    """Return a problem in which every edge's values that are not exactly 0 have one sign and are not close to 0.

    Rounding then does not change any sign.
    """
    generator = torch.Generator().manual_seed(seed)
    side = torch.randint(0, 2, (case.O, case.I), generator=generator) * 2.0 - 1
    t.spline_weight = (t.spline_weight / 8 + 2 * side.unsqueeze(-1)).to(t.spline_weight.dtype)
    if t.spline_scaler is not None:
        t.spline_scaler = t.spline_scaler.abs() + 0.5
    if t.base_weight is not None:
        t.base_weight = t.base_weight / 8
    # The new inputs are rounded like the others, so that the problem is exact in its dtype.
    values = reference.edge_values(*arguments(t.to(torch.float64), case))
    near = ((values.abs() < 0.1) & (values != 0)).any(1)
    inside = (torch.rand(t.x.shape, generator=generator) * 1.8 - 0.9).to(torch.bfloat16).to(t.x.dtype)
    t.x = torch.where(near, inside, t.x)
    return t


def edge_l1(module, t: Tensors, case: Case):
    return (module.edge_l1(*arguments(t, case)),)


def edge_l1_backward(module, t: Tensors, case: Case):
    generator = torch.Generator().manual_seed(case.N)
    r = torch.rand(case.O, case.I, generator=generator).to(t.x.dtype)
    needs = True, True, t.spline_scaler is not None, t.base_weight is not None
    return tuple(g for g in module.edge_l1_backward(*arguments(t, case), r, *needs) if g.numel())


def moments_gradient(module, t: Tensors, case: Case):
    generator = torch.Generator().manual_seed(case.N)
    r = torch.rand(case.I, case.M + 2, case.K + 4, generator=generator, dtype=torch.float64)
    return (module.basis_moments_backward(t.x, t.grid, case.K, case.base or "silu", r),)


@pytest.mark.parametrize("operator", [edge_l1, edge_l1_backward])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", SOME, ids=str)
def test_against_the_reference(instruction_set, operator, case, dtype):
    if case.points == "equal" and (operator is edge_l1_backward or dtype is torch.float64):
        case = dataclasses.replace(case, points="inside")  # 2100 equal terms all round in the same direction

    def compute(reference_dtype, seed):
        t = away_from_zero(make(case, dtype, seed), case, seed)
        same = away_from_zero(make(case, reference_dtype, seed), case, seed)
        values, exact = operator(ops, t, case), operator(reference, t.to(torch.float64), case)
        reference_values = operator(reference, same, case)
        reference_exact = operator(reference, same.to(torch.float64), case)
        with absolute_terms():
            scales = operator(reference, magnitudes(t), case)
        for value, truth, other, other_truth, scale in zip(
            values, exact, reference_values, reference_exact, scales, strict=True
        ):
            yield value, other.double() - other_truth + truth, truth, scale

    trials = 4 if case.N * case.I * case.O < 5000 or operator is edge_l1_backward else 1
    assert_twice_rule(compute, dtype, trials, f"{operator.__name__} {case} {dtype}")


@pytest.mark.parametrize("case", SOME, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_moments_are_of_double_accuracy(instruction_set, case, dtype):
    """The moments have float64 accuracy for inputs of any dtype. The reference also computes them in float64."""
    t = make(case, dtype)
    gradient, truth = moments_gradient(ops, t, case)[0], moments_gradient(reference, t, case)[0]
    eps = torch.finfo(dtype).eps if dtype is not torch.float64 else 1e-12
    torch.testing.assert_close(gradient, truth, rtol=eps, atol=eps * truth.abs().max().item())
    moments = ops.basis_moments(t.x, t.grid, case.K, case.base or "silu")
    exact = reference.basis_moments(t.x, t.grid, case.K, case.base or "silu")
    assert moments.dtype is torch.float64
    torch.testing.assert_close(moments, exact, rtol=1e-12, atol=1e-12 * exact.abs().max().item())


def std_gradients(module, t: Tensors, case: Case, moments: torch.Tensor):
    generator = torch.Generator().manual_seed(case.N)
    r = torch.rand(case.O, case.I, generator=generator).to(t.x.dtype)
    edges = (moments, t.spline_weight, t.spline_scaler, t.base_weight, case.N)
    needs = True, True, t.spline_scaler is not None, t.base_weight is not None
    return module.edge_std(*edges), *(g for g in module.edge_std_backward(*edges, r, *needs) if g.numel())


@pytest.mark.parametrize("case", [case for case in SOME if case.N > 1 and case.points != "equal"], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_spreads_are_of_double_accuracy(instruction_set, case, dtype):
    """Standard deviations are computed from the moments in float64, as in the reference.

    They also agree with autograd through the values of all edges.
    """
    t = make(case, dtype)
    moments = reference.basis_moments(t.x, t.grid, case.K, case.base or "silu")
    ours, truth = std_gradients(ops, t, case, moments), std_gradients(reference, t, case, moments)
    eps = max(torch.finfo(dtype).eps, 1e-9)
    for value, expected in zip(ours, truth, strict=True):
        assert value.dtype is expected.dtype
        torch.testing.assert_close(value, expected, rtol=eps, atol=eps * expected.abs().max().item())
    exact = t.to(torch.float64)
    leaves = [
        leaf.requires_grad_() for leaf in (exact.spline_weight, exact.spline_scaler, exact.base_weight) if leaf is not None
    ]
    spread = reference.edge_values(*arguments(exact, case)).std(0)
    generator = torch.Generator().manual_seed(case.N)
    r = torch.rand(case.O, case.I, generator=generator).to(dtype).double()
    dense = (spread.detach(), *torch.autograd.grad(spread, leaves, r))
    for value, expected in zip((ours[0], *ours[2:]), dense, strict=True):
        torch.testing.assert_close(value.double(), expected, rtol=4 * eps, atol=4 * eps * expected.abs().max().item())


@pytest.mark.parametrize("needed", range(4))
def test_only_what_is_needed(needed):
    case = Case(129, 7, 33, scaled=True)
    t = make(case, torch.float32)
    r = torch.ones(case.O, case.I)
    close = 1e-6  # g++ gives equal bits; clang contracts other multiplications and additions
    everything = ops.edge_l1_backward(*arguments(t, case), r, True, True, True, True)
    one = ops.edge_l1_backward(*arguments(t, case), r, *(k == needed for k in range(4)))
    for k, (alone, together) in enumerate(zip(one, everything, strict=True)):
        assert alone.numel() == 0 if k != needed else torch.allclose(alone, together, rtol=1e-5, atol=close)
    edges = (ops.basis_moments(t.x, t.grid, case.K, "silu"), t.spline_weight, t.spline_scaler, t.base_weight, case.N, r)
    everything = ops.edge_std_backward(*edges, True, True, True, True)
    one = ops.edge_std_backward(*edges, *(k == needed for k in range(4)))
    for k, (alone, together) in enumerate(zip(one, everything, strict=True)):
        assert alone.numel() == 0 if k != needed else torch.allclose(alone, together, rtol=1e-5, atol=close)


def test_opcheck():
    case = Case(7, 3, 5, scaled=True)
    t = make(case, torch.float64)
    r = torch.ones(case.O, case.I, dtype=torch.float64)
    moments = ops.basis_moments(t.x, t.grid, case.K, "silu")
    edges = (moments, t.spline_weight, t.spline_scaler, t.base_weight, case.N)
    torch.library.opcheck(ops.edge_l1, arguments(t, case))
    torch.library.opcheck(ops.edge_l1_backward, (*arguments(t, case), r, True, True, False, True))
    torch.library.opcheck(ops.basis_moments, (t.x, t.grid, case.K, "silu"))
    torch.library.opcheck(ops.basis_moments_backward, (t.x, t.grid, case.K, "silu", torch.ones_like(moments)))
    torch.library.opcheck(ops.edge_std, edges)
    torch.library.opcheck(ops.edge_std_backward, (*edges, r, True, False, True, True))


@pytest.mark.parametrize("outputs", [3, 33])
def test_non_finite_inputs(instruction_set, outputs):
    """Non-finite inputs affect the norms of their feature, and signs do not hide them, as in the reference."""
    for bad in (float("nan"), float("inf"), -float("inf")):
        case = Case(63, 5, outputs)
        t = make(case, torch.float64)
        t.x[17, 2] = bad
        r = torch.ones(case.O, case.I, dtype=torch.float64)
        ours, truth = (
            (module.edge_l1(*arguments(t, case)), *module.edge_l1_backward(*arguments(t, case), r, True, True, False, True))
            for module in (ops, reference)
        )
        for value, expected in zip(ours, truth, strict=True):
            assert torch.equal(value.isnan(), expected.isnan())
            torch.testing.assert_close(value, expected, equal_nan=True)
        spread = kk.edge_norms(t.x, t.spline_weight, t.grid, t.base_weight, "std")
        assert torch.equal(spread.isnan(), torch.arange(case.I).eq(2).expand(case.O, -1))


@pytest.mark.parametrize("case", [Case(2100, 7, 33, G=20), Case(2100, 129, 5)], ids=str)
def test_threads_do_not_change_bits(case):
    t = make(case, torch.float32)
    r = torch.ones(case.O, case.I)
    results = []
    before = torch.get_num_threads()
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        results.append(
            (ops.edge_l1(*arguments(t, case)), *ops.edge_l1_backward(*arguments(t, case), r, True, True, False, True),
             ops.basis_moments(t.x, t.grid, case.K, "silu"),
             *std_gradients(ops, t, case, ops.basis_moments(t.x, t.grid, case.K, "silu")))
        )  # fmt: skip
    torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
