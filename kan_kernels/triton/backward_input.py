"""The gradient of x: sum over m, o of beta^(D)_{i,m}(x[n,i]) spline_weight[o,i,m] g[n,o].

The kernel multiplies g with the weights of MC bases at once, and the products with the bases' values.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import reference
from ..reference import infer_spline_order
from . import direct, wide
from .basis import activation, bases_tile, evaluate, unit
from .heuristics import (
    backward_input_tiles,
    ceil_div,
    regime,
)
from .matmul import power_of_two_scale, split_dot, unscaled
from .prepare import (
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
    with_contiguous_rows,
)
from .tiles import knots_are_for, load_tile


@triton.jit(do_not_specialize=["N", "T", "M"])
def backward_input_kernel(
    x,  # (N, I)
    x_stride_n,
    x_stride_i,
    g,  # (N, O)
    g_stride_n,
    g_stride_o,
    packed,  # (M+1, I, O), from `pack_kernel`
    packed_rest,  # as packed, for fp16x3
    inverse_scale,  # (1,), for fp16x3
    knots,  # (I, T), this and the next three from `knots_kernel`
    step,  # (I,)
    origin,  # (I,)
    uniform,  # (I,)
    result,  # out (N, I)
    N,
    I,
    O,
    T,
    M,
    K: tl.constexpr,
    D: tl.constexpr,
    DEPTH: tl.constexpr,
    BASE: tl.constexpr,  # "silu", "identity" or "none"
    MODE: tl.constexpr,
    WAY: tl.constexpr,  # evaluation method, see basis.py
    GUARDED: tl.constexpr,  # whether to return if the knots need another WAY
    BN: tl.constexpr,
    BI: tl.constexpr,
    BO: tl.constexpr,
    MC: tl.constexpr,
    STAGES: tl.constexpr,
):
    xs = (x, x_stride_n, x_stride_i)
    gs = (g, g_stride_n, g_stride_o)
    weights = (packed, packed_rest, inverse_scale)
    tables = (knots, step, origin, step, T)
    if knots_are_for(uniform, I, WAY, GUARDED):
        _backward_input(xs, gs, weights, tables, result, N, I, O, M,
                        K, D, DEPTH, BASE, MODE, WAY, BN, BI, BO, MC, STAGES)  # fmt: skip


@triton.jit
def _backward_input(xs, gs, weights, tables, result, N, I, O, M,
                    K: tl.constexpr, D: tl.constexpr, DEPTH: tl.constexpr, BASE: tl.constexpr, MODE: tl.constexpr,
                    WAY: tl.constexpr, BN: tl.constexpr, BI: tl.constexpr, BO: tl.constexpr, MC: tl.constexpr,
                    STAGES: tl.constexpr):  # fmt: skip
    compute = tables[1].dtype.element_ty
    # Neighbouring programs share rows of g.
    blocks = tl.cdiv(I, BI)
    begin = (tl.program_id(0) % blocks) * BI
    n = (tl.program_id(0) // blocks).to(tl.int64) * BN + tl.arange(0, BN)
    mask_n = n < N
    i = begin + tl.arange(0, BI)
    mask = mask_n[:, None] & (i < I)[None, :]
    scale = tl.full((BN,), 1.0, tl.float32)
    inverse = scale
    if MODE == "fp16x3":
        bound = tl.zeros((BN,), tl.float32)
        for o0 in range(0, O, BO):
            o = o0 + tl.arange(0, BO)
            gradient = load_tile(gs, n, o, mask_n[:, None] & (o < O)[None, :])
            bound = tl.maximum(bound, tl.max(tl.abs(gradient.to(tl.float32)), axis=1))
        scale, inverse = power_of_two_scale(bound)
    total = tl.zeros((BN, BI), compute)
    if D <= K:
        column = tl.arange(0, MC * BI)
        feature = begin + column // MC
        valid = tl.minimum(i, I - 1)
        for m0 in range(0, M, MC):
            m = (m0 + column % MC).to(tl.int64)
            mask_row = (m < M) & (feature < I)
            along = _product(
                gs, weights, n, mask_n, scale, inverse, m * I + feature, mask_row, O, MODE, BN, MC * BI, BO, STAGES
            )
            # Evaluated again for each MC bases, since the state would not stay in registers.
            x = load_tile(xs, n, i, mask).to(compute)
            bases = bases_tile(evaluate(x, valid, tables, K, D, DEPTH, WAY), m0, M, K, D, WAY, MC)
            total += tl.sum(tl.reshape(bases * along, (BN, BI, MC)), axis=2)
        total = total * unit(total, valid, tables, D, WAY)
    if BASE != "none":
        row = M.to(tl.int64) * I + i
        along = _product(gs, weights, n, mask_n, scale, inverse, row, i < I, O, MODE, BN, BI, BO, STAGES)
        total += along * activation(load_tile(xs, n, i, mask).to(compute), D, BASE)
    tl.store(result + n[:, None] * I + i[None, :], total.to(result.dtype.element_ty), mask=mask)


@triton.jit
def _product(gs, weights, n, mask_n, scale, inverse, row, mask_row, O,
             MODE: tl.constexpr, BN: tl.constexpr, WIDTH: tl.constexpr, BO: tl.constexpr,
             STAGES: tl.constexpr):  # fmt: skip
    """Return (BN, WIDTH): g, scaled by `scale`, times rows of O weights, and unscaled by `inverse`."""
    compute = gs[0].dtype.element_ty if MODE == "fp64" else tl.float32
    acc = tl.zeros((BN, WIDTH), compute)
    for o0 in tl.range(0, O, BO, num_stages=STAGES):
        o = o0 + tl.arange(0, BO)
        gradient = load_tile(gs, n, o, mask_n[:, None] & (o < O)[None, :]).to(compute)
        at = row[None, :] * O + o[:, None]
        mask = mask_row[None, :] & (o < O)[:, None]
        b = tl.load(weights[0] + at, mask=mask, other=0.0)
        if MODE == "fp16x3":
            b_rest = tl.load(weights[1] + at, mask=mask, other=0.0)
            # Tensor cores truncate sums, so each tile is accumulated outside of them.
            tile = tl.zeros((BN, WIDTH), compute)
            acc += split_dot(gradient * scale[:, None], b, b_rest, tile, MODE)
        else:
            acc = split_dot(gradient, b, b, acc, MODE)
    if MODE == "fp16x3":
        acc = unscaled(acc, inverse[:, None], tl.load(weights[2]))
    return acc


def spline_backward_input(
    x: Tensor, g: Tensor, spline_weight: Tensor, spline_scaler: Tensor | None, grid: Tensor, base_weight: Tensor | None,
    activation: str, derivative: int,
) -> Tensor:  # fmt: skip
    if runs_on_reference(x, derivative, base_weight):
        return reference.spline_backward_input(x, g, spline_weight, spline_scaler, grid, base_weight, activation, derivative)
    (N, I), (O, _, M), T = x.shape, spline_weight.shape, grid.shape[1]
    result = x.new_empty(N, I)
    if N == 0:
        return result
    K, mode = infer_spline_order(M, T), mode_of(x.dtype)
    chosen = regime("spline_backward_input", mode, N, I, O, K, M, derivative, False)
    with torch.cuda.device_of(x):
        if chosen == "direct" and direct.is_addressable(spline_weight, spline_scaler):
            return direct.backward_input(
                x, g, spline_weight, spline_scaler, grid, base_weight, activation, K, derivative, mode
            )
        tables = prepare_knots(x, grid, K, derivative, mode)
        if chosen == "wide":
            return wide.backward_input(
                x, g, spline_weight, spline_scaler, tables, base_weight, activation, K, derivative, mode
            )
        g = with_contiguous_rows(g)
        packed = pack(spline_weight, spline_scaler, base_weight, mode, slices_of_edges(M, I, O, outputs_last=True))
        for way, guarded in ways_of(mode, K, derivative):
            tiles = backward_input_tiles(mode, way, is_hopper(x))
            backward_input_kernel[(ceil_div(N, tiles.BN) * ceil_div(I, tiles.BI),)](
                x, *x.stride(), g, *g.stride(), *packed, tables.knots, tables.step, tables.origin, tables.uniform, result,
                N, I, O, T, M, K=K, D=derivative, DEPTH=search_depth(T), BASE=base_name(base_weight, activation),
                MODE=mode, WAY=way, GUARDED=guarded, **constants(tiles),
            )  # fmt: skip
    return result
