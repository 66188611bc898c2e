"""The operators agree with the float64 reference for every instruction set, case, dtype and order of derivative."""

import dataclasses
from functools import lru_cache

import pytest
import torch
from cases import CASES, DTYPES, Case, Tensors, make
from tolerance import assert_twice_rule

from kan_kernels import backends, ops, reference
from kan_kernels.reference import spline

ORDERS = range(5)


def magnitude(t: Tensors, case: Case, order: int) -> Tensors:
    """Return the same problem with the absolute values of all factors except the bases."""
    return Tensors(**{k: v if v is None or k in ("x", "grid") else v.abs() for k, v in vars(t).items()})


def forward(module, t: Tensors, case: Case, order: int):
    return (
        module.spline_forward(t.x, t.w, t.spline_weight, t.spline_scaler, t.grid, t.base_weight, case.base or "silu", order),
    )


def backward_input(module, t: Tensors, case: Case, order: int):
    return (
        module.spline_backward_input(
            t.x, t.g, t.spline_weight, t.spline_scaler, t.grid, t.base_weight, case.base or "silu", order
        ),
    )


def backward_weight(module, t: Tensors, case: Case, order: int):
    needs = (True, case.scaled, case.base is not None)
    return module.spline_backward_weight(
        t.x, t.w, t.g, t.spline_weight, t.spline_scaler, t.grid, case.K, case.base or "silu", order, *needs
    )


def backward(module, t: Tensors, case: Case, order: int):
    """Compute the gradient of the inputs, which has one order more, and the gradients of the weights in one call."""
    needs = (True, case.scaled, case.base is not None)
    return module.spline_backward(
        t.x, t.w, t.g, t.spline_weight, t.spline_scaler, t.grid, t.base_weight, case.base or "silu", order, *needs
    )


OPERATORS = (forward, backward_input, backward_weight, backward)


class AbsoluteReference:
    """The reference with |bases| and |b|. Its results are the sums of |terms|, without cancellation."""

    def __getattr__(self, name):
        def operator(*arguments):
            basis, activation = spline.basis, spline.base_activation

            def absolute_basis(*a):
                spline.basis = basis  # the recursion of `basis` keeps the signs
                try:
                    return basis(*a).abs()
                finally:
                    spline.basis = absolute_basis

            spline.basis = absolute_basis
            spline.base_activation = lambda *a: activation(*a).abs()
            try:
                return getattr(reference, name)(*arguments)
            finally:
                spline.basis, spline.base_activation = basis, activation

        return operator


@lru_cache(maxsize=192)  # enough for one test: the next instruction set uses the same problems
def judged(operator, case: Case, dtype: torch.dtype, reference_dtype: torch.dtype, order: int, seed: int):
    """Return a random problem, its exact results, the reference's results, their exact values and the sums of |terms|."""
    t = make(case, dtype, seed)
    exact = operator(reference, t.to(torch.float64), case, order)
    # For float64, the float32 reference computes a rounded problem. Each result is compared with its own exact value.
    same = t if reference_dtype is dtype else make(case, reference_dtype, seed)
    values = operator(reference, same, case, order)
    own_exact = exact if same is t else operator(reference, same.to(torch.float64), case, order)
    scales = operator(AbsoluteReference(), magnitude(t.to(torch.float64), case, order), case, order)
    return t, exact, values, own_exact, scales


def compare(
    operator, case: Case, dtype: torch.dtype, order: int, module=ops, trials: int | None = None, first_seed: int = 0
) -> None:
    """Check the operator of `module` on random problems of the case with `assert_twice_rule`."""

    def compute(reference_dtype, trial):
        t, exact, reference_values, own_exact, scales = judged(
            operator, case, dtype, reference_dtype, order, first_seed + trial
        )
        values = operator(module, t, case, order)
        for value, truth, other, other_truth, scale in zip(values, exact, reference_values, own_exact, scales, strict=True):
            yield value, truth + (other.double() - other_truth), truth, scale

    if trials is None:
        # The reference's error can be small by chance. If all gradients of outputs are equal, a problem is only one sample.
        trials = 24 if case.layout == "expanded" else max(3, min(40, 400 // max(1, case.N * case.O)))
    assert_twice_rule(compute, dtype, trials, f"{operator.__name__}, order {order}")


@pytest.mark.parametrize("instruction_set", backends.INSTRUCTION_SETS, indirect=True)  # varies first: `judged` is cached
@pytest.mark.parametrize("order", ORDERS, ids=lambda n: f"order{n}")
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("case", CASES, ids=str)
def test_operators(instruction_set, case, dtype, order):
    """Values, the gradient of w, the gradients of the layer's weights and two gradients at once agree with the reference."""
    for operator in OPERATORS:
        compare(operator, case, dtype, order)


@pytest.mark.parametrize("seed", [0, 21])
def test_long_sums_round_once_for_a_feature(instruction_set, seed):
    """The kernel sums the products of a feature before it adds them to the running sum.

    Adding them one by one lost two digits, and seed 21 violated the rule of `assert_twice_rule`.
    """
    compare(forward, Case(500, 20, 20, G=100, K=5, points="inside"), torch.float32, 0, trials=1, first_seed=seed)


@pytest.mark.parametrize("order", [0, 9, ops.MAX_DERIVATIVE])
def test_high_orders(instruction_set, order):
    """For orders far above K, the spline part is zero and the derivative of the base equals the reference's."""
    case = Case(63, 7, 5, weighted=True)
    for operator in OPERATORS:
        if operator is backward and order == ops.MAX_DERIVATIVE:
            with pytest.raises(RuntimeError, match=r"derivative must be in 0\.\.29"):
                compare(operator, case, torch.float64, order)
        else:
            compare(operator, case, torch.float64, order)


def test_only_what_is_needed():
    """A gradient that is not needed is empty and does not change the bits of the others."""
    case = Case(63, 7, 17, scaled=True)
    t = make(case, torch.float32)
    arguments = (t.x, None, t.g, t.spline_weight, t.spline_scaler, t.grid, 3, "silu", 0)
    all_three = ops.spline_backward_weight(*arguments, True, True, True)
    for needs in [(True, False, False), (False, True, False), (False, False, True), (False, False, False)]:
        for module in (ops, reference):
            some = module.spline_backward_weight(*arguments, *needs)
            for gradient, full, needed in zip(some, all_three, needs, strict=True):
                assert tuple(gradient.shape) == (tuple(full.shape) if needed else (0,))
                if needed and module is ops:
                    assert torch.equal(gradient, full)


def test_offsets_beyond_32_bits():
    """The elements of every operand may be more than 2^31 apart."""
    torch.use_deterministic_algorithms(False)  # filling with NaN would write all 4 GB, which are only reserved
    case = Case(3, 2, 2, K=2, G=2, weighted=True, scaled=True)
    t = make(case, torch.bfloat16)
    room = torch.empty(2**31 + 64, dtype=torch.bfloat16)

    def far(values):
        strides = [8, 4, 1][-values.dim() :]
        strides[0] = (2**31) // max(1, values.shape[0] - 1)
        view = room.as_strided(values.shape, strides)
        view.copy_(values)
        return view

    for operator in OPERATORS:
        for name in ("x", "w", "spline_weight", "spline_scaler", "base_weight", "g"):
            spread = dataclasses.replace(t, **{name: far(getattr(t, name))})
            for value, expected in zip(operator(ops, spread, case, 0), operator(ops, t, case, 0), strict=True):
                assert torch.equal(value, expected), (operator.__name__, name)


def test_more_than_2_to_31_outputs():
    """Row n of an output with more than 2^31 elements equals the output of a batch that contains only this row's input."""
    torch.use_deterministic_algorithms(False)
    N, O = 2**15 + 1, 2**16  # noqa: E741
    t = make(Case(1, 1, O, G=1, K=1), torch.float16)
    x = torch.linspace(-1, 1, N, dtype=torch.float16).unsqueeze(1)
    y = ops.spline_forward(x, None, t.spline_weight, None, t.grid, t.base_weight, "silu", 0)
    assert y.numel() > 2**31
    for n in (0, N // 2, N - 1):
        alone = x[n].expand(16, 1)  # a batch of at most 8 rows is summed in another order
        expected = ops.spline_forward(alone, None, t.spline_weight, None, t.grid, t.base_weight, "silu", 0)
        assert torch.equal(y[n], expected[0])
