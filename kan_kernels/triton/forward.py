"""The forward, y = sum over i, m of w[n,i] beta^(D)_{i,m}(x[n,i]) spline_weight[o,i,m], with the bases in registers."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import reference
from ..reference import infer_spline_order
from . import direct, wide
from .basis import activation, bases_tile, basis_slice, evaluate, unit, weighted
from .heuristics import (
    ceil_div,
    forward_bases,
    forward_split,
    forward_tiles,
    forward_unrolled,
    regime,
)
from .matmul import power_of_two_scale, split_dot, unscaled
from .prepare import (
    Layout,
    base_name,
    constants,
    is_hopper,
    mode_of,
    pack,
    prepare_knots,
    runs_on_reference,
    search_depth,
    slices_of_edges,
    ways_of,
)
from .tiles import knots_are_for, load_tile, row_bounds


@triton.jit(do_not_specialize=["N", "T", "M", "blocks"])
def forward_kernel(
    x,  # (N, I)
    x_stride_n,
    x_stride_i,
    w,  # (N, I) or unused
    w_stride_n,
    w_stride_i,
    packed,  # (M+1, O, I), or (O, I, M rounded up to MC) and (O, I) where SLICES is 0; from `pack_kernel`
    packed_rest,  # as packed, for fp16x3
    inverse_scale,  # (1,), for fp16x3
    knots,  # (I, T), this and the next four from `knots_kernel`
    step,  # (I,)
    origin,  # (I,)
    steepness,  # (I,)
    uniform,  # (I,)
    y,  # out (N, O); (S, N, O) when the features are split over S programs
    N,
    I,
    O,
    T,
    M,
    blocks,  # of BI features, per program
    K: tl.constexpr,
    D: tl.constexpr,
    DEPTH: tl.constexpr,
    WEIGHTED: tl.constexpr,
    BASE: tl.constexpr,  # "silu", "identity" or "none"
    MODE: tl.constexpr,
    WAY: tl.constexpr,  # evaluation method, see basis.py
    GUARDED: tl.constexpr,  # whether to return if the knots need another WAY
    SLICES: tl.constexpr,  # M to unroll over the bases; 0 to use tiles with MC bases per feature
    BN: tl.constexpr,
    BO: tl.constexpr,
    BI: tl.constexpr,
    MC: tl.constexpr,
    STAGES: tl.constexpr,
):
    xs = (x, x_stride_n, x_stride_i)
    ws = (w, w_stride_n, w_stride_i)
    weights = (packed, packed_rest, inverse_scale)
    tables = (knots, step, origin, steepness, T)
    if knots_are_for(uniform, I, WAY, GUARDED):
        _forward(xs, ws, weights, tables, y, N, I, O, M, blocks,
                 K, D, DEPTH, WEIGHTED, BASE, MODE, WAY, SLICES, BN, BO, BI, MC, STAGES)  # fmt: skip


@triton.jit
def _forward(xs, ws, weights, tables, y, N, I, O, M, blocks,
             K: tl.constexpr, D: tl.constexpr, DEPTH: tl.constexpr, WEIGHTED: tl.constexpr, BASE: tl.constexpr,
             MODE: tl.constexpr, WAY: tl.constexpr, SLICES: tl.constexpr,
             BN: tl.constexpr, BO: tl.constexpr, BI: tl.constexpr, MC: tl.constexpr, STAGES: tl.constexpr):  # fmt: skip
    compute = tables[1].dtype.element_ty
    n = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    o = tl.program_id(1) * BO + tl.arange(0, BO)
    begin = tl.program_id(2) * blocks * BI
    end = tl.minimum(begin + blocks * BI, I)
    mask_n = n < N
    mask_o = o < O
    # Unbounded operands of fp16x3 are scaled. Scales per row are possible, since the sum is over features.
    SCALED: tl.constexpr = MODE == "fp16x3" and (WEIGHTED or BASE != "none" or D > 0)
    if SCALED:
        bound = row_bounds(xs, ws, tables, n, mask_n, begin, end, D, WEIGHTED, D <= K, BASE, BN, BI)
        scale, inverse = power_of_two_scale(bound)
    acc = tl.zeros((BN, BO), compute)
    for i0 in tl.range(begin, end, BI, num_stages=STAGES):
        i = i0 + tl.arange(0, BI)
        mask = mask_n[:, None] & (i < end)[None, :]
        x = load_tile(xs, n, i, mask).to(compute)
        if MODE == "fp16x3":
            # Tensor cores truncate sums, so each tile is accumulated outside of them.
            tile = tl.zeros((BN, BO), compute)
        else:
            tile = acc
        if D <= K:
            valid = tl.minimum(i, end - 1)
            state = evaluate(x, valid, tables, K, D, DEPTH, WAY)
            if WEIGHTED or SCALED or (D > 0 and WAY != "adaptive"):
                factor = unit(x, valid, tables, D, WAY)
                if WEIGHTED:
                    factor = factor * load_tile(ws, n, i, mask).to(compute)
                if SCALED:
                    factor = factor * scale[:, None]
                state = weighted(state, factor, WAY)
            if SLICES > 0:
                # 64-bit offset of a slice's tile, 32-bit offsets within the tile
                at = tl.arange(0, BO)[None, :] * I + tl.arange(0, BI)[:, None]
                first = tl.program_id(1).to(tl.int64) * BO * I + i0
                for m in tl.static_range(0, SLICES):
                    a = basis_slice(state, m, K, D, WAY)
                    tile = _add_product(a, tile, weights, first, at, (i < end)[:, None] & mask_o[None, :], MODE)
                    first += I.to(tl.int64) * O
                    if MODE == "fp16x3" and m == SLICES // 2:
                        acc += tile
                        tile = tl.zeros((BN, BO), compute)
            else:
                column = tl.arange(0, MC * BI)
                padded = tl.cdiv(M, MC) * MC
                at = (tl.arange(0, BO)[None, :].to(tl.int64) * I + column[:, None] // MC) * padded + column[:, None] % MC
                first = (tl.program_id(1).to(tl.int64) * BO * I + i0) * padded
                mask_b = (i0 + column // MC < end)[:, None] & mask_o[None, :]
                for m0 in tl.range(0, M, MC, num_stages=STAGES):
                    a = bases_tile(state, m0, M, K, D, WAY, MC)
                    tile = _add_product(a, tile, weights, first + m0, at, mask_b, MODE)
                    if MODE == "fp16x3":
                        acc += tile
                        tile = tl.zeros((BN, BO), compute)
        if BASE != "none":
            WIDTH: tl.constexpr = 16 if BI < 16 else BI  # a product sums over at least 16
            if BI < 16:
                i = i0 + tl.arange(0, WIDTH)
                mask = mask_n[:, None] & ((i < end) & (i < i0 + BI))[None, :]
                x = load_tile(xs, n, i, mask).to(compute)
            a = activation(x, D, BASE)
            if WEIGHTED:
                a = a * load_tile(ws, n, i, mask).to(compute)
            if SCALED:
                a = a * scale[:, None]
            at = tl.arange(0, BO)[None, :] * I + tl.arange(0, WIDTH)[:, None]
            first = tl.program_id(1).to(tl.int64) * BO * I + i0
            if SLICES > 0:
                first += M.to(tl.int64) * O * I
            else:
                first += (tl.cdiv(M, MC) * MC).to(tl.int64) * O * I
            mask_b = ((i < end) & (i < i0 + BI))[:, None] & mask_o[None, :]
            tile = _add_product(a, tile, weights, first, at, mask_b, MODE)
        if MODE == "fp16x3":
            acc += tile
        else:
            acc = tile
    if SCALED:
        acc = unscaled(acc, inverse[:, None], tl.load(weights[2]))
    elif MODE == "fp16x3":
        acc = acc * tl.load(weights[2])
    at = y + (tl.program_id(2).to(tl.int64) * N + n[:, None]) * O + o[None, :]
    tl.store(at, acc.to(y.dtype.element_ty), mask=mask_n[:, None] & mask_o[None, :])


@triton.jit
def _add_product(a, acc, weights, first, at, mask, MODE: tl.constexpr):
    """Return acc plus a times the weights at offsets `first` + `at`."""
    b = tl.load(weights[0] + first + at, mask=mask, other=0.0)
    b_rest = b
    if MODE == "fp16x3":
        b_rest = tl.load(weights[1] + first + at, mask=mask, other=0.0)
    return split_dot(a, b, b_rest, acc, MODE)


def _is_blackwell(x: Tensor) -> bool:
    return x.is_cuda and torch.version.hip is None and torch.cuda.get_device_capability(x.device) >= (10, 0)


def spline_forward(
    x: Tensor, w: Tensor | None, spline_weight: Tensor, spline_scaler: Tensor | None, grid: Tensor, base_weight: Tensor | None,
    activation: str, derivative: int,
) -> Tensor:  # fmt: skip
    if runs_on_reference(x, derivative, base_weight):
        return reference.spline_forward(x, w, spline_weight, spline_scaler, grid, base_weight, activation, derivative)
    (N, I), (O, _, M), T = x.shape, spline_weight.shape, grid.shape[1]
    if N == 0:
        return x.new_empty(0, O)
    K, mode = infer_spline_order(M, T), mode_of(x.dtype)
    chosen = regime("spline_forward", mode, N, I, O, K, M, derivative, w is not None)
    with torch.cuda.device_of(x):
        if chosen == "direct" and direct.is_addressable(spline_weight, spline_scaler):
            return direct.forward(x, w, spline_weight, spline_scaler, grid, base_weight, activation, K, derivative, mode)
        tables = prepare_knots(x, grid, K, derivative, mode)
        if chosen == "wide":
            return wide.forward(x, w, spline_weight, spline_scaler, tables, base_weight, activation, K, derivative, mode)
        unrolled = forward_unrolled(I, M, w is not None, _is_blackwell(x))
        S, of_program = forward_split(N, I, O, unrolled)
        if unrolled:
            layout = slices_of_edges(M, I, O, outputs_last=False)
        else:
            padded = ceil_div(M, forward_bases(unrolled)) * forward_bases(unrolled)
            layout = Layout(padded, (padded, 1, I * padded), (1, I), padded * I * O, (padded + 1) * I * O)
        packed = pack(spline_weight, spline_scaler, base_weight, mode, layout)
        y = x.new_empty(N, O) if S == 1 else tables.step.new_empty(S, N, O)
        weight = x if w is None else w
        for way, guarded in ways_of(mode, K, derivative):
            tiles = forward_tiles(mode, way, I, O, unrolled, is_hopper(x))
            forward_kernel[(ceil_div(N, tiles.BN), ceil_div(O, tiles.BO), S)](
                x, *x.stride(), weight, *weight.stride(), *packed, *tables, y, N, I, O, T, M, of_program,
                K=K, D=derivative, DEPTH=search_depth(T), WEIGHTED=w is not None,
                BASE=base_name(base_weight, activation),
                MODE=mode, WAY=way, GUARDED=guarded, SLICES=unrolled, **constants(tiles),
            )  # fmt: skip
        return y if S == 1 else y.sum(0).to(x.dtype)
