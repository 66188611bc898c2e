"""What a measurement was made on and with."""

import os
import platform
from datetime import date
from pathlib import Path

import torch

import kan_kernels as kk


def describe() -> dict[str, str | int | None]:
    """Processor, cores, torch's threads, versions, the kernels' instruction set and today's date."""
    info = kk.info()
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "instruction_set": info.instruction_set,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        **info.versions,
        "date": date.today().isoformat(),
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine())
