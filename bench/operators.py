"""Micro-benchmarks of the operators: `python -m pytest bench/operators.py [--benchmark-group-by=param:case]`."""

from collections.abc import Callable

import pytest
import torch
from cases import BENCH_CASES, Case, Tensors, make

from kan_kernels import ops


def spline_forward(case: Case, t: Tensors) -> object:
    return ops.spline_forward(t.x, None, t.spline_weight, None, t.grid, t.base_weight, "silu", 0)


def spline_backward_input(case: Case, t: Tensors) -> object:
    """Compute the gradient of x, which uses the first derivative of the bases."""
    return ops.spline_backward_input(t.x, t.g, t.spline_weight, None, t.grid, t.base_weight, "silu", 1)


def spline_backward_weight(case: Case, t: Tensors) -> object:
    return ops.spline_backward_weight(t.x, None, t.g, None, None, t.grid, case.K, "silu", 0, True, False, True)


def spline_backward(case: Case, t: Tensors) -> object:
    """Compute the gradients of x and of the parameters."""
    return ops.spline_backward(t.x, None, t.g, t.spline_weight, None, t.grid, t.base_weight, "silu", 0, True, False, True)


OPERATORS = (spline_forward, spline_backward_input, spline_backward_weight, spline_backward)


@pytest.mark.benchmark(max_time=0.3, warmup=True, warmup_iterations=3)
@pytest.mark.parametrize("operator", OPERATORS, ids=lambda operator: operator.__name__)
@pytest.mark.parametrize("case", BENCH_CASES)
def test_operator(benchmark: Callable[..., object], case: str, operator: Callable[[Case, Tensors], object]) -> None:
    problem = BENCH_CASES[case]
    benchmark(operator, problem, make(problem, torch.float32))
