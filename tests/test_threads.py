"""Results have the same bits for 1, 2 and 7 threads, in repeated calls and in concurrent Python threads."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from cases import Case, make

from kan_kernels import ops

CASES = [
    Case(2000, 33, 65, weighted=True),
    Case(20000, 1, 64),
    Case(20000, 2, 5, K=2, knots="adaptive", scaled=True),
    Case(5000, 9, 31, G=50),
    Case(300, 129, 16, G=100, knots="adaptive"),
    Case(1, 256, 256, scaled=True),
    Case(2000, 33, 65, layout="in_first", scaled=True),
]


@pytest.fixture
def thread_count():
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def results(case: Case, t) -> list[torch.Tensor]:
    needs = (True, case.scaled, True)
    return [
        ops.spline_forward(t.x, t.w, t.spline_weight, t.spline_scaler, t.grid, t.base_weight, "silu", 0),
        ops.spline_backward_input(t.x, t.g, t.spline_weight, t.spline_scaler, t.grid, t.base_weight, "silu", 1),
        *ops.spline_backward_weight(t.x, t.w, t.g, t.spline_weight, t.spline_scaler, t.grid, case.K, "silu", 0, *needs),
        *ops.spline_backward(t.x, t.w, t.g, t.spline_weight, t.spline_scaler, t.grid, t.base_weight, "silu", 0, *needs),
    ]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=lambda d: str(d).removeprefix("torch."))
@pytest.mark.parametrize("case", CASES, ids=str)
def test_bits_do_not_depend_on_threads(instruction_set, thread_count, case, dtype):
    t = make(case, dtype)
    thread_count(1)
    alone = results(case, t)
    for threads in (2, 7, 1):
        thread_count(threads)
        for value, expected in zip(results(case, t), alone, strict=True):
            assert torch.equal(value, expected), threads


def test_concurrent_calls():
    """Four Python threads that compute different problems at the same time get the same results as one thread."""
    cases = [Case(300, 9, 31, K=K, scaled=True) for K in (1, 2, 3, 7)]
    problems = [(case, make(case, torch.float32)) for case in cases]
    alone = [results(*problem) for problem in problems]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(10):
            for values, expected in zip(pool.map(lambda p: results(*p), problems), alone, strict=True):
                assert all(map(torch.equal, values, expected))


def test_memory_does_not_grow():
    """Memory does not grow in a loop of steps of different sizes."""
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("the system does not tell a process its memory in /proc/self/status")

    def kilobytes() -> int:
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith("VmRSS:"))

    def step(k):
        case = Case(64 + k % 3, 64, 32 + k % 5, scaled=True)
        results(case, make(case, torch.float32))

    for k in range(60):
        step(k)
    before = kilobytes()
    for k in range(600):
        step(k)
    assert kilobytes() - before < 32 * 1024  # a step uses about 500 kilobytes
