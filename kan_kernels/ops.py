"""The operators' schemas, and who serves which device: the only file that knows several backends exist.

The three operators, and two of them at once (the maths is in `reference.py`), and what is asked about edges
(`reference_norms.py`, `reference_std.py`) live in `torch.ops.kan_kernels`. The reference serves every dispatch key for which
there is nothing faster; the C++ extension, when it was built, serves the CPU, and the Triton kernels, where triton is
installed, serve CUDA (and ROCm, which has CUDA's name in torch).
"""

import ctypes
import functools
import importlib.util
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from . import fallbacks, reference, reference_norms, reference_std
from .checks import check_choice
from .layout import features_first, laid_out, new_gradient

Backend = Literal["auto", "cpp", "triton", "reference"]
BACKENDS: tuple[Backend, ...] = get_args(Backend)
INSTRUCTION_SETS = ("baseline", "avx2", "avx512")
MAX_DERIVATIVE = 30  # the C++ kernels' tables end there

# Name -> schema. The C++ library, which a process without this package can load too, defines them itself, from the same file.
_SCHEMAS = {line.partition("(")[0]: line for line in (Path(__file__).parent / "schemas.txt").read_text().splitlines()}
_PARAMETER_SIZED = ("edge_std", "edge_std_backward")  # without an axis of rows: on a GPU the reference is a few small launches


def _forward_shape(x, w, spline_weight, spline_scaler, grid, base_weight, activation, derivative):
    return x.new_empty(x.shape[0], spline_weight.shape[0])


def _backward_input_shape(x, g, spline_weight, spline_scaler, grid, base_weight, activation, derivative):
    return x.new_empty(x.shape)


def _backward_weight_shape(x, w, g, spline_weight, spline_scaler, grid, spline_order, activation, derivative, *needs):
    outputs, features, bases = g.shape[1], x.shape[1], grid.shape[1] - spline_order - 1
    return _parameter_gradients(x, (outputs, features, bases), spline_weight, needs)


def _parameter_gradients(like, shape, spline_weight, needs):
    """Gradients of spline_weight, of `shape` (O, I, M), spline_scaler and base_weight; (0,) where not needed."""
    transposed = features_first(spline_weight)
    shapes = (shape, shape[:2], shape[:2])
    return tuple(
        new_gradient(like, size, transposed) if need else like.new_empty(0) for need, size in zip(needs, shapes, strict=True)
    )


def _backward_shape(x, w, g, spline_weight, spline_scaler, grid, base_weight, activation, derivative, *needs):
    return x.new_empty(x.shape), *_parameter_gradients(x, spline_weight.shape, spline_weight, needs)


def _edge_l1_shape(x, spline_weight, spline_scaler, grid, base_weight, activation):
    return x.new_empty(spline_weight.shape[:2])


def _edge_l1_backward_shape(x, spline_weight, spline_scaler, grid, base_weight, activation, r, need_input, *needs):
    of_x = x.new_empty(x.shape if need_input else (0,))
    return of_x, *_parameter_gradients(x, spline_weight.shape, spline_weight, needs)


def _basis_moments_shape(x, grid, spline_order, activation):
    return x.new_empty(x.shape[1], grid.shape[1] - spline_order + 1, spline_order + 4, dtype=torch.float64)


def _basis_moments_backward_shape(x, grid, spline_order, activation, r):
    return x.new_empty(x.shape)


def _edge_std_shape(moments, spline_weight, spline_scaler, base_weight, rows):
    return spline_weight.new_empty(spline_weight.shape[:2])


def _edge_std_backward_shape(moments, spline_weight, spline_scaler, base_weight, rows, r, need_moments, *needs):
    of_moments = moments.new_empty(moments.shape if need_moments else (0,))
    return of_moments, *_parameter_gradients(spline_weight, spline_weight.shape, spline_weight, needs)


_SHAPES: dict[str, Callable[..., Any]] = {
    "spline_forward": _forward_shape,
    "spline_backward_input": _backward_input_shape,
    "spline_backward_weight": _backward_weight_shape,
    "spline_backward": _backward_shape,
    "edge_l1": _edge_l1_shape,
    "edge_l1_backward": _edge_l1_backward_shape,
    "basis_moments": _basis_moments_shape,
    "basis_moments_backward": _basis_moments_backward_shape,
    "edge_std": _edge_std_shape,
    "edge_std_backward": _edge_std_backward_shape,
}


def referred(name: str) -> Callable[..., Any]:
    """The reference's function of an operator's name."""
    return next(getattr(module, name) for module in (reference, reference_norms, reference_std) if hasattr(module, name))


def _referred_in_layout(name: str) -> Callable[..., Any]:
    """`referred`, with results that lie in memory as `_SHAPES` says."""
    function = referred(name)
    parameters = _SCHEMAS[name].partition(")")[0].split(", ")
    place = next((k for k, parameter in enumerate(parameters) if parameter.endswith(" spline_weight")), None)

    def computed(*arguments: Any) -> Any:
        results = function(*arguments)
        if isinstance(results, Tensor):
            return results.contiguous()
        *others, of_spline_weight, of_spline_scaler, of_base_weight = results
        transposed = place is not None and features_first(arguments[place])
        gradients = [laid_out(gradient, transposed) for gradient in (of_spline_weight, of_spline_scaler, of_base_weight)]
        return (*(other.contiguous() for other in others), *gradients)

    return computed


def _register() -> torch.library.Library:
    library = torch.library.Library("kan_kernels", "DEF" if _cpp is None else "FRAGMENT")
    for name, schema in _SCHEMAS.items():
        if _cpp is None:
            library.define(schema)
        library.impl(name, _referred_in_layout(name), "CompositeExplicitAutograd")
        torch.library.register_fake(f"kan_kernels::{name}", _SHAPES[name], lib=library)
    return library


# Under Triton's interpreter the kernels for the GPU compute on CPU tensors, in numpy: to be tested without one.
_interpreted = os.environ.get("TRITON_INTERPRET", "0") == "1"


def _load_cpp() -> tuple[ctypes.CDLL | None, str]:
    """The extension, and why there is none."""
    if _interpreted:
        return None, "not loaded, since TRITON_INTERPRET=1 leaves the CPU to Triton's interpreter"
    found = sorted(Path(__file__).parent.glob("_C*.so"))
    if not found:
        return None, "not built: installed with KAN_KERNELS_NO_CPP=1, or not installed but imported from its source"
    try:
        torch.ops.load_library(str(found[0]))
        return ctypes.CDLL(str(found[0])), ""
    except OSError as error:
        fallbacks.note("the CPU runs on the reference", f"the C++ extension does not load: {error}")
        return None, f"does not load: {error}"


def _register_triton() -> str:
    """Let the Triton kernels serve their devices; why they cannot. Triton itself is imported with the first call."""
    for name in _SCHEMAS:
        if name in _PARAMETER_SIZED:
            continue
        library.impl(name, functools.partial(_launch, name), "CUDA")
        if _interpreted:
            library.impl(name, functools.partial(_interpret, name), "CPU")
    return "" if importlib.util.find_spec("triton") is not None else "triton is not installed"


def _launch(name: str, *arguments: Any) -> Any:
    if triton_missing:
        fallbacks.note("the GPU runs on the reference", triton_missing)
        return _referred_in_layout(name)(*arguments)
    from .gpu import launch, launch_edges

    return getattr(launch_edges if hasattr(launch_edges, name) else launch, name)(*arguments)


def _interpret(name: str, *arguments: Any) -> Any:
    return _launch(name, *arguments) if _backend == "triton" else _referred_in_layout(name)(*arguments)


_cpp, cpp_missing = _load_cpp()
library = _register()
triton_missing = _register_triton()

spline_forward = torch.ops.kan_kernels.spline_forward.default
spline_backward_input = torch.ops.kan_kernels.spline_backward_input.default
spline_backward_weight = torch.ops.kan_kernels.spline_backward_weight.default
spline_backward = torch.ops.kan_kernels.spline_backward.default
edge_l1 = torch.ops.kan_kernels.edge_l1.default
edge_l1_backward = torch.ops.kan_kernels.edge_l1_backward.default
basis_moments = torch.ops.kan_kernels.basis_moments.default
basis_moments_backward = torch.ops.kan_kernels.basis_moments_backward.default
edge_std = torch.ops.kan_kernels.edge_std.default
edge_std_backward = torch.ops.kan_kernels.edge_std_backward.default


def instruction_set() -> str | None:
    """The instruction set of the C++ kernels in use; None without them."""
    return None if _cpp is None else INSTRUCTION_SETS[_cpp.kan_kernels_select_instruction_set(-1)]


def select_instruction_set(name: str) -> None:
    """Use another of `INSTRUCTION_SETS` from now on (also: environment variable KAN_KERNELS_ISA).

    Raises ValueError for an unknown name, or one that this processor or this build does not have.
    """
    check_choice("instruction set", name, INSTRUCTION_SETS)
    level = INSTRUCTION_SETS.index(name)
    if _cpp is None or _cpp.kan_kernels_select_instruction_set(level) != level:
        raise ValueError(f"instruction set: {name!r} is not available: {_why_unavailable(name)}")


def available_instruction_sets() -> tuple[str, ...]:
    """Those that `select_instruction_set` takes on this processor."""
    in_use = instruction_set()
    if _cpp is None or in_use is None:
        return ()
    levels = [level for level in range(len(INSTRUCTION_SETS)) if _cpp.kan_kernels_select_instruction_set(level) == level]
    select_instruction_set(in_use)
    return tuple(INSTRUCTION_SETS[level] for level in levels)


def unavailable_instruction_sets() -> dict[str, str]:
    """Those that `select_instruction_set` refuses here, and why."""
    available = available_instruction_sets()
    return {name: _why_unavailable(name) for name in INSTRUCTION_SETS if name not in available}


def _why_unavailable(instruction_set: str) -> str:
    if _cpp is None:
        return f"no C++ extension: {cpp_missing}"
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return f"compiled for x86-64 only, and this library is for {platform.machine()}"
    needs = {"avx2": "AVX2, FMA, F16C, BMI1 and BMI2", "avx512": "AVX-512 F, BW, DQ and VL, and FMA"}
    return f"not supported by this processor; needs {needs[instruction_set]}"


def unavailable(backend: str) -> str:
    """Why a backend cannot be used here; empty when it can."""
    if backend == "triton":
        return triton_missing or ("" if _interpreted or torch.cuda.is_available() else "no GPU")
    return cpp_missing if backend == "cpp" else ""


def _checked_backend(name: object, source: str) -> str:
    if name not in BACKENDS or not isinstance(name, str):
        raise ValueError(f"{source}: expected one of {BACKENDS}, got {name!r}")
    if unavailable(name):
        raise ValueError(f"{source}: {name!r} is not available: {unavailable(name)}")
    return name


_backend = _checked_backend(os.environ.get("KAN_KERNELS_BACKEND", "auto"), "KAN_KERNELS_BACKEND")
if "KAN_KERNELS_ISA" in os.environ:
    select_instruction_set(os.environ["KAN_KERNELS_ISA"])


@contextmanager
def use_backend(name: Backend) -> Iterator[None]:
    """Compute with one backend inside a `with` block, in the whole process.

    name: "auto" (the fastest for each tensor's device), "cpp", "triton" or "reference" (plain torch, differentiated by
    autograd). Raises ValueError for an unknown name or a backend that is not available, with the reason. The environment
    variable KAN_KERNELS_BACKEND sets the default.
    """
    global _backend
    before, _backend = _backend, _checked_backend(name, "backend")
    try:
        yield
    finally:
        _backend = before


def uses_reference(x: Tensor) -> bool:
    """Whether the reference was asked for. Raises ValueError when the backend asked for does not serve x's device."""
    if _backend == "cpp" and x.device.type != "cpu":
        raise ValueError(f"x: expected a tensor on the CPU for backend 'cpp', got one on {x.device}")
    if _backend == "triton" and x.device.type != ("cpu" if _interpreted else "cuda"):
        where = "the CPU" if _interpreted else "a GPU"
        raise ValueError(f"x: expected a tensor on {where} for backend 'triton', got one on {x.device}")
    return _backend == "reference"


def backend() -> str:
    """The backend in use: one of `BACKENDS`."""
    return _backend


def serves(device: str) -> str:
    """The backend that "auto" picks for a device type."""
    if device == "cuda" and not triton_missing:
        return "triton"
    return "cpp" if device == "cpu" and _cpp is not None else "reference"
