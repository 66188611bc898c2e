"""The peak memory of one training step over its inputs, as the operating system sees it.

torch's profiler would miss what a kernel allocates by itself. Each measurement has a process of its own, because memory that
an earlier step left behind, in the allocator or in a kernel's scratch, would not be counted again.
"""

import ctypes
import gc
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_all_start_methods, get_context
from pathlib import Path

import torch
from baselines import build
from cases import Case, make

TINY = Case(8, 2, 3)
# Forked from a server that has imported the slow modules and computed nothing.
PRELOAD = ["torch", "kan_kernels", "kan"]


def peak_megabytes(provider: str, case: Case, threads: int) -> float | None:
    """None where the system has no such counters."""
    clear_refs = Path("/proc/self/clear_refs")
    if not clear_refs.exists() or "forkserver" not in get_all_start_methods():
        return None
    context = get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_measure, provider, case, threads).result()


def _measure(provider: str, case: Case, threads: int) -> float | None:
    torch.set_num_threads(threads)
    baseline = build(provider, case, make(case, torch.float32))
    # What a process sets up once is not part of a step. Compiled code is set up for one size, and keeps no scratch of it.
    warm_up = baseline if "compile" in provider else build(provider, TINY, make(TINY, torch.float32))
    warm_up.step()
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)  # freed memory goes back to the system, or the step would reuse it uncounted
        Path("/proc/self/clear_refs").write_text("5")  # restarts VmHWM
    except (AttributeError, OSError):
        return None
    before = _status()
    kept = baseline.step()
    after = _status()
    del kept
    # Library code that the step paged in is not memory it allocated.
    paged_in = after["RssFile"] - before["RssFile"]
    return max(0, after["VmHWM"] - before["VmRSS"] - paged_in) / 1024


def _status() -> dict[str, int]:
    """The kilobyte counters of this process."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {words[0].rstrip(":"): int(words[1]) for words in lines if words[-1] == "kB"}
