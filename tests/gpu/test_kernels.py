"""Tests of the Triton kernels, on a GPU or, with TRITON_INTERPRET=1, in Triton's interpreter."""

import dataclasses
import os
import subprocess
import sys

import pytest
import torch
from allocations import Allocations
from cases import COMMON_CASES, DTYPES, PYKAN_CASES, Case, Tensors, make
from test_channels import backward as channels_backward
from test_channels import forward as channels_forward
from test_gradients import first_order, second_order
from test_nonfinite import VALUES, same
from test_operators import OPERATORS, backward, compare
from tolerance import assert_twice_rule
from torch.utils._pytree import tree_map_only

import kan_kernels as kk
from kan_kernels import ops, reference
from kan_kernels import triton as triton_kernels
from kan_kernels.triton import direct, heuristics, prepare

INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
NO_GPU = "no GPU here"
pytestmark = pytest.mark.skipif(not INTERPRETED and not torch.cuda.is_available(), reason=NO_GPU)
needs_gpu = pytest.mark.skipif(INTERPRETED, reason=NO_GPU)

SMALL = [case for case in COMMON_CASES + PYKAN_CASES if case.N <= 300]
# The tiles of a program have 32 to 128 rows and 16 to 128 outputs, features or columns. These sizes are close to multiples of
# them, and some sums have several parts.
LARGER = [
    Case(130, 17, 65, K=2),
    Case(70, 33, 33, knots="adaptive", scaled=True),
    Case(20, 150, 5, weighted=True),
    Case(600, 2, 3, scaled=True),
]


CHOSEN = LARGER + SMALL


class Triton:
    """The operators of the Triton backend, which accept and return CPU tensors."""

    def __getattr__(self, name):
        def operator(*arguments):
            with kk.use_backend("triton"):
                results = getattr(ops, name)(*tree_map_only(torch.Tensor, lambda t: t.to(DEVICE), arguments))
            return tree_map_only(torch.Tensor, lambda t: t.cpu(), results)

        return operator


triton_operators = Triton()


@pytest.fixture(autouse=True)
def numpy_computes_quietly(recwarn):
    """Ignore warnings of the interpreter's numpy: masked rows and infinities overflow in it. A GPU emits no warnings."""
    import warnings

    warnings.simplefilter("ignore", RuntimeWarning)


def use_regime(monkeypatch, name: str) -> None:
    """Use a regime for every call that supports it."""

    def regime(*arguments):
        operator, mode, _, _, _, K, _, D, weighted = arguments
        return name if name != "wide" or heuristics.has_wide(operator, mode, K, D, weighted) else "fused"

    for module in ("forward", "backward_input", "backward_weight", "backward"):
        monkeypatch.setattr(sys.modules[f"kan_kernels.triton.{module}"], "regime", regime)


@pytest.fixture
def regime(request, monkeypatch):
    use_regime(monkeypatch, request.param)


in_both_regimes = pytest.mark.parametrize("regime", ["direct", "fused"], indirect=True)


def trials(case: Case) -> int:
    return max(1, min(8, 100 // max(1, case.N * case.O)))


def operators(order: int):
    """Return the operators of an order. `backward` has its own kernel or calls the kernels of the two others."""
    return OPERATORS if order == 0 else OPERATORS[:3]


def some(every: dict[int, int]) -> list[tuple[Case, int]]:
    """Return pairs of a case and an order. `every` maps an order to the step between its cases.

    On a GPU there are fewer pairs, because every case compiles its kernels.
    """
    stride = 1 if INTERPRETED else 6
    return [(case, order) for order, step in every.items() for case in CHOSEN[:: step * stride]]


@in_both_regimes
@pytest.mark.parametrize(("case", "order"), some({0: 1, 1: 4, 2: 6, 3: 6, 4: 9}), ids=str)
def test_float32(case, order, regime):
    """Every operator is as accurate in every order as float32 matrix products."""
    for operator in operators(order):
        compare(operator, case, torch.float32, order, triton_operators, trials(case))


@pytest.mark.parametrize("layout", [0, 1])
@pytest.mark.parametrize(
    "case", [Case(70, 5, 9, K=4, weighted=True, scaled=True), Case(63, 2, 33, G=20, weighted=True)], ids=str
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=lambda d: str(d).removeprefix("torch."))
def test_sums_of_derivatives(case, dtype, layout):
    """`spline_channels` is composed of the kernels for one derivative."""
    for operator in (channels_forward, channels_backward):
        compare(operator, case, dtype, layout, triton_operators, 2)


@in_both_regimes
@pytest.mark.parametrize("dtype", [d for d in DTYPES if d is not torch.float32], ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize(("case", "order"), some({0: 4, 1: 8}), ids=str)
def test_other_dtypes(case, dtype, order, regime):
    for operator in operators(order):
        compare(operator, case, dtype, order, triton_operators, min(4, trials(case)))


@in_both_regimes
@pytest.mark.parametrize(
    "case", [Case(70, 17, 9, scaled=True, weighted=True), Case(70, 5, 33, G=20, K=2, scaled=True)], ids=str
)
@pytest.mark.parametrize(("precision", "bits"), [("high", 10), ("medium", 7)])
def test_precision_is_torchs_choice(case, precision, bits, regime):
    """Operands with 10 and 7 explicit bits of mantissa cause errors of that size, and not smaller ones."""
    before = torch.get_float32_matmul_precision()
    t = make(case, torch.float32)
    torch.set_float32_matmul_precision(precision)
    try:
        results = [operator(triton_operators, t, case, 0) for operator in OPERATORS]
    finally:
        torch.set_float32_matmul_precision(before)
    for operator, values in zip(OPERATORS, results, strict=True):
        for value, exact in zip(values, operator(reference, t.to(torch.float64), case, 0), strict=True):
            error = ((value - exact).abs().max() / exact.abs().max()).item()
            assert error < 4 * 2.0**-bits
            assert error > 2.0 ** -(bits + 6)


@in_both_regimes
@pytest.mark.parametrize("factor", [1e-30, 1e-12, 1e12, 1e25])
@pytest.mark.parametrize("what", ["x", "w", "spline_weight", "base_weight", "g"])
def test_operands_of_any_size(what, factor, regime):
    """The kernels scale operands, because float16 cannot represent 1e12 or 1e-12.

    The results satisfy `assert_twice_rule`, also if the rows have different magnitudes.
    """
    case = Case(70, 17, 9, weighted=True)

    def compute(reference_dtype, seed):
        t = make(case, torch.float32, seed)
        scaled = getattr(t, what).clone()
        (scaled.transpose(0, 1) if "weight" in what else scaled)[::2] *= factor  # features of weights, or rows
        t = dataclasses.replace(t, **{what: scaled})
        for operator in OPERATORS[:3]:
            values = operator(triton_operators, t, case, 0)
            exact = operator(reference, t.to(torch.float64), case, 0)
            other = operator(reference, t, case, 0)
            for value, truth, rounded in zip(values, exact, other, strict=True):
                # float32 overflows at 3e38
                finite = torch.where(rounded.isfinite(), 1.0, 0.0)
                yield value.nan_to_num() * finite, rounded.nan_to_num() * finite, truth * finite, truth

    assert_twice_rule(compute, torch.float32, 4, what)


@in_both_regimes
@pytest.mark.parametrize("precision", ["highest", "high"])
@pytest.mark.parametrize(("first", "distance"), [(100.0, 0.2), (20000.0, 0.2), (2.0**20, 1 / 16), (738000.0, 5.0)])
def test_knots_far_from_zero(first, distance, precision, regime):
    """Knots far from zero may not be equidistant after rounding.

    If they are exactly equidistant, cancellation must not change the positions of the inputs.
    """
    case = Case(40, 3, 5, base=None)
    t = make(case, torch.float32)
    t.grid = (first + distance * torch.arange(12, dtype=torch.float64)).float().expand(3, -1)
    place = torch.rand(40, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t.x = (first + 11 * distance * place).float()
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        for operator in OPERATORS[:3]:
            exact = operator(reference, t.to(torch.float64), case, 0)[0]
            error = (operator(triton_operators, t, case, 0)[0] - exact).abs().max() / exact.abs().max()
            assert error < (2e-6 if precision == "highest" else 4e-3)
    finally:
        torch.set_float32_matmul_precision(before)


def test_one_far_input_leaves_the_others_alone():
    """An input far below the knots, where SiLU is 0, does not change the accuracy of the other results."""
    case = Case(40, 3, 5)
    t = make(case, torch.float32)
    t.x[:, 0] = -1e12
    for operator in OPERATORS[:3]:
        for value, exact in zip(
            operator(triton_operators, t, case, 0), operator(reference, t.to(torch.float64), case, 0), strict=True
        ):
            if value.numel():
                torch.testing.assert_close(value, exact.float(), rtol=1e-5, atol=1e-6 * exact.abs().max().item())


def test_an_infinite_weight_leaves_other_outputs_alone():
    case = Case(40, 3, 5, points="inside")
    t = make(case, torch.float32)
    (clean,) = OPERATORS[0](triton_operators, t, case, 0)
    t.spline_weight[0, 0, 0] = float("inf")
    (y,) = OPERATORS[0](triton_operators, t, case, 0)
    torch.testing.assert_close(y[:, 1:], clean[:, 1:])


def test_torchs_newer_precision_setting():
    """After the newer setting was used, torch raises an error if the older one is read."""
    code = """
import torch
from kan_kernels.triton.prepare import mode_of
torch.backends.cuda.matmul.fp32_precision = "tf32"
assert mode_of(torch.float32) == "tf32"
torch.backends.cuda.matmul.fp32_precision = "ieee"
assert mode_of(torch.float32) == "fp16x3"
"""
    subprocess.run([sys.executable, "-c", code], check=True)


WIDE = [
    Case(150, 17, 9, scaled=True),
    Case(70, 16, 16, base="identity"),
    Case(150, 17, 9, scaled=True, weighted=True),
    Case(37, 5, 9, G=20, K=2, knots="adaptive", base=None),
]


@pytest.mark.parametrize("case", WIDE, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("order", [0, 1, 2])
def test_wide(monkeypatch, case, dtype, order):
    """The regime of large problems computes in several parts."""
    use_regime(monkeypatch, "wide")
    monkeypatch.setattr(heuristics, "WIDE_SCRATCH_BYTES", 60_000)
    for operator in OPERATORS:
        compare(operator, case, dtype, order, triton_operators, 3)


def with_weights_laid_out(t: Tensors, layout: str) -> Tensors:
    """Return the same values with weights that are "contiguous" or, as in pykan, "in_first" in memory."""
    names = ("spline_weight", "spline_scaler", "base_weight")
    if layout == "in_first":
        moved = {name: getattr(t, name).transpose(0, 1).contiguous().transpose(0, 1) for name in names}
    else:
        moved = {name: getattr(t, name).contiguous() for name in names}
    return dataclasses.replace(t, **moved)


@pytest.mark.parametrize(("N", "order"), [(70, 0), (70, 6), (0, 0)], ids=str)
@pytest.mark.parametrize("name", ["direct", "fused", "wide"])
def test_gradients_lie_in_memory_as_the_weights(monkeypatch, name, N, order):
    """The gradients have the memory layout of the weights in every regime, from the reference (order 6) and without rows.

    Their values are the same for both layouts.
    """
    case = Case(N, 3, 5, scaled=True)
    dtype = torch.bfloat16 if name == "wide" else torch.float32
    use_regime(monkeypatch, name)
    results = {}
    for layout in ("contiguous", "in_first"):
        t = with_weights_laid_out(make(case, dtype), layout)
        results[layout] = backward(triton_operators, t, case, order)[1:]
        for gradient in results[layout]:
            assert gradient.shape[:2] == (case.O, case.I)
            assert (gradient.transpose(0, 1) if layout == "in_first" else gradient).is_contiguous()
    for one, other in zip(*results.values(), strict=True):
        assert torch.equal(one, other)


def test_the_regimes():
    """The choices agree with the numbers in the docstring of `heuristics.prefers_wide`."""

    def chosen(operator: str, mode: str, N: int, I: int, O: int) -> str:
        return heuristics.regime(operator, mode, N, I, O, 3, 8, 0, False)

    assert chosen("spline_forward", "bf16", 16384, 1024, 1024) == "wide"
    assert chosen("spline_forward", "fp16x3", 65536, 256, 256) == "wide"
    assert chosen("spline_forward", "fp16x3", 65536, 128, 128) == "fused"
    assert chosen("spline_backward_input", "tf32", 65536, 784, 10) == "wide"
    assert chosen("spline_backward_weight", "tf32", 65536, 784, 10) == "fused"
    assert chosen("spline_backward_weight", "tf32", 65536, 64, 64) == "wide"
    assert chosen("spline_backward_weight", "tf32", 16384, 64, 64) == "fused"
    for rows, expected in ((4096, "direct"), (16384, "fused")):
        for operator in ("spline_forward", "spline_backward_input", "spline_backward_weight", "spline_backward"):
            assert chosen(operator, "fp16x3", rows, 64, 64) == expected
    assert chosen("spline_backward", "fp16x3", 1000, 2, 5) == "direct"
    assert chosen("spline_backward", "fp16x3", 65536, 8, 32) == "fused"
    assert chosen("spline_backward", "fp16x3", 1_000_000, 8, 32) == "fused"
    assert heuristics.forward_split(256, 784, 64, unrolled=8)[0] > 1
    assert heuristics.forward_split(65536, 64, 64, unrolled=8)[0] == 1


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=lambda d: str(d).removeprefix("torch."))
def test_a_layers_own_knots_are_equidistant(dtype):
    """A training step treats the default layer's knots, rounded to its dtype, as equidistant."""
    layer = kk.KANLinear(3, 2, dtype=dtype).to(DEVICE)
    mode = prepare.mode_of(dtype)
    orders = (0,) if dtype is torch.float16 else (0, 1)
    for D in orders:
        tables = prepare.prepare_knots(layer.spline_weight, layer.grid, 3, D, mode)
        assert tables.uniform.tolist() == [1, 1, 1]
    bent = layer.grid.clone()
    bent[1, 5] += 0.1
    assert prepare.prepare_knots(layer.spline_weight, bent, 3, 0, mode).uniform.tolist() == [1, 0, 1]


@pytest.mark.parametrize("derivatives", [first_order, second_order], ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    "case",
    [
        Case(63, 7, 17, scaled=True),
        Case(37, 3, 5, K=2, knots="adaptive"),
        Case(9, 2, 3),
        *[case for case in SMALL if not case.weighted and case.K and 1 < case.N < 130][:: 2 if INTERPRETED else 4],
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=["float64", "float32"])
def test_gradients(case, derivatives, dtype):
    """First and second derivatives of `kan_linear` agree with autograd of the float64 reference."""
    t = make(case, dtype)
    exact = derivatives(t.to(torch.float64), case, False)
    on_device = t.on(DEVICE)
    with kk.use_backend("triton"):
        values = derivatives(on_device, case, True)
    with kk.use_backend("reference"):
        other = derivatives(t, case, False)
    for value, truth, rounded in zip(values, exact, other, strict=True):
        scale = truth.abs().max()
        # In float64, the reference has no error against itself, and the kernels have up to 2.2 eps on an H200.
        allowed = 2 * (rounded - truth).abs().max() / scale + 8 * torch.finfo(dtype).eps
        assert (value.cpu() - truth).abs().max() / scale <= allowed


def test_a_loss_on_second_derivatives_trains():
    """The parameters' gradients through three nested levels of autograd equal the reference's."""
    torch.manual_seed(0)
    net = kk.KAN([1, 3, 1], dtype=torch.float64).to(DEVICE)

    def gradients():
        x = torch.linspace(-0.9, 0.9, 31, dtype=torch.float64, device=DEVICE).unsqueeze(1).requires_grad_()
        (u_x,) = torch.autograd.grad(net(x).sum(), x, create_graph=True)
        (u_xx,) = torch.autograd.grad(u_x.sum(), x, create_graph=True)
        return torch.autograd.grad((u_xx - torch.sin(x)).square().mean(), net.parameters())

    with kk.use_backend("triton"):
        values = gradients()
    with kk.use_backend("reference"):
        expected = gradients()
    for value, truth in zip(values, expected, strict=True):
        torch.testing.assert_close(value, truth, rtol=1e-8, atol=1e-9 * truth.abs().max().item())


@in_both_regimes
@pytest.mark.parametrize("order", [0, 1, 3])
@pytest.mark.parametrize(
    "case", [Case(37, 3, 5, K=1), Case(37, 3, 5, knots="adaptive"), Case(37, 17, 5), Case(37, 2, 5, K=5)], ids=str
)
@pytest.mark.parametrize("precision", ["highest", "high"])
def test_nan_and_inf_as_the_reference(case, order, precision, regime):
    t = make(case, torch.float32)
    for k, value in enumerate(VALUES):
        t.x[3 * k, k % case.I] = value
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        for operator in OPERATORS[:3]:
            values, expected = operator(triton_operators, t, case, order), operator(reference, t, case, order)
            for value, truth in zip(values, expected, strict=True):
                if precision == "high":
                    assert torch.equal(value.isnan(), truth.isnan())
                else:
                    same(value, truth)
    finally:
        torch.set_float32_matmul_precision(before)


@in_both_regimes
@pytest.mark.parametrize("bad", [float("nan"), float("inf")], ids=str)
def test_only_its_own_row_is_lost(bad, regime):
    case = Case(70, 3, 5, points="inside", base=None)
    t = make(case, torch.float32)
    (clean,) = OPERATORS[0](triton_operators, t, case, 0)
    t.x[4, 1] = bad
    (y,) = OPERATORS[0](triton_operators, t, case, 0)
    assert y[4].isnan().all()
    rest = torch.arange(70) != 4
    assert torch.equal(y[rest], clean[rest])
    gradient = OPERATORS[2](triton_operators, t, case, 0)[0]
    assert gradient[:, 1].isnan().all()
    assert gradient[:, [0, 2]].isfinite().all()


@pytest.mark.parametrize(
    "knots",
    [[float("nan")] * 12, [float("inf")] * 12, [0.0] * 12, list(range(12))[::-1], [-3e38] + [0.0] * 10 + [3e38]],
    ids=str,
)
def test_any_knots_are_safe(knots):
    """Not every call checks the knots, but no values of the knots cause reads out of range."""
    case = Case(37, 3, 5)
    t = make(case, torch.float32)
    for k, value in enumerate(VALUES):
        t.x[3 * k, k % 3] = value
    t.grid = torch.tensor(knots, dtype=torch.float32).expand(3, -1)
    for operator in OPERATORS:
        for value in operator(triton_operators, t, case, 0):
            assert value.shape[-1] in (0, case.I, case.O, case.M)


@in_both_regimes
@pytest.mark.parametrize("case", LARGER[2:], ids=str)
def test_same_bits_every_time(case, regime):
    """Sums that are split into parts have a fixed order."""
    t = make(case, torch.float32)
    for operator in OPERATORS:
        first, second = (operator(triton_operators, t, case, 0) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", ["x", "w", "spline_weight", "spline_scaler", "base_weight", "g"])
def test_offsets_beyond_32_bits(monkeypatch, name):
    """The elements of an operand may be more than 2^31 apart.

    "direct" does not support such weights, and it adds terms in another order.
    """
    if name in ("spline_weight", "spline_scaler"):
        assert not direct.is_addressable(torch.empty_strided((2, 1, 1), (2**31, 1, 1), device="meta"), None)
        use_regime(monkeypatch, "fused")
    torch.use_deterministic_algorithms(False)  # filling with NaN would write all 4 GB, which are only reserved
    case = Case(3, 2, 2, K=2, G=2, weighted=True, scaled=True)
    t = make(case, torch.bfloat16)
    values = getattr(t, name)
    strides = [8, 4, 1][-values.dim() :]
    strides[0] = 2**31 // max(1, values.shape[0] - 1)
    view = torch.empty(2**31 + 64, dtype=torch.bfloat16, device=DEVICE).as_strided(values.shape, strides)
    view.copy_(values)
    on_device = t.on(DEVICE)
    spread = dataclasses.replace(on_device, **{name: view})
    with kk.use_backend("triton"):
        for operator in OPERATORS:
            for value, expected in zip(operator(ops, spread, case, 0), operator(ops, on_device, case, 0), strict=True):
                assert torch.equal(value, expected), operator.__name__


def test_nothing_of_the_bases_size_in_memory():
    """No operator makes an allocation larger than the inputs, outputs and parameters."""
    case = Case(700, 16, 8, weighted=True)
    t = make(case, torch.float32)
    on_device = t.on(DEVICE)
    for operator in OPERATORS:
        with Allocations() as seen:
            operator(triton_kernels, on_device, case, 0)
        assert 0 < seen.largest <= 4 * case.N * case.I < 4 * case.N * case.I * case.M


def test_beyond_the_activations_derivatives(caplog):
    """Higher orders fall back to the reference, and `info()` lists the fallback."""
    case = Case(9, 3, 5)
    t = make(case, torch.float64)
    for operator in OPERATORS[:3]:
        for value, expected in zip(operator(triton_operators, t, case, 6), operator(reference, t, case, 6), strict=True):
            torch.testing.assert_close(value, expected)
    assert any("up to order 5" in reason for reason in kk.info().fallbacks.values())


def test_compile():
    """The operators are opaque to torch.compile."""
    net = kk.KAN([3, 5, 2]).to(DEVICE)
    x = torch.rand(9, 3, device=DEVICE)
    compiled = torch.compile(net, backend="aot_eager", fullgraph=True)
    with kk.use_backend("triton"):
        torch.testing.assert_close(compiled(x), net(x))
        gradients = torch.autograd.grad(compiled(x).square().sum(), net.parameters())
    with kk.use_backend("reference"):
        expected = torch.autograd.grad(net(x).square().sum(), net.parameters())
    torch.testing.assert_close(gradients, expected)


def test_another_device_is_refused():
    layer = kk.KANLinear(2, 3, device="meta")
    refusal = r"x: expected a tensor on .* for backend 'triton', got one on meta"
    with kk.use_backend("triton"), pytest.raises(ValueError, match=refusal):
        layer(torch.empty(4, 2, device="meta"))


@needs_gpu
def test_a_model_on_the_gpu_runs_there_by_default():
    assert kk.info().serves["cuda"] == "triton"
    net = kk.KAN([3, 20, 2]).cuda()
    x = torch.rand(65, 3, device="cuda", requires_grad=True)
    before = dict(kk.info().fallbacks)
    net(x).square().sum().backward()
    assert kk.info().fallbacks == before
    with kk.use_backend("reference"):
        expected = torch.autograd.grad(net(x).square().sum(), x)[0]
    torch.testing.assert_close(x.grad, expected)


@needs_gpu
@pytest.mark.parametrize("shape", [(65, 3, 5), (300, 40, 70)], ids=str)
def test_a_training_step_in_a_cuda_graph(shape):
    """A training step does not synchronize with the device. Otherwise the capture would fail."""
    N, I, O = shape
    layer = kk.KANLinear(I, O).cuda()
    x = torch.rand(N, I, device="cuda", requires_grad=True)

    def step():
        return torch.autograd.grad(layer(x).square().sum(), [x, *layer.parameters()])

    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step()
    stream.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        x.copy_(torch.rand(N, I))
    graph.replay()
    torch.cuda.synchronize()
    for value, expected in zip(captured, step(), strict=True):
        assert torch.equal(value, expected)


@pytest.mark.skipif(INTERPRETED or torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_the_second_gpu():
    """Kernels run on the device of the tensors for any current device."""
    layer = kk.KANLinear(5, 7).to("cuda:1")
    x = torch.rand(9, 5, device="cuda:1")
    with torch.cuda.device(0):
        y = layer(x)
    with kk.use_backend("reference"):
        torch.testing.assert_close(y, layer(x))


def test_small_layers_take_one_launch(monkeypatch):
    """`spline_backward` of a small layer does not call the two single operators."""
    module = sys.modules["kan_kernels.triton.backward"]
    monkeypatch.setattr(module, "spline_backward_weight", None)
    monkeypatch.setattr(module, "spline_backward_input", None)
    case = Case(129, 8, 32, scaled=True)
    compare(backward, case, torch.float32, 0, triton_operators, 2)


@in_both_regimes
@pytest.mark.parametrize("K", [5, 6, 7])
def test_float64_of_high_degrees(K, regime):
    """Triton 3.6 miscompiles some tiles for these degrees, and their sums are wrong."""
    for operator in OPERATORS:
        compare(operator, Case(65, 3, 5, G=4, K=K, scaled=True), torch.float64, 0, triton_operators, 1)


@pytest.mark.parametrize("name", ["direct", "fused", "wide"])
def test_an_expanded_gradient(monkeypatch, name):
    """The gradient of a sum has strides of 0. The results equal those of a contiguous copy."""
    use_regime(monkeypatch, name)
    case = Case(70, 17, 9)
    t = make(case, torch.float32).on(DEVICE)
    expanded = dataclasses.replace(t, g=t.g[:1, :1].expand(t.g.shape))
    copied = dataclasses.replace(t, g=expanded.g.contiguous())
    with kk.use_backend("triton"):
        for operator in OPERATORS[1:]:
            values, others = (operator(ops, each, case, 0) for each in (expanded, copied))
            assert all(torch.equal(value, other) for value, other in zip(values, others, strict=True))
