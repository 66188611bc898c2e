"""Preparation of launches: precision of the products, evaluation methods, tables of the knots, and packed weights."""

import os
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..backends import log_fallback
from ..utils.memory_layout import features_first, laid_out, new_gradient
from . import packing
from .heuristics import OLD_TRITON, SUMMED_PARTS, Tiles, ceil_div, next_power_of_two

OPERANDS = {
    "fp16x3": torch.float16,
    "tf32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp64": torch.float64,
    "tf32x3": torch.float32,
    "ieee": torch.float32,
}
# The largest deviation from equidistant knots, relative to their distance, for the orders of the derivative 0, 1 and above.
# Measured against float64, such that the error is at most twice the reference's plus eps. Equidistant knots rounded to their
# own type qualify for G up to 20 (order 0) and 10 (order 1) in float32, up to 10 in bfloat16, up to 20 (order 0) in float16.
_TOLERANCES = {
    "fp16x3": (2.0**-18, 2.0**-20, 0.0),
    "tf32": (2.0**-13, 2.0**-13, 2.0**-13),
    "bf16": (2.0**-6, 2.0**-6, 2.0**-9),
    "fp16": (2.0**-8, 2.0**-9, 2.0**-12),
    "fp64": (0.0, 0.0, 0.0),
}
OPTIONS = {} if os.environ.get("TRITON_INTERPRET", "0") == "1" else {"enable_fp_fusion": True}


def mode_of(dtype: torch.dtype) -> str:
    """Return the precision of products; for float32, torch's setting for matrix products on this device."""
    if dtype is torch.float32:
        return {"high": "tf32", "medium": "bf16"}.get(_float32_precision(), "fp16x3")
    return {torch.float64: "fp64", torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]


def _float32_precision() -> str:
    """Return torch's precision of float32 matrix products on this device.

    Only the older setting supports "medium", and reading it raises if the newer setting was used.
    """
    if torch.backends.cuda.matmul.fp32_precision != "tf32":
        return "highest"
    try:
        return "medium" if torch.get_float32_matmul_precision() == "medium" else "high"
    except RuntimeError:
        return "high"


def ways_of(mode: str, K: int, D: int) -> list[tuple[str, bool]]:
    """Return the methods of evaluating the bases (see `basis.py`), and whether a launch must check the knots first.

    Whether the knots are equidistant is only known on the device. If it matters, both methods are launched, and all programs
    of one launch return immediately.
    """
    accurate = mode in ("fp16x3", "tf32x3", "ieee")
    if D > K or K > 5 or mode == "fp64" or (accurate and D > 1):
        return [("adaptive", False)]
    return [("uniform" if accurate or D == K else "direct", True), ("adaptive", True)]


def uncompiled(dtype: torch.dtype) -> bool:
    """Return whether Triton cannot compile the kernels for a dtype, so that the reference runs; logged once."""
    if not (OLD_TRITON and torch.version.hip is not None and dtype is torch.float64):
        return False
    log_fallback("float64 on a GPU runs on the reference", "Triton before 3.9 does not compile it for AMD")
    return True


MAX_BASE_DERIVATIVE = 5  # the highest order in `basis.py`; gradients of a third nested derivative need order 4


def runs_on_reference(x: Tensor, derivative: int, base_weight: Tensor | None) -> bool:
    """Return whether no kernel supports these arguments, so that the reference runs; logged once."""
    if base_weight is not None and derivative > MAX_BASE_DERIVATIVE:
        log_fallback(
            "derivatives on a GPU run on the reference", f"kernels support base activations up to order {MAX_BASE_DERIVATIVE}"
        )
        return True
    return uncompiled(x.dtype)


def unscaled_mode(mode: str) -> str:
    """Return Triton's accurate float32 products, which need no scaling, for "fp16x3"; AMD has native float32 products."""
    if mode != "fp16x3":
        return mode
    return "tf32x3" if torch.version.hip is None else "ieee"


def sums_dtype(mode: str) -> torch.dtype:
    return torch.float64 if mode == "fp64" else torch.float32


def is_hopper(x: Tensor) -> bool:
    """Return whether x is on a Hopper GPU; true for Triton's interpreter, so that its tests use the same tiles."""
    return not x.is_cuda or (torch.version.hip is None and torch.cuda.get_device_capability(x.device)[0] == 9)


def constants(tiles: Tiles) -> dict[str, int]:
    """Return a launch's constants for its tiles, and compiler options."""
    return tiles.options(amd=torch.version.hip is not None) | OPTIONS


def tolerance(dtype: torch.dtype, mode: str, D: int) -> float:
    """Return the tolerance for equidistant knots, see `_TOLERANCES`."""
    if mode == "bf16" and dtype is torch.float32:
        return 2.0**-9  # the knots are float32
    return _TOLERANCES["fp16x3" if mode in ("tf32x3", "ieee") else mode][min(D, 2)]


class Knots(NamedTuple):
    """The outputs of `knots_kernel`."""

    knots: Tensor
    step: Tensor
    origin: Tensor
    steepness: Tensor
    uniform: Tensor


def prepare_knots(x: Tensor, grid: Tensor, K: int, D: int, mode: str) -> Knots:
    grid = grid.to(x.dtype)  # a wider grid is converted, as in the reference
    I, T = grid.shape
    knots = grid.new_empty(I, T, dtype=sums_dtype(mode))
    step, origin, steepness = knots.new_empty(3, I).unbind()
    uniform = knots.new_empty(I, dtype=torch.int32)
    BT = next_power_of_two(T, 16, 128)
    packing.knots_kernel[(ceil_div(I, 16),)](
        grid, knots, step, origin, steepness, uniform, *grid.stride(), I, T, K, D, tolerance(x.dtype, mode, D),
        BI=16, BT=BT, num_warps=4, **OPTIONS,
    )  # fmt: skip
    return Knots(knots, step, origin, steepness, uniform)


class Packed(NamedTuple):
    """The outputs of `pack_kernel`."""

    packed: Tensor
    packed_rest: Tensor
    inverse_scale: Tensor


class Layout(NamedTuple):
    """Memory layout of packed weights: slices for the bases, padded with zeros, and base_weight."""

    slices: int
    strides: tuple[int, int, int]  # of i, m, o
    base_strides: tuple[int, int]  # of i, o
    base: int  # offset of base_weight
    size: int


def slices_of_edges(slices: int, I: int, O: int, outputs_last: bool) -> Layout:
    """Return the layout (slices, O, I), or (slices, I, O), followed by base_weight."""
    in_slice = (O, 1) if outputs_last else (1, I)
    return Layout(slices, (in_slice[0], I * O, in_slice[1]), in_slice, slices * I * O, (slices + 1) * I * O)


def with_strides(spline_weight: Tensor, spline_scaler: Tensor | None, base_weight: Tensor | None) -> list[Tensor | int]:
    """Return the parameters and their strides, as kernels take them. spline_weight stands in for a parameter that is None."""
    of_edges = spline_weight.stride()[:2]
    scaler, of_scaler = (spline_weight, of_edges) if spline_scaler is None else (spline_scaler, spline_scaler.stride())
    base, of_base = (spline_weight, of_edges) if base_weight is None else (base_weight, base_weight.stride())
    return [spline_weight, scaler, base, *spline_weight.stride(), *of_scaler, *of_base]


def pack(spline_weight: Tensor, spline_scaler: Tensor | None, base_weight: Tensor | None, mode: str, layout: Layout) -> Packed:
    O, I, M = spline_weight.shape
    packed = spline_weight.new_empty(layout.size, dtype=OPERANDS[mode])
    packed_rest = torch.empty_like(packed) if mode == "fp16x3" else packed
    BR, BO = 2048 // next_power_of_two(O, 16, 128), next_power_of_two(O, 16, 128)
    programs = next_power_of_two(ceil_div(I * (M + 1), BR), 1, 256)
    largest, inverse_scale = spline_weight.new_empty(programs + 1, dtype=torch.float32).split([programs, 1])
    arguments = with_strides(spline_weight, spline_scaler, base_weight)
    tensors, strides = arguments[:3], arguments[3:]
    has = {"SCALED": spline_scaler is not None, "HAS_BASE": base_weight is not None}
    if mode == "fp16x3":
        packing.largest_kernel[(programs,)](*tensors, largest, *strides, I, M, O, BR=BR, BO=BO, num_warps=4, **has, **OPTIONS)
    packing.pack_kernel[(ceil_div(I, 32) * ceil_div(O, 32) * (layout.slices + 1),)](
        *tensors, largest, packed, packed_rest, inverse_scale, *strides,
        *layout.strides, layout.base, *layout.base_strides, layout.slices, I, M, O,
        TRANSPOSED=layout.base_strides[0] == 1, MODE=mode, PROGRAMS=programs, BI=32, BO=32, num_warps=4, **has, **OPTIONS,
    )  # fmt: skip
    return Packed(packed, packed_rest, inverse_scale)


def with_contiguous_rows(g: Tensor) -> Tensor:
    """Return g with contiguous rows, a copy if they are not, such as those of the expanded gradient of a sum.

    A gradient of x takes 3.5 times as long if it reads g element by element (65536 rows of 64→64 on an H200).
    """
    return g if g.stride(1) == 1 or g.shape[1] == 1 else g.contiguous()


def search_depth(T: int) -> int:
    """Return the number of steps of a binary search among T knots."""
    return T.bit_length()


def base_name(base_weight: Tensor | None, activation: str) -> str:
    return "none" if base_weight is None else activation


class Gradients:
    """The gradients of spline_weight, spline_scaler and base_weight, computed from partial sums over the rows.

    shape is (O, I, M). Their memory layout is that of `utils/memory_layout.py`. A gradient that is not needed is empty, and so
    is spline_scaler's without spline_weight, as in the reference.
    """

    def __init__(
        self, x: Tensor, spline_weight: Tensor | None, spline_scaler: Tensor | None, shape: tuple[int, int, int],
        needs: tuple[bool, bool, bool],
    ) -> None:  # fmt: skip
        O, I, M = shape
        self.spline_weight = x.new_empty(1, 1, 1) if spline_weight is None else spline_weight
        self.spline_scaler = self.spline_weight[:, :, 0] if spline_scaler is None else spline_scaler
        self.needs = needs[0], needs[1] and spline_weight is not None, needs[2]
        self.M, self.O, self.scaled = M, O, spline_scaler is not None
        transposed = features_first(spline_weight)
        of_spline_weight, of_spline_scaler, of_base_weight = (
            new_gradient(x, size, transposed) if need else x.new_empty(0)
            for need, size in zip(self.needs, (shape, (O, I), (O, I)), strict=True)
        )
        self.tensors = of_spline_weight, of_spline_scaler, of_base_weight
        self.strides = (1, O) if transposed else (I, 1)  # of o and i, for spline_weight times M

    def finish(self, partial: Tensor, first: int) -> None:
        """Write the gradients of the features from `first` on, from partial (S, M+1, features, O)."""
        if partial.shape[0] > SUMMED_PARTS:
            partial = partial.sum(0, keepdim=True)
        features, BO, BM = partial.shape[2], next_power_of_two(self.O, 16, 64), next_power_of_two(self.M, 2, 16)
        need_spline_weight, need_spline_scaler, need_base_weight = self.needs
        packing.finish_kernel[(features * ceil_div(self.O, BO),)](
            partial, self.spline_weight, self.spline_scaler, *self.tensors,
            *self.spline_weight.stride(), *self.spline_scaler.stride(), *self.strides,
            partial.shape[0], first, features, self.M, self.O,
            SCALED=self.scaled, NEED_SPLINE_WEIGHT=need_spline_weight, NEED_SPLINE_SCALER=need_spline_scaler,
            NEED_BASE_WEIGHT=need_base_weight, BO=BO, BM=BM, num_warps=4, **OPTIONS,
        )  # fmt: skip


def in_layout(gradients: Sequence[Tensor], spline_weight: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return the reference's gradients of the parameters in the memory layout of `Gradients`."""
    of_spline_weight, of_spline_scaler, of_base_weight = (
        laid_out(gradient, features_first(spline_weight)) for gradient in gradients
    )
    return of_spline_weight, of_spline_scaler, of_base_weight
