"""What a process needs in memory, from Linux's /proc: the examples' measure."""

import contextlib
import ctypes
from pathlib import Path

_M_MMAP_THRESHOLD = -3  # of glibc's malloc.h


def memory_kilobytes(field: str) -> int | None:
    """A field of /proc/self/status; None on a system that has no such file."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in status.splitlines() if line.startswith(field + ":")), None)


def restart_peak_memory() -> int | None:
    """Forget the peak so far and give the memory in use now; None where the system cannot."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return memory_kilobytes("VmRSS")


def release_freed_memory() -> None:
    """Have what is freed go back to the system at once, in blocks from 1 MB on.

    glibc keeps freed blocks of up to 32 MB, in a heap with holes: a peak would count hundreds of MB that no tensor has.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 1 << 20)
