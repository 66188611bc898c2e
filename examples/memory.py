"""Measure the memory of this process with Linux's /proc, for the examples."""

import contextlib
import ctypes
from pathlib import Path

_M_MMAP_THRESHOLD = -3  # from glibc's malloc.h


def memory_kilobytes(field: str) -> int | None:
    """A field of /proc/self/status, or None if the system has no such file."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return None
    return next((int(line.split()[1]) for line in status.splitlines() if line.startswith(field + ":")), None)


def restart_peak_memory() -> int | None:
    """Reset the peak and return the memory in use now, or None if the system does not support it."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return memory_kilobytes("VmRSS")


def release_freed_memory() -> None:
    """Make glibc return freed blocks of 1 MB or more to the system immediately.

    By default it keeps freed blocks of up to 32 MB in a fragmented heap, so that a peak would include hundreds of MB that no
    tensor uses.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):  # not supported by other C libraries
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 1 << 20)
