"""Every configuration that `choose.py` can return, compiled for every architecture without a GPU, and its binary read.

Not under the interpreter: it replaces what the compiler needs.
"""

import re
import subprocess
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from kan_kernels.gpu import choose, prepare
from kan_kernels.gpu.backward_coef import backward_coef_kernel
from kan_kernels.gpu.backward_input import backward_input_kernel
from kan_kernels.gpu.forward import forward_kernel

TARGETS = {
    "sm_80": GPUTarget("cuda", 80, 32),
    "sm_90": GPUTarget("cuda", 90, 32),
    "sm_100": GPUTarget("cuda", 100, 32),
    "gfx942": GPUTarget("hip", "gfx942", 64),
}
SHARED_BYTES = {"sm_80": 166912, "sm_90": 232448, "sm_100": 232448, "gfx942": 65536}
TENSOR_MEMORY_COLUMNS = 512
# (tensors', operands', sums' type) of a mode
TYPES = {
    "fp16x3": ("fp32", "fp16", "fp32"),
    "tf32": ("fp32", "fp32", "fp32"),
    "bf16": ("bf16", "bf16", "fp32"),
    "fp16": ("fp16", "fp16", "fp32"),
    "fp64": ("fp64", "fp64", "fp64"),
}
MATRIX_INSTRUCTION = r"\b(?:HGMMA|HMMA|QGMMA|UTCHMMA|DMMA)\b"


@dataclass(frozen=True)
class Configuration:
    """A kernel with its constants; the rest of its arguments follow from their names."""

    kernel: object = field(repr=False)
    name: str
    mode: str
    constants: tuple[tuple[str, object], ...]
    num_warps: int

    def __str__(self) -> str:
        shown = {k: v for k, v in self.constants if k in ("K", "D", "WAY", "WEIGHTED", "SLICES", "BO", "BI", "MC")}
        return "-".join([self.name, self.mode, *(f"{k}{v}" for k, v in shown.items() if v is not False)])


def configuration(kernel, mode: str, tiles: choose.Tiles, **constants) -> Configuration:
    usual = {"K": 3, "DEPTH": 4, "BASE": "silu", "MODE": mode, "WEIGHTED": False, "SPLINE": True, "SLICES": 0}
    constants = usual | tiles.options() | constants
    warps = constants.pop("num_warps")
    wanted = {k: v for k, v in constants.items() if k in kernel.arg_names}
    return Configuration(kernel, kernel.__name__.removesuffix("_kernel"), mode, tuple(wanted.items()), warps)


def ways(found: dict[str, Configuration], mode: str, K: int, D: int, shapes, kernels=(0, 1, 2), **constants) -> None:
    """Add the three operators' configurations, in all ways, for shapes (I, O, M)."""
    for way, guarded in prepare.ways_of(mode, K, D):
        common = {"K": K, "D": D, "WAY": way, "GUARDED": guarded} | constants
        for I, O, M in shapes:
            three = (
                (forward_kernel, choose.forward_tiles(mode, way, I, O, M)),
                (backward_input_kernel, choose.backward_input_tiles(mode, way)),
                (backward_coef_kernel, choose.backward_coef_tiles(mode, way, O)),
            )
            for kernel, tiles in (three[k] for k in kernels):
                one = configuration(kernel, mode, tiles, SLICES=choose.forward_unrolled(I, M), **common)
                found.setdefault(str(one), one)


def training_steps() -> list[Configuration]:
    """All tiles of the chooser for a step of a layer of cubic splines."""
    found: dict[str, Configuration] = {}
    for mode in TYPES:
        ways(found, mode, 3, 0, [(I, O, M) for I in (2, 8, 256) for O in (32, 256) for M in (8, 23)], (0, 2))
        ways(found, mode, 3, 1, [(256, 256, 8)], (1,))
    return list(found.values())


def other_orders() -> list[Configuration]:
    """Every degree, and every order with a weight per input, for a wide layer."""
    found: dict[str, Configuration] = {}
    for mode in ("fp16x3", "bf16"):
        for K in (0, 1, 2, 4, 5):
            ways(found, mode, K, 0, [(256, 256, 5 + K)], (0, 2))
            ways(found, mode, K, 1, [(256, 256, 5 + K)], (1,))
        for D in (1, 2, 3, 4):
            ways(found, mode, 3, D, [(256, 256, 8)], WEIGHTED=True)
    return list(found.values())


def signature(one: Configuration) -> tuple[dict[str, str], dict[str, object], dict[tuple[int, ...], list]]:
    """Argument types, constants, and what is known of the rest: contiguous rows, aligned pointers and even sizes."""
    tensors, operands, sums = TYPES[one.mode]
    types = dict.fromkeys(("x", "w", "g", "y", "result", "coef", "scaler", "base"), tensors)
    types |= dict.fromkeys(("grid", "coef_gradient", "scaler_gradient", "base_gradient"), tensors)
    types |= dict.fromkeys(("packed", "packed_rest"), operands)
    types |= dict.fromkeys(("inverse_scale", "largest"), "fp32")
    types |= dict.fromkeys(("knots", "step", "origin", "steepness", "partial"), sums)
    types["uniform"] = "i32"
    names = one.kernel.arg_names
    constants = dict(one.constants)
    last = ("x_stride_i", "w_stride_i", "g_stride_o", "coef_stride_o", "scaler_stride_o", "base_stride_o", "grid_stride_t")
    constants |= {name: 1 for name in last if name in names}
    plain = {name: f"*{types[name]}" if name in types else "i32" for name in names}
    if "tolerance" in names:
        plain["tolerance"] = "fp32"
    aligned = [name for name in names if name in types or name in ("I", "O") or name.endswith(("stride_n", "stride_m"))]
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in aligned if name not in constants}
    return {k: "constexpr" if k in constants else v for k, v in plain.items()}, constants, attributes


def compile_for(one: Configuration, target: str):
    types, constants, attributes = signature(one)
    if TARGETS[target].backend == "hip" and "STAGES" in constants:
        constants |= {"STAGES": 1}  # as `Tiles.options` has it
    source = ASTSource(one.kernel, types, constants, attributes)
    options = {"num_warps": one.num_warps, "enable_fp_fusion": True}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return triton.compile(source, target=TARGETS[target], options=options)


def read_nvidia(kernel, tmp_path: Path) -> dict[str, int]:
    """Registers, spills and matrix instructions of the binary."""
    cubin = tmp_path / "kernel.cubin"
    cubin.write_bytes(kernel.asm["cubin"])
    shown = subprocess.run([knobs.nvidia.cuobjdump.path, "-res-usage", cubin], capture_output=True, text=True, check=True)
    code = kernel.asm["sass"]
    return {
        "registers": int(re.search(r"REG:(\d+)", shown.stdout + shown.stderr).group(1)),
        "spills": len(re.findall(r"\b(?:STL|LDL)\b", code)),
        "products": len(re.findall(MATRIX_INSTRUCTION, code)),
        "tensor memory": getattr(kernel.metadata, "tmem_size", 0) or 0,
    }


def read_amd(kernel) -> dict[str, int]:
    code = kernel.asm["amdgcn"]
    return {
        "registers": int(re.search(r"\.vgpr_count:\s+(\d+)", code).group(1)),
        "spills": int(re.search(r"\.vgpr_spill_count:\s+(\d+)", code).group(1)),
        "products": code.count("v_mfma"),
        "tensor memory": 0,
    }


# Spilled loads and stores that are put up with, by target and configuration, each with its reason.
SPILLS: dict[tuple[str, str], int] = {}


def check(target: str, one: Configuration, tmp_path: Path) -> None:
    kernel = compile_for(one, target)
    found = read_amd(kernel) if target == "gfx942" else read_nvidia(kernel, tmp_path)
    assert kernel.metadata.shared <= SHARED_BYTES[target], "the kernel would not launch"
    assert found["tensor memory"] <= TENSOR_MEMORY_COLUMNS, "the kernel would trap"
    assert found["registers"] > 16, "the body was thrown away"
    assert found["products"] > 0, "no tensor cores"
    assert found["spills"] <= SPILLS.get((target, str(one)), 0), found


@pytest.mark.parametrize("one", training_steps(), ids=str)
@pytest.mark.parametrize("target", TARGETS)
def test_training_steps(target, one, tmp_path):
    check(target, one, tmp_path)


@pytest.mark.parametrize("one", other_orders(), ids=str)
def test_other_degrees_and_orders(one, tmp_path):
    check("sm_90", one, tmp_path)
