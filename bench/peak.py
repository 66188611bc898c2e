"""Measure the peak memory of a job beyond the memory in use before it, with the operating system's counters.

torch's profiler misses memory that a kernel allocates directly. Each measurement runs in a new process, because memory that
an earlier job left in the allocator or in a kernel's scratch would not be counted again.
"""

import ctypes
import gc
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_all_start_methods, get_context
from pathlib import Path
from typing import Any

import torch

# The processes are forked from a server that has imported these slow modules and computed nothing.
PRELOAD = ["torch", "kan_kernels", "kan"]


def peak_megabytes(
    make_job: Callable[..., Callable[[], object]], warm_up: tuple[Any, ...], arguments: tuple[Any, ...], threads: int
) -> float | None:
    """Return the peak of the job make_job(*arguments) after a run of make_job(*warm_up), or None without counters."""
    clear_refs = Path("/proc/self/clear_refs")
    if not clear_refs.exists() or "forkserver" not in get_all_start_methods():
        return None
    context = get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_measure, make_job, warm_up, arguments, threads).result()


def _measure(
    make_job: Callable[..., Callable[[], object]], warm_up: tuple[Any, ...], arguments: tuple[Any, ...], threads: int
) -> float | None:
    torch.set_num_threads(threads)
    job = make_job(*arguments)
    (job if warm_up == arguments else make_job(*warm_up))()
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)  # returns freed memory to the system, because reused memory is not counted
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    except (AttributeError, OSError):
        return None
    before = _status()
    kept = job()
    after = _status()
    del kept
    # The job does not allocate the library code that it pages in.
    paged_in = after["RssFile"] - before["RssFile"]
    return max(0, after["VmHWM"] - before["VmRSS"] - paged_in) / 1024


def _status() -> dict[str, int]:
    """Return the kilobyte counters of this process."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {words[0].rstrip(":"): int(words[1]) for words in lines if words[-1] == "kB"}
