"""Backend selection: the C++ extension and its instruction sets, `use_backend`, `info`, and the log of fallbacks."""

import contextlib
import ctypes
import importlib.metadata
import importlib.util
import logging
import os
import platform
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from .reference import FUSED_ACTIVATIONS
from .utils.checks import check_choice
from .version import __version__

Backend = Literal["auto", "cpp", "triton", "reference"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)
INSTRUCTION_SETS = ("baseline", "avx2", "avx512")

_log = logging.getLogger("kan_kernels")
_fallbacks: dict[str, str] = {}


def log_fallback(what: str, reason: str) -> None:
    """Log a slow path once per reason and record it for `info()`."""
    if _fallbacks.get(what) != reason:
        _fallbacks[what] = reason
        _log.warning("kan_kernels: %s: %s", what, reason)


# Triton's interpreter runs the GPU kernels on CPU tensors, so they can be tested without a GPU.
INTERPRETED = os.environ.get("TRITON_INTERPRET", "0") == "1"


def _why_not_found() -> str:
    """Return why the package has no C++ extension."""
    here = Path(__file__).parent
    for distribution in importlib.metadata.distributions(name="kan_kernels"):
        installed = Path(str(distribution.locate_file("kan_kernels")))
        if any(installed.glob("_C*.so")):
            reason = f"Python imported the source tree {here}, not {installed}; start Python in another directory"
            log_fallback("the CPU runs on the reference", reason)
            return reason
    return "not built: installed with KAN_KERNELS_NO_CPP=1"


def _load_extension() -> tuple[ctypes.CDLL | None, str]:
    """Load the C++ extension, which defines `torch.ops.kan_kernels`. Return None and the reason if it is not available."""
    if INTERPRETED:
        return None, "not loaded, because TRITON_INTERPRET=1 runs CPU tensors in Triton's interpreter"
    found = sorted(Path(__file__).parent.glob("_C*.so"))
    if not found:
        return None, _why_not_found()
    try:
        torch.ops.load_library(str(found[0]))
        return ctypes.CDLL(str(found[0])), ""
    except OSError as error:
        log_fallback("the CPU runs on the reference", f"the C++ extension does not load: {error}")
        return None, f"does not load: {error}"


extension, extension_missing = _load_extension()
triton_missing = "" if importlib.util.find_spec("triton") is not None else "triton is not installed"


def instruction_set() -> str | None:
    """Return the instruction set that the C++ kernels use, or None without the C++ extension."""
    return None if extension is None else INSTRUCTION_SETS[extension.kan_kernels_select_instruction_set(-1)]


def select_instruction_set(name: str, source: str = "instruction set") -> None:
    """Select one of `INSTRUCTION_SETS` for the C++ kernels. The environment variable KAN_KERNELS_ISA sets the default.

    Raises ValueError if the name is unknown or if this processor or this build does not support the instruction set.
    """
    check_choice(source, name, INSTRUCTION_SETS)
    level = INSTRUCTION_SETS.index(name)
    if extension is None or extension.kan_kernels_select_instruction_set(level) != level:
        raise ValueError(f"{source}: {name!r} is not available: {_why_unavailable(name)}")


def available_instruction_sets() -> tuple[str, ...]:
    """Return the instruction sets that `select_instruction_set` accepts on this processor."""
    in_use = instruction_set()
    if extension is None or in_use is None:
        return ()
    levels = [k for k in range(len(INSTRUCTION_SETS)) if extension.kan_kernels_select_instruction_set(k) == k]
    select_instruction_set(in_use)
    return tuple(INSTRUCTION_SETS[level] for level in levels)


def unavailable_instruction_sets() -> dict[str, str]:
    """Return the instruction sets that `select_instruction_set` rejects on this processor, with the reasons."""
    available = available_instruction_sets()
    return {name: _why_unavailable(name) for name in INSTRUCTION_SETS if name not in available}


def _why_unavailable(instruction_set: str) -> str:
    if extension is None:
        return f"no C++ extension: {extension_missing}"
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return f"compiled for x86-64 only, and this library is for {platform.machine()}"
    needs = {"avx2": "AVX2, FMA, F16C, BMI1 and BMI2", "avx512": "AVX-512 F, BW, DQ and VL, and FMA"}
    return f"not supported by this processor; needs {needs[instruction_set]}"


def unavailable(backend: str) -> str:
    """Return the reason why a backend is not available, or an empty string if it is."""
    if backend == "triton":
        return triton_missing or ("" if INTERPRETED or torch.cuda.is_available() else "no GPU")
    return extension_missing if backend == "cpp" else ""


def _checked_backend(name: object, source: str) -> str:
    if name not in BACKENDS or not isinstance(name, str):
        raise ValueError(f"{source}: expected one of {BACKENDS}, got {name!r}")
    if unavailable(name):
        raise ValueError(f"{source}: {name!r} is not available: {unavailable(name)}")
    return name


_backend = _checked_backend(os.environ.get("KAN_KERNELS_BACKEND", "auto"), "KAN_KERNELS_BACKEND")
if "KAN_KERNELS_ISA" in os.environ and not INTERPRETED:
    select_instruction_set(os.environ["KAN_KERNELS_ISA"], "KAN_KERNELS_ISA")


def use_backend(name: Backend) -> AbstractContextManager[None]:
    """Return a context manager that selects a backend for the whole process, used as `with use_backend("reference"): ...`.

    The call alone selects nothing. KAN_KERNELS_BACKEND in the environment sets the default.

    Args:
        name: "auto" (the fastest for each tensor's device), "cpp", "triton" or "reference" (plain torch, differentiated by
            autograd).

    Raises:
        ValueError: the name is unknown or the backend is not available; the message gives the reason.
    """
    return _with_backend(_checked_backend(name, "name"))


@contextmanager
def _with_backend(name: str) -> Iterator[None]:
    global _backend
    before, _backend = _backend, name
    try:
        yield
    finally:
        _backend = before


def backend() -> str:
    """Return the selected backend, one of `BACKENDS`."""
    return _backend


def uses_reference(x: Tensor) -> bool:
    """Return whether the backend is "reference". Raises ValueError if the backend does not support the device of x."""
    if _backend == "cpp" and x.device.type != "cpu":
        raise ValueError(f"x: expected a tensor on the CPU for backend 'cpp', got one on {x.device}")
    if _backend == "triton" and x.device.type != ("cpu" if INTERPRETED else "cuda"):
        where = "the CPU" if INTERPRETED else "a GPU"
        raise ValueError(f"x: expected a tensor on {where} for backend 'triton', got one on {x.device}")
    return _backend == "reference"


def serves(device: str) -> str:
    """Return the backend that "auto" selects for a device type."""
    if device == "cuda" and not triton_missing:
        return "triton"
    return "cpp" if device == "cpu" and extension is not None else "reference"


@dataclass(frozen=True)
class Info:
    """The result of `info()`. Its string form is a summary for bug reports."""

    versions: dict[str, str]
    backend: str
    serves: dict[str, str]  # device type -> the backend that "auto" selects
    unavailable: dict[str, str]  # backend -> reason
    processor: str
    instruction_set: str | None
    available_instruction_sets: tuple[str, ...]
    unavailable_instruction_sets: dict[str, str]  # name -> reason
    fused_activations: tuple[str, ...]
    fallbacks: dict[str, str]  # slow path taken so far -> reason

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
        lines.append(f"{'activations':<16}{', '.join(self.fused_activations)}, none: fused; others run in plain torch")
        for what, reason in self.fallbacks.items():
            lines.append(f"{'fell back':<16}{what}: {reason}")
        return "\n".join(lines)

    __repr__ = __str__


def info() -> Info:
    """Return versions, the backend for each device type, unavailable backends, the instruction set and fallbacks so far."""
    return Info(
        versions={"kan_kernels": __version__, "torch": torch.__version__, "python": platform.python_version()},
        backend=backend(),
        serves={device: serves(device) for device in ("cpu", "cuda", "other devices")},
        unavailable={name: reason for name in BACKENDS if (reason := unavailable(name))},
        processor=processor(),
        instruction_set=instruction_set(),
        available_instruction_sets=available_instruction_sets(),
        unavailable_instruction_sets=unavailable_instruction_sets(),
        fused_activations=FUSED_ACTIVATIONS,
        fallbacks=dict(_fallbacks),
    )


def processor() -> str:
    """Return the processor's name from /proc/cpuinfo, or from Python's `platform` on other systems.

    Virtual machines often hide the number of the model, e.g. "AMD EPYC". The family and model are then appended.
    """
    fields: dict[str, str] = {}
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            fields.setdefault(name.strip(), value.strip())
    model = fields.get("model name")
    if model is None:
        return platform.processor() or platform.machine()
    if any(character.isdigit() for character in model) or not {"cpu family", "model"} <= fields.keys():
        return model
    return f"{model} (family {fields['cpu family']}, model {fields['model']})"
