"""Shared fixtures: every test runs on NaN-poisoned allocations. `--extent`: how much of the products of parameters runs."""

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
    """Deselect what is beyond the extent; pytest prints how many tests that are."""
    extent = config.getoption("--extent")
    positions: Counter = Counter()  # of the next test of a function
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
    """Whether a test, the position-th of its function, is part of the extent. "full" is every test.

    The product of `test_operators` is cases x instruction sets x dtypes x orders. "usual" leaves out what of it differs from
    the rest by its order or by a storage type alone: of a case, float32 and float64 run in orders 0 and 1, the half types in
    order 0, and of the other combinations every fourth. "check" is every fifth case on the best instruction set, in float32
    and float64 and orders 0 and 1.

    Triton's interpreter and compiler are slow: outside of "full" every seventh test of a function runs, compiled for one
    target of each vendor.
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
    """torch fills what it allocates with NaN, inside operators too: an output that is not written shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True)
def seeded():
    """The same weights and inputs in every run."""
    torch.manual_seed(0)


@pytest.fixture(params=backends.INSTRUCTION_SETS)
def instruction_set(request):
    """Every instruction set of the C++ kernels in turn."""
    if request.param not in backends.available_instruction_sets():
        pytest.skip(f"{request.param}: not on this processor, or built without C++")
    before = backends.instruction_set()
    backends.select_instruction_set(request.param)
    yield request.param
    backends.select_instruction_set(before)


@pytest.fixture
def float64_in_a_directory_of_its_own(tmp_path, monkeypatch):
    """pykan computes in the default dtype and writes checkpoints where it runs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
