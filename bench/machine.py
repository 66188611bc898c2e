"""What a measurement was made on and with."""

import os
from datetime import date

import torch

import kan_kernels as kk


def describe() -> dict[str, str | int | None]:
    """Processor, cores, torch's threads, versions, the kernels' instruction set and today's date."""
    info = kk.info()
    return {
        "cpu": info.processor,
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "instruction_set": info.instruction_set,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        **info.versions,
        "date": date.today().isoformat(),
    }
