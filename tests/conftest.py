"""Shared fixtures, and the option `--extent`, which selects a part of the parametrized tests.

Every test runs with allocations that are filled with NaN.
"""

from collections import Counter

import pytest
import torch
from cases import CASES, DTYPES

from kan_kernels import backends

EXTENTS = ("check", "usual", "full")


def pytest_addoption(parser):
    parser.addoption(
        "--extent",
        choices=EXTENTS,
        default="usual",
        help="how much of the products of parameters runs, see `in_extent`; `make test-all` takes full",
    )


def pytest_collection_modifyitems(config, items):
    """Deselect the tests that are not part of the extent. pytest prints their number."""
    extent = config.getoption("--extent")
    positions: Counter = Counter()  # the position of the next test of every function
    left_out = set()
    for item in items:
        function = item.nodeid.partition("[")[0]
        if not in_extent(item, extent, positions[function]):
            left_out.add(item)
        positions[function] += 1
    if left_out:
        config.hook.pytest_deselected(items=list(left_out))
        items[:] = [item for item in items if item not in left_out]


def in_extent(item, extent: str, position: int) -> bool:
    """Return whether a test, the position-th of its function, is part of the extent. "full" contains every test.

    The parameters of `test_operators` are the product of cases, instruction sets, dtypes and orders. "usual" leaves out a
    part of the combinations that differ from others only in the order or in the storage type: every case runs in float32 and
    float64 in orders 0 and 1 and in the half types in order 0, and every fourth of the other combinations runs. "check"
    contains every fifth case on the best instruction set, in float32 and float64 and in orders 0 and 1.

    Triton's interpreter and compiler are slow, so every extent but "full" contains only every seventh GPU test of a function,
    compiled for one target of each vendor.
    """
    parameters = getattr(getattr(item, "callspec", None), "params", {})
    if extent == "full":
        return True
    if item.path.parent.name == "gpu":
        return position % 7 == 0 and parameters.get("target") not in ("sm_80", "sm_100")
    if getattr(item, "originalname", None) != "test_operators":
        return True
    case, dtype, order = CASES.index(parameters["case"]), DTYPES.index(parameters["dtype"]), parameters["order"]
    wide = parameters["dtype"] in (torch.float32, torch.float64)
    if extent == "check":
        best = parameters["instruction_set"] == backends.available_instruction_sets()[-1]
        return best and wide and order < 2 and case % 5 == 0
    return (wide and order < 2) or order == 0 or (case + dtype + order) % 4 == 0


@pytest.fixture(autouse=True)
def poisoned_allocations():
    """torch fills every allocation with NaN, also inside operators, so that a test detects elements that are not written."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def seeded():
    """Every test draws the same weights and inputs in every run."""
    torch.manual_seed(0)


@pytest.fixture(params=backends.INSTRUCTION_SETS)
def instruction_set(request):
    """Select every instruction set of the C++ kernels in turn."""
    if request.param not in backends.available_instruction_sets():
        pytest.skip(f"{request.param}: not on this processor, or built without C++")
    before = backends.instruction_set()
    backends.select_instruction_set(request.param)
    yield request.param
    backends.select_instruction_set(before)


@pytest.fixture
def float64_in_a_directory_of_its_own(tmp_path, monkeypatch):
    """Set the default dtype to float64 and change to a new directory.

    pykan computes in the default dtype and writes checkpoints to the current directory.
    """
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
