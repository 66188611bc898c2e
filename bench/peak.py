"""The peak memory of a job over what was there before it, as the operating system sees it.

torch's profiler would miss what a kernel allocates by itself. Each measurement has a process of its own, because memory that
an earlier job left behind, in the allocator or in a kernel's scratch, would not be counted again.
"""

import ctypes
import gc
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_all_start_methods, get_context
from pathlib import Path
from typing import Any

import torch

# Forked from a server that has imported the slow modules and computed nothing.
PRELOAD = ["torch", "kan_kernels", "kan"]


def peak_megabytes(
    make_job: Callable[..., Callable[[], object]], warm_up: tuple[Any, ...], arguments: tuple[Any, ...], threads: int
) -> float | None:
    """Of the job that make_job(*arguments) makes, after another was done to warm up; None where the system does not count."""
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
        ctypes.CDLL(None).malloc_trim(0)  # freed memory goes back to the system, or the step would reuse it uncounted
        Path("/proc/self/clear_refs").write_text("5")  # restarts VmHWM
    except (AttributeError, OSError):
        return None
    before = _status()
    kept = job()
    after = _status()
    del kept
    # Library code that the step paged in is not memory it allocated.
    paged_in = after["RssFile"] - before["RssFile"]
    return max(0, after["VmHWM"] - before["VmRSS"] - paged_in) / 1024


def _status() -> dict[str, int]:
    """The kilobyte counters of this process."""
    lines = (line.split() for line in Path("/proc/self/status").read_text().splitlines())
    return {words[0].rstrip(":"): int(words[1]) for words in lines if words[-1] == "kB"}
