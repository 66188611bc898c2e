"""Weights in pykan's memory layout, (I, O, M), give the same numbers.

The gradients have the memory layout of the weights.
"""

import pytest
import torch
from cases import Case, make

import kan_kernels as kk
from kan_kernels import ops

CASES = [
    Case(1, 7, 33, scaled=True),
    Case(4, 5, 48, K=6, scaled=True),
    Case(63, 7, 17, K=2, knots="adaptive", scaled=True),
    Case(129, 3, 16),
    Case(300, 5, 5, G=20, scaled=True, base="identity"),
]
WEIGHTS = ("spline_weight", "spline_scaler", "base_weight")


def problem(case, layout):
    return make(Case(**{**vars(case), "layout": layout}), torch.float64)


def leaves(case, layout):
    """Return the case's tensors, the leaves and the operands.

    The leaves have pykan's shapes (I, O, ...) or those of `KANLinear`, (O, I, ...). The operands have shapes (O, I, ...).
    """
    t = problem(case, layout)
    own, operands = {}, {}
    for name in WEIGHTS:
        value = getattr(t, name)
        if layout == "in_first" and value is not None:
            value = value.transpose(0, 1)
        own[name] = None if value is None else value.detach().clone().requires_grad_()
        operands[name] = own[name] if value is None or layout == "contiguous" else own[name].transpose(0, 1)
    return t, own, operands


def gradients(case, layout, wanted, compute):
    """Return the gradients of the weights that `wanted` names."""
    t, own, operands = leaves(case, layout)
    for name, leaf in own.items():
        if leaf is not None:
            leaf.requires_grad_(name in wanted)
    compute(t, operands).backward()
    return [own[name].grad for name in wanted]


def layers_output(case):
    def compute(t, weights):
        y = kk.kan_linear(
            t.x,
            weights["spline_weight"],
            t.grid,
            weights["base_weight"],
            spline_scaler=weights["spline_scaler"],
            base_activation=case.base,
        )
        return (y * t.g).sum()

    return compute


def norms(case, ord):
    def compute(t, weights):
        norms = kk.edge_norms(
            t.x,
            weights["spline_weight"],
            t.grid,
            weights["base_weight"],
            ord,
            spline_scaler=weights["spline_scaler"],
            base_activation=case.base,
        )
        return (norms * torch.linspace(-1, 1, norms.numel(), dtype=norms.dtype).view(norms.shape)).sum()

    return compute


COMPUTATIONS = {
    "layer": layers_output,
    "l1": lambda case: norms(case, "l1"),
    "std": lambda case: norms(case, "std"),
}


@pytest.mark.parametrize("backend", ["auto", "reference"])
@pytest.mark.parametrize("computation", COMPUTATIONS)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_gradients_are_laid_out_like_their_leaves(case, computation, backend):
    """The gradients of pykan's parameters and of ours are contiguous and equal, if all weights or only one are trained."""
    if computation == "std" and case.N < 2:
        case = Case(**{**vars(case), "N": 2})
    compute = COMPUTATIONS[computation](case)
    names = [name for name in WEIGHTS if name != "spline_scaler" or case.scaled]
    with kk.use_backend(backend):
        for wanted in (names, *([name] for name in names)):
            theirs = gradients(case, "in_first", wanted, compute)
            for name, own, other in zip(wanted, theirs, gradients(case, "contiguous", wanted, compute), strict=True):
                if backend == "auto":
                    assert own.is_contiguous(), name
                    assert other.is_contiguous(), name
                torch.testing.assert_close(own.transpose(0, 1), other, rtol=1e-10, atol=1e-11)


def calls(t, case):
    base = case.base or "silu"
    needs = (True, case.scaled, True)
    r = torch.ones(case.O, case.I, dtype=t.x.dtype)
    moments = ops.basis_moments(t.x, t.grid, case.K, base)
    return {
        "spline_backward_weight": (t.x, t.w, t.g, t.spline_weight, t.spline_scaler, t.grid, case.K, base, 0, *needs),
        "spline_backward": (t.x, t.w, t.g, t.spline_weight, t.spline_scaler, t.grid, t.base_weight, base, 0, *needs),
        "edge_l1_backward": (t.x, t.spline_weight, t.spline_scaler, t.grid, t.base_weight, base, r, True, *needs),
        "edge_std_backward": (moments, t.spline_weight, t.spline_scaler, t.base_weight, case.N, r, True, *needs),
    }


OPERATORS = ("spline_backward_weight", "spline_backward", "edge_l1_backward", "edge_std_backward")


def weights_gradients(name, results):
    return results if name == "spline_backward_weight" else results[1:]


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("case", [case for case in CASES if case.N > 1], ids=str)
def test_operators_write_gradients_in_the_layout_of_the_weights(case, name):
    """The gradients have shapes (O, I, M) and (O, I), and the memory layouts (I, O, M) and (I, O) if the weights have them."""
    t, other = problem(case, "in_first"), problem(case, "contiguous")
    results = weights_gradients(name, getattr(ops, name)(*calls(t, case)[name]))
    expected = weights_gradients(name, getattr(ops, name)(*calls(other, case)[name]))
    written = [pair for pair in zip(results, expected, strict=True) if pair[0].numel()]
    assert len(written) == 2 + case.scaled
    for value, truth in written:
        assert value.shape == truth.shape
        assert truth.is_contiguous()
        assert value.transpose(0, 1).is_contiguous()
        torch.testing.assert_close(value, truth, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("layout", ["in_first", "contiguous", "strided"])
def test_fake_gradients_are_laid_out_alike(name, layout):
    """The results of fake kernels have the strides of real results, which opcheck compares."""
    case = Case(7, 3, 5, scaled=True)
    arguments = calls(problem(case, layout), case)[name]
    torch.library.opcheck(getattr(ops, name), arguments)
    real = getattr(ops, name)(*arguments)
    with torch._subclasses.FakeTensorMode() as mode:
        fake = [mode.from_tensor(a) if isinstance(a, torch.Tensor) else a for a in arguments]
        for value, truth in zip(getattr(ops, name)(*fake), real, strict=True):
            assert (value.shape, value.stride(), value.dtype) == (truth.shape, truth.stride(), truth.dtype)


def test_a_compiled_layer_in_pykans_layout():
    case = Case(63, 7, 17, scaled=True)
    torch.use_deterministic_algorithms(False)
    t, own, operands = leaves(case, "in_first")
    compute = layers_output(case)
    compute(t, operands).backward()
    expected = [own[name].grad for name in WEIGHTS]

    def of_pykans(spline_weight, spline_scaler, base_weight):
        given = (spline_weight, spline_scaler, base_weight)
        return compute(t, {name: value.transpose(0, 1) for name, value in zip(WEIGHTS, given, strict=True)})

    torch.compiler.reset()
    _, own, _ = leaves(case, "in_first")
    torch.compile(of_pykans, backend="aot_eager", fullgraph=True)(*own.values()).backward()
    for name, truth in zip(WEIGHTS, expected, strict=True):
        assert own[name].grad.is_contiguous(), name
        torch.testing.assert_close(own[name].grad, truth)


def test_a_grid_that_requires_a_gradient_is_constant_with_every_backend():
    grid = kk.KANLinear(3, 2).grid.requires_grad_()
    x, spline_weight = torch.rand(5, 3), torch.rand(2, 3, 8)
    for backend in ("cpp", "reference"):
        with kk.use_backend(backend):
            assert not kk.kan_linear(x, spline_weight, grid).requires_grad
