"""Shared fixtures: every test runs on NaN-poisoned allocations."""

import pytest
import torch

from kan_kernels import ops


@pytest.fixture(autouse=True)
def poisoned_allocations():
    """torch fills what it allocates with NaN, inside operators too: an output that is not written shows."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(params=ops.INSTRUCTION_SETS)
def instruction_set(request):
    """Every instruction set of the C++ kernels in turn."""
    if request.param not in ops.available_instruction_sets():
        pytest.skip(f"{request.param}: not on this processor, or built without C++")
    before = ops.instruction_set()
    ops.select_instruction_set(request.param)
    yield request.param
    ops.select_instruction_set(before)


@pytest.fixture
def float64_in_a_directory_of_its_own(tmp_path, monkeypatch):
    """pykan computes in the default dtype and writes checkpoints where it runs."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)
