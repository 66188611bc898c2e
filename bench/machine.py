"""Describe the machine and the versions that a measurement uses."""

import os
import sys
import tempfile
from datetime import date
from pathlib import Path

import torch

import kan_kernels as kk

LIMITS = ("KAN_KERNELS_ISA", "ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA")
OF_BASELINE = ("baseline", "default", "SSE4_2", "SSE41")  # their values for the baseline; otherwise they have one name


def limit_to(instruction_set: str | None) -> None:
    """Restart this program with all libraries limited to an instruction set, e.g. "avx2". None sets no limit.

    The restart is necessary because libraries read the variables in `LIMITS` once.
    """
    if instruction_set is None:
        return
    name = instruction_set.lower()
    values = OF_BASELINE if name == "baseline" else (name, name, name.upper(), name.upper())
    if all(os.environ.get(variable, "").lower() == value.lower() for variable, value in zip(LIMITS, values, strict=True)):
        return
    limits = dict(zip(LIMITS, values, strict=True))
    # torch.compile's cache does not distinguish instruction sets: code for another one has corrupted memory.
    limits["TORCHINDUCTOR_CACHE_DIR"] = str(Path(tempfile.gettempdir()) / f"inductor-{name}")
    os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | limits)


def describe() -> dict[str, str | int | None]:
    """Return the processor, cores, torch's threads, versions, the kernels' instruction set and today's date.

    If environment variables limit the instruction sets, the processor's name includes the limit. `LIMITS` apply to
    kan_kernels, torch's own kernels, MKL and oneDNN; a fair comparison limits all of them.
    """
    info = kk.info()
    given = [os.environ[variable].lower() for variable in LIMITS if variable in os.environ]
    limits = ["baseline"] if given == [value.lower() for value in OF_BASELINE] else sorted(set(given))
    if given and len(given) < len(LIMITS):
        raise SystemExit(f"An instruction set is limited for some libraries alone: set all of {', '.join(LIMITS)} or none.")
    return {
        "cpu": info.processor + f" limited to {' and '.join(limits)}" * bool(limits),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "instruction_set": info.instruction_set,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        **info.versions,
        "date": date.today().isoformat(),
    }
