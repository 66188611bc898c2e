"""Measure the peak memory of one training step of a layer, beyond its inputs."""

from collections.abc import Callable

import torch
from baselines import build
from cases import Case, make
from peak import peak_megabytes

TINY = Case(8, 2, 3)


def step_megabytes(provider: str, case: Case, threads: int) -> float | None:
    """Return the peak in megabytes, or None if the system has no such counters."""
    # The warm-up excludes what a process sets up once. Compiled code is specialised for one size and keeps no scratch memory.
    warm_up = case if "compile" in provider else TINY
    return peak_megabytes(_step, (provider, warm_up), (provider, case), threads)


def _step(provider: str, case: Case) -> Callable[[], object]:
    return build(provider, case, make(case, torch.float32)).step
