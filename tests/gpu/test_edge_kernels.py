"""Tests of the kernels for edge norms, on a GPU or in Triton's interpreter as in test_kernels.py."""

import dataclasses

import pytest
import torch
from allocations import Allocations
from cases import DTYPES, Case, Tensors, make, with_gaps
from test_kernels import DEVICE, INTERPRETED, NO_GPU, triton_operators, with_weights_laid_out
from test_nonfinite import VALUES, same
from tolerance import assert_twice_rule

import kan_kernels as kk
from kan_kernels import ops, reference
from kan_kernels import triton as triton_kernels
from kan_kernels.reference import edges
from kan_kernels.triton import heuristics

pytestmark = [
    pytest.mark.skipif(not INTERPRETED and not torch.cuda.is_available(), reason=NO_GPU),
    pytest.mark.filterwarnings("ignore::RuntimeWarning"),  # masked rows overflow in the interpreter's numpy
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # Triton 3.6's interpreter uses deprecated numpy
]

IN_PARTS = Case(450, 1, 5, scaled=True)  # the sum over rows has several parts
# The tiles of a program have 64 rows (32 in float64), 32 or more outputs, 16 bases and the base activation.
EDGES = [
    Case(1, 1, 1),
    Case(7, 1, 63, knots="adaptive", scaled=True),
    Case(63, 7, 1, K=1, base=None),
    Case(129, 2, 7, layout="strided", scaled=True),
    Case(70, 1, 129, K=2, knots="adaptive"),
    Case(63, 2, 5, G=20, base="identity", scaled=True),
    Case(70, 2, 5, G=12, K=4),  # 16 bases: the second slice of columns contains only the base
    Case(65, 3, 5, G=4, K=0, knots="adaptive", scaled=True),
    Case(63, 1, 3, G=30, K=5),
    Case(63, 1, 3, G=3, K=6, base=None),
    Case(130, 1, 3, knots="clamped"),
    IN_PARTS,
]


def away_from_zero(case: Case, dtype: torch.dtype, seed: int = 0) -> Tensors:
    """Return a problem in which every edge has one sign and no phi is close to 0, where rounding would decide the sign.

    The tensor g of the result is the transpose of g[:I], (O, I), and is used as r.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = dataclasses.replace(case, N=max(case.N, case.I), layout="contiguous")
    t = make(rows, dtype, seed).to(torch.float64)
    t.x, t.g = t.x[: case.N], t.g[: case.I].t().contiguous()
    sign = torch.where(torch.rand(case.O, case.I, generator=generator) < 0.5, -1.0, 1.0).double()
    t.spline_weight = sign.unsqueeze(2) * (1.5 + 0.3 * t.spline_weight.tanh())
    t.spline_scaler = None if t.spline_scaler is None else 1 + 0.3 * t.spline_scaler.tanh()
    t.base_weight = None if t.base_weight is None else 0.3 * t.base_weight.tanh()
    values = reference.edge_values(t.x, t.spline_weight, t.spline_scaler, t.grid, t.base_weight, case.base or "silu").abs()
    close = ((values < 0.1) & (values > 0)).any(1)
    inside = make(dataclasses.replace(rows, points="inside"), dtype, seed).x[: case.N].double()
    t.x = torch.where(close, inside, t.x)
    t = t.to(dtype)
    if case.layout == "strided":
        t = Tensors(**{name: None if v is None else with_gaps(v) for name, v in vars(t).items()})
    return t


def arguments(t: Tensors, case: Case):
    return t.x, t.spline_weight, t.spline_scaler, t.grid, t.base_weight, case.base or "silu"


def norms(module, t: Tensors, case: Case):
    return (module.edge_l1(*arguments(t, case)),)


def gradients(module, t: Tensors, case: Case):
    return module.edge_l1_backward(*arguments(t, case), t.g, True, True, case.scaled, case.base is not None)


OPERATORS = (norms, gradients)


def scales(operator, t: Tensors, case: Case):
    """Return the sums of |terms| of the results, without cancellation."""
    positive = Tensors(**{k: v if v is None or k in ("x", "grid") else v.abs() for k, v in vars(t).items()})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(edges, "basis", lambda *a: reference.basis(*a).abs())
        patch.setattr(edges, "base_activation", lambda *a: reference.base_activation(*a).abs())
        return operator(reference, positive, case)


def with_dtypes() -> list:
    """Return every case in float32 and every second case in each of the other dtypes."""
    some = {torch.float64: EDGES[::2], torch.float32: EDGES, torch.bfloat16: EDGES[1::2], torch.float16: EDGES[::2]}
    return [pytest.param(case, dtype, id=f"{case}-{str(dtype)[6:]}") for dtype in DTYPES for case in some[dtype]]


@pytest.mark.parametrize(("case", "dtype"), with_dtypes())
def test_norms_and_gradients(case, dtype):
    """Norms and gradients satisfy `assert_twice_rule`, like the operators of layers."""

    def compute(reference_dtype, seed):
        t, other = away_from_zero(case, dtype, seed), away_from_zero(case, reference_dtype, seed)
        for operator in OPERATORS:
            everything = (
                operator(triton_operators, t, case),
                operator(reference, other, case),
                operator(reference, other.to(torch.float64), case),
                operator(reference, t.to(torch.float64), case),
                scales(operator, t.to(torch.float64), case),
            )
            for value, rounded, rounded_exact, exact, scale in zip(*everything, strict=True):
                yield value, exact + (rounded.double() - rounded_exact), exact, scale

    assert_twice_rule(compute, dtype, max(1, min(6, 100 // (case.N * case.O))), "edges")


@pytest.mark.parametrize("case", [Case(130, 3, 33, scaled=True), Case(70, 2, 5, G=20, K=2, knots="adaptive")], ids=str)
@pytest.mark.parametrize(("precision", "bits"), [("high", 10), ("medium", 7)])
def test_precision_is_torchs_choice(case, precision, bits):
    """Operands with 10 and 7 explicit bits of mantissa cause errors of that size, and not smaller ones."""
    before = torch.get_float32_matmul_precision()
    t = away_from_zero(case, torch.float32)
    torch.set_float32_matmul_precision(precision)
    try:
        results = [operator(triton_operators, t, case) for operator in OPERATORS]
    finally:
        torch.set_float32_matmul_precision(before)
    for operator, values in zip(OPERATORS, results, strict=True):
        for value, exact in zip(values, operator(reference, t.to(torch.float64), case), strict=True):
            if exact.numel():
                error = ((value - exact).abs().max() / exact.abs().max()).item()
                assert 2.0 ** -(bits + 6) < error < 4 * 2.0**-bits


@pytest.mark.parametrize("case", [Case(129, 2, 3), Case(70, 1, 5, G=20, knots="adaptive")], ids=str)
def test_signs_of_any_functions(case):
    """The signs of functions that cross 0 agree with the reference in float64, where rounding does not change them."""
    t = make(dataclasses.replace(case, points="inside"), torch.float64)
    t.g = t.g[: case.I].t()
    for operator in OPERATORS:
        for value, exact in zip(operator(triton_operators, t, case), operator(reference, t, case), strict=True):
            torch.testing.assert_close(value, exact, rtol=1e-9, atol=1e-12)


def test_zero_has_no_sign():
    """Edges that are 0 everywhere have gradient 0, as with torch.sign."""
    case = Case(70, 3, 5)
    t = away_from_zero(case, torch.float32)
    t.spline_weight[:, 1], t.base_weight[:, 1] = 0, 0
    x_gradient, spline_weight_gradient, _, base_weight_gradient = gradients(triton_operators, t, case)
    assert not x_gradient[:, 1].any()
    assert not spline_weight_gradient[:, 1].any()
    assert not base_weight_gradient[:, 1].any()
    assert spline_weight_gradient[:, 0].any()


@pytest.mark.parametrize("case", [Case(37, 3, 5, K=1), Case(37, 3, 5, knots="adaptive"), Case(37, 3, 5, K=0)], ids=str)
def test_nan_and_inf_as_the_reference(case):
    t = away_from_zero(case, torch.float32)
    for k, value in enumerate(VALUES):
        t.x[3 * k, k % 2] = value
    for operator in OPERATORS:
        for value, truth in zip(operator(triton_operators, t, case), operator(reference, t, case), strict=True):
            same(value, truth)


def test_no_rows():
    case = Case(0, 3, 2)
    t = make(dataclasses.replace(case, N=3), torch.float32)
    t.x, t.g = t.x[:0], t.g.t()
    assert norms(triton_operators, t, case)[0].isnan().all()
    x_gradient, spline_weight_gradient, *_ = gradients(triton_operators, t, case)
    assert x_gradient.shape == (0, 3)
    assert not spline_weight_gradient.any()


def test_only_what_is_needed():
    """A gradient that is not needed is empty and does not change the bits of the others."""
    case = Case(63, 2, 5, scaled=True)
    t = away_from_zero(case, torch.float32)
    everything = triton_operators.edge_l1_backward(*arguments(t, case), t.g, True, True, True, True)
    for needs in [(k == 0, k == 1, k == 2, k == 3) for k in range(5)]:
        some = triton_operators.edge_l1_backward(*arguments(t, case), t.g, *needs)
        for gradient, full, needed in zip(some, everything, needs, strict=True):
            assert tuple(gradient.shape) == (tuple(full.shape) if needed else (0,))
            assert not needed or torch.equal(gradient, full)


@pytest.mark.parametrize("N", [63, 0])
@pytest.mark.parametrize("layout", ["contiguous", "in_first"])
def test_gradients_lie_in_memory_as_the_weights(layout, N):
    """The gradients have the memory layout of the weights. The reference computes those of a batch without rows."""
    case = Case(63, 2, 5, scaled=True)
    t = with_weights_laid_out(away_from_zero(case, torch.float32), layout)
    t.x = t.x[:N]
    assert norms(triton_operators, t, case)[0].is_contiguous()
    for gradient in gradients(triton_operators, t, case)[1:]:
        assert gradient.shape[:2] == (case.O, case.I)
        assert (gradient.transpose(0, 1) if layout == "in_first" else gradient).is_contiguous()


def test_the_gradient_of_a_base_that_is_not_there():
    """The gradient of base_weight is computed if it is needed, even without a base_weight, as in the reference."""
    case = Case(63, 2, 5, base=None)
    t = away_from_zero(case, torch.float64)
    value, exact = (
        module.edge_l1_backward(*arguments(t, case), t.g, False, False, False, True)[3]
        for module in (triton_operators, reference)
    )
    torch.testing.assert_close(value, exact)


def test_features_in_several_launches(monkeypatch):
    """Several launches compute partial sums of a few features each if all of them do not fit the scratch memory."""
    case = Case(70, 3, 7, scaled=True)
    t = away_from_zero(case, torch.float32)
    together = gradients(triton_operators, t, case)
    monkeypatch.setattr(heuristics, "SCRATCH_BYTES", 2 * 4 * (case.M + 1) * case.O)
    for value, expected in zip(gradients(triton_operators, t, case), together, strict=True):
        torch.testing.assert_close(value, expected)


def test_same_bits_every_time():
    """Sums that are split into parts have a fixed order."""
    assert heuristics.edge_split("tf32x3", IN_PARTS.N, IN_PARTS.I, IN_PARTS.O, IN_PARTS.M + 1)[1] > 1
    t = away_from_zero(IN_PARTS, torch.float32)
    for operator in OPERATORS:
        first, second = (operator(triton_operators, t, IN_PARTS) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", ["x", "spline_weight", "spline_scaler", "grid", "base_weight", "g"])
def test_offsets_beyond_32_bits(name):
    """The elements of an operand may be more than 2^31 apart."""
    torch.use_deterministic_algorithms(False)  # filling with NaN would write all 4 GB, which are only reserved
    case = Case(3, 2, 2, K=2, G=2, scaled=True)
    t = away_from_zero(case, torch.bfloat16).on(DEVICE)
    values = getattr(t, name)
    strides = [16, 4, 1][-values.dim() :]
    strides[0] = 2**31 // (values.shape[0] - 1)
    view = torch.empty(2**31 + 64, dtype=torch.bfloat16, device=DEVICE).as_strided(values.shape, strides)
    spread = dataclasses.replace(t, **{name: view.copy_(values)})
    with kk.use_backend("triton"):
        for operator in OPERATORS:
            for value, expected in zip(operator(ops, spread, case), operator(ops, t, case), strict=True):
                assert torch.equal(value, expected), operator.__name__


def test_nothing_of_the_edges_size_in_memory():
    """No allocation is larger than the inputs and parameters. There is no tensor of shape (N, I, O) or (N, I, M)."""
    case = Case(60, 8, 4)
    t = away_from_zero(case, torch.float32).on(DEVICE)
    for operator in OPERATORS:
        with Allocations() as seen:
            operator(triton_kernels, t, case)
        assert 0 < seen.largest <= 4 * case.N * case.I


MOMENTS = [Case(300, 3, 1), Case(129, 2, 1, K=0, knots="adaptive"), Case(150, 3, 1, G=20, K=2, base="identity")]


def moments(module, t: Tensors, case: Case):
    return (module.basis_moments(t.x, t.grid, case.K, case.base),)


def moments_gradient(module, t: Tensors, case: Case):
    shape = reference.basis_moments(t.x[:0], t.grid, case.K, case.base).shape
    r = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).to(t.x.device)
    return (module.basis_moments_backward(t.x, t.grid, case.K, case.base, r),)


@pytest.mark.parametrize("operator", [moments, moments_gradient], ids=lambda f: f.__name__)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("case", MOMENTS, ids=str)
def test_moments(monkeypatch, case, dtype, operator):
    """The moments equal the reference's if the rows are processed in parts."""
    t = make(case, dtype)
    (exact,) = operator(reference, t, case)
    bases = 8 * case.N * t.grid.numel()
    monkeypatch.setattr(heuristics, "WIDE_SCRATCH_BYTES", bases)
    (value,) = operator(triton_operators, t, case)
    assert value.dtype is exact.dtype
    torch.testing.assert_close(value, exact)
    t = t.on(DEVICE)
    with Allocations() as seen:
        operator(triton_kernels, t, case)
    assert seen.largest <= max(bases // 4, exact.nbytes)


def test_moments_of_no_rows():
    case = Case(0, 3, 1)
    t = make(case, torch.float32)
    assert not moments(triton_operators, t, case)[0].any()
    assert moments_gradient(triton_operators, t, case)[0].shape == (0, 3)
