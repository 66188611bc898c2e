"""What is built, what is used, and why not something faster."""

import platform
from dataclasses import dataclass
from pathlib import Path

import torch

from . import fallbacks, ops
from .reference import FUSED_ACTIVATIONS


@dataclass(frozen=True)
class Info:
    """The answer of `info()`; printing it gives a page to read or to paste into a report."""

    versions: dict[str, str]
    backend: str
    serves: dict[str, str]  # device type -> the backend that "auto" picks
    unavailable: dict[str, str]  # backend -> why
    processor: str
    instruction_set: str | None
    available_instruction_sets: tuple[str, ...]
    unavailable_instruction_sets: dict[str, str]  # name -> why
    fused_activations: tuple[str, ...]
    fallbacks: dict[str, str]

    def __str__(self) -> str:
        lines = [f"{name:<16}{version}" for name, version in self.versions.items()]
        lines.append(f"{'backend':<16}{self.backend}")
        for device, backend in self.serves.items():
            lines.append(f"{'  ' + device:<16}{backend}")
        for backend, reason in self.unavailable.items():
            lines.append(f"{'  not ' + backend:<16}{reason}")
        lines.append(f"{'processor':<16}{self.processor}")
        if self.instruction_set is not None:
            lines.append(f"{'C++ kernels':<16}{self.instruction_set} (of {', '.join(self.available_instruction_sets)})")
            lines += [f"{'  not ' + name:<16}{reason}" for name, reason in self.unavailable_instruction_sets.items()]
        lines.append(f"{'fused b':<16}{', '.join(self.fused_activations)}, none; any other runs in plain torch")
        for what, reason in self.fallbacks.items():
            lines.append(f"{'fell back':<16}{what}: {reason}")
        return "\n".join(lines)

    __repr__ = __str__


def info() -> Info:
    """Versions, which backend serves which device and why not the others, the instruction set in use, fallbacks so far."""
    from . import __version__

    return Info(
        versions={"kan_kernels": __version__, "torch": torch.__version__, "python": platform.python_version()},
        backend=ops.backend(),
        serves={device: ops.serves(device) for device in ("cpu", "cuda", "other devices")},
        unavailable={name: reason for name in ops.BACKENDS if (reason := ops.unavailable(name))},
        processor=processor(),
        instruction_set=ops.instruction_set(),
        available_instruction_sets=ops.available_instruction_sets(),
        unavailable_instruction_sets=ops.unavailable_instruction_sets(),
        fused_activations=FUSED_ACTIVATIONS,
        fallbacks=fallbacks.noted(),
    )


def processor() -> str:
    """The processor's model where Linux names it, else what Python knows of it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    models = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(models, platform.processor() or platform.machine())
