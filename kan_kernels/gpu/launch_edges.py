"""What is asked about edges, on tensors. Arguments and results as in `reference_norms.py`."""

import torch
from torch import Tensor

from .. import reference_norms
from ..reference import spline_order
from .choose import SCRATCH_BYTES, Tiles, ceil_div, splits, wide_part
from .edge_l1 import edge_l1_backward_input_kernel, edge_l1_backward_weight_kernel, edge_l1_kernel
from .prepare import (
    OPTIONS,
    Gradients,
    Layout,
    base_name,
    exact_mode,
    in_layout,
    mode_of,
    pack,
    prepare_knots,
    search_depth,
    uncompiled,
    ways_of,
)

_BLOCK = 64  # rows, by which their sum is split
_COLUMNS = 16  # of a product, which sums over 16 or more: eight bases and the base leave some empty


def tiles(mode: str, backward: bool, O: int) -> Tiles:
    """Of three tf32 a gradient keeps more in registers: sign(phi) is an operand too."""
    if mode == "fp64":
        return Tiles(32, 32, 1, _COLUMNS, 1, 4)
    many = 64 if mode in ("tf32x3", "ieee") else 128
    if O <= 32 or (backward and many == 64):
        return Tiles(64, 32, 1, _COLUMNS, 1, 4)
    return Tiles(64, many, 1, _COLUMNS, 1, 8)


def split(mode: str, N: int, I: int, O: int, weights: int) -> tuple[int, int, int]:
    """Features of a launch, parts of the sum over rows, and rows of a part: so that the partial sums fit the scratch."""
    feature_bytes = weights * O * (8 if mode == "fp64" else 4)
    features = max(1, min(I, SCRATCH_BYTES // feature_bytes))
    blocks = ceil_div(N, _BLOCK)
    fit = max(1, SCRATCH_BYTES // (feature_bytes * features))
    of_part = ceil_div(blocks, min(splits(features * ceil_div(O, 128), blocks), fit))
    return features, ceil_div(blocks, of_part), of_part * _BLOCK


def _unserved(x: Tensor) -> bool:
    """Whether edges' norms have to come from the reference; logged once where it is slower."""
    return uncompiled(x.dtype) or x.shape[0] == 0


def _mode(x: Tensor) -> str:
    mode = mode_of(x.dtype)
    return exact_mode() if mode == "fp16x3" else mode


def _constants(chosen: Tiles) -> dict[str, int]:
    return {"BN": chosen.BN, "BO": chosen.BO, "MC": chosen.MC, "num_warps": chosen.num_warps} | OPTIONS


def edge_l1(
    x: Tensor, spline_weight: Tensor, spline_scaler: Tensor | None, grid: Tensor, base_weight: Tensor | None, activation: str
) -> Tensor:
    if _unserved(x):
        return reference_norms.edge_l1(x, spline_weight, spline_scaler, grid, base_weight, activation)
    (N, I), (O, _, M), T = x.shape, spline_weight.shape, grid.shape[1]
    K, mode = spline_order(M, T), _mode(x)
    with torch.cuda.device_of(x):
        tables = prepare_knots(x, grid, K, 0, mode)
        packed = pack(spline_weight, spline_scaler, base_weight, mode, Layout(M, (O, I * O, 1), (O, 1))).packed
        _, S, rows = split(mode, N, I, O, 1)
        partial = tables.step.new_empty(S, I, O)
        chosen = tiles(mode, False, O)
        for way, guarded in ways_of(mode, K, 0):
            edge_l1_kernel[(I * ceil_div(O, chosen.BO), S)](
                x, *x.stride(), packed, tables.knots, tables.step, tables.origin, tables.uniform, partial,
                N, I, O, T, M, rows, K=K, DEPTH=search_depth(T), BASE=base_name(base_weight, activation),
                MODE=mode, WAY=way, GUARDED=guarded, **_constants(chosen),
            )  # fmt: skip
        return (partial.sum(0) / N).to(x.dtype).t().contiguous()


def edge_l1_backward(
    x: Tensor, spline_weight: Tensor, spline_scaler: Tensor | None, grid: Tensor, base_weight: Tensor | None,
    activation: str, r: Tensor,
    need_input: bool, need_spline_weight: bool, need_spline_scaler: bool, need_base_weight: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    needs = (need_spline_weight, need_spline_scaler, need_base_weight)
    if _unserved(x):
        of_x, *others = reference_norms.edge_l1_backward(
            x, spline_weight, spline_scaler, grid, base_weight, activation, r, need_input, *needs
        )
        return of_x, *in_layout(others, spline_weight)
    (N, I), (O, _, M), T = x.shape, spline_weight.shape, grid.shape[1]
    K, mode = spline_order(M, T), _mode(x)
    with torch.cuda.device_of(x):
        tables = prepare_knots(x, grid, K, 1, mode)
        packed = pack(spline_weight, spline_scaler, base_weight, mode, Layout(M, (O, I * O, 1), (O, 1))).packed
        result = x.new_empty((N, I) if need_input else 0)
        gradients = Gradients(x, spline_weight, spline_scaler, (O, I, M), needs)
        chosen = tiles(mode, True, O)
        turned = r.t().contiguous()  # the kernels read neighbouring outputs together
        operands = (x, *x.stride(), turned, *turned.stride(), packed, tables.knots, tables.step, tables.origin, tables.uniform)
        # Without a base its weights are 0, and what would be their gradient may be asked for all the same.
        base = activation if need_base_weight else base_name(base_weight, activation)
        common = {"K": K, "DEPTH": search_depth(T), "BASE": base, "MODE": mode} | _constants(chosen)
        if need_input:
            for way, guarded in ways_of(mode, K, 1):
                edge_l1_backward_input_kernel[(ceil_div(N, chosen.BN) * I,)](
                    *operands, result, N, I, O, T, M, WAY=way, GUARDED=guarded, **common
                )
        if any(needs):
            features, S, rows = split(mode, N, I, O, M + 1)
            for first in range(0, I, features):
                some = min(features, I - first)
                partial = tables.step.new_empty(S, M + 1, some, O)
                programs = some * ceil_div(M + 1, chosen.MC) * ceil_div(O, chosen.BO)
                for way, guarded in ways_of(mode, K, 1):
                    edge_l1_backward_weight_kernel[(programs, S)](
                        *operands, partial, N, I, O, T, M, rows, first, some, WAY=way, GUARDED=guarded, **common
                    )
                gradients.finish(partial, first)
    return result, *gradients.tensors


def _rows_at_once(x: Tensor, grid: Tensor) -> int:
    """The reference holds about eight float64 tensors of the bases' size at a time."""
    return wide_part(max(1, x.shape[0]), 8 * 8 * grid.numel())


def basis_moments(x: Tensor, grid: Tensor, spline_order: int, activation: str) -> Tensor:
    parts = x.split(_rows_at_once(x, grid))
    moments = reference_norms.basis_moments(parts[0], grid, spline_order, activation)
    for part in parts[1:]:
        moments += reference_norms.basis_moments(part, grid, spline_order, activation)
    return moments


def basis_moments_backward(x: Tensor, grid: Tensor, spline_order: int, activation: str, r: Tensor) -> Tensor:
    gradient, rows = x.new_empty(x.shape), _rows_at_once(x, grid)
    for part, of_part in zip(x.split(rows), gradient.split(rows), strict=True):
        of_part.copy_(reference_norms.basis_moments_backward(part, grid, spline_order, activation, r))
    return gradient
