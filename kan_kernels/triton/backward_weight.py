"""The gradients of the weights: sum over n of w[n,i] beta^(D)_{i,m}(x[n,i]) g[n,o].

The kernel multiplies transposed g with MC bases of BI features at once. The rows are split over S programs. The split depends
only on the shape, so that the order of summation is the same on every device. `finish_kernel` adds the parts.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import reference
from . import direct, wide
from .basis import activation, bases_tile, evaluate, unit, weighted
from .heuristics import (
    backward_weight_split,
    backward_weight_tiles,
    ceil_div,
    regime,
)
from .matmul import dot, finite, operand, power_of_two_scale, rest, unscaled
from .prepare import (
    Gradients,
    constants,
    in_layout,
    is_hopper,
    mode_of,
    prepare_knots,
    runs_on_reference,
    search_depth,
    ways_of,
    with_contiguous_rows,
)
from .tiles import column_bounds, knots_are_for, load_tile


@triton.jit(do_not_specialize=["N", "T", "M", "rows", "first", "features"])
def backward_weight_kernel(
    x,  # (N, I)
    x_stride_n,
    x_stride_i,
    w,  # (N, I) or unused
    w_stride_n,
    w_stride_i,
    g,  # (N, O)
    g_stride_n,
    g_stride_o,
    knots,  # (I, T), this and the next four from `knots_kernel`
    step,  # (I,)
    origin,  # (I,)
    steepness,  # (I,)
    uniform,  # (I,)
    partial,  # out (S, M+1, features, O)
    N,
    O,
    T,
    M,
    rows,  # per program
    first,  # first feature and number of features of this launch
    features,
    K: tl.constexpr,
    D: tl.constexpr,
    DEPTH: tl.constexpr,
    WEIGHTED: tl.constexpr,
    BASE: tl.constexpr,  # "silu", "identity" or "none"
    SPLINE: tl.constexpr,  # whether to compute the gradients of the bases' weights
    MODE: tl.constexpr,
    WAY: tl.constexpr,  # evaluation method, see basis.py
    GUARDED: tl.constexpr,  # whether to skip the bases if the knots need another WAY
    BN: tl.constexpr,
    BI: tl.constexpr,
    BO: tl.constexpr,
    MC: tl.constexpr,
    STAGES: tl.constexpr,
):
    xs = (x, x_stride_n, x_stride_i)
    ws = (w, w_stride_n, w_stride_i)
    gs = (g, g_stride_n, g_stride_o)
    tables = (knots, step, origin, steepness, T)
    end = tl.minimum((tl.program_id(2) + 1).to(tl.int64) * rows, N)
    part = partial + tl.program_id(2).to(tl.int64) * (M + 1) * features * O
    pid = tl.program_id(0)
    chunks = tl.cdiv(M, MC) * SPLINE
    blocks = tl.cdiv(features, BI)
    if pid >= chunks * blocks:
        if BASE != "none":
            _base(xs, ws, gs, tables, part, pid - chunks * blocks, end, rows, first, features, O, M,
                  D, WEIGHTED, BASE, MODE, BN, BO, MC * BI, STAGES)  # fmt: skip
    elif knots_are_for(uniform, first + features, WAY, GUARDED):
        _bases(xs, ws, gs, tables, part, pid // chunks, (pid % chunks) * MC, end, rows, first, features, O, M,
               K, D, DEPTH, WEIGHTED, MODE, WAY, BN, BI, BO, MC, STAGES)  # fmt: skip


@triton.jit
def _bases(xs, ws, gs, tables, part, block, m0, end, rows, first, features, O, M,
           K: tl.constexpr, D: tl.constexpr, DEPTH: tl.constexpr, WEIGHTED: tl.constexpr, MODE: tl.constexpr,
           WAY: tl.constexpr, BN: tl.constexpr, BI: tl.constexpr, BO: tl.constexpr, MC: tl.constexpr,
           STAGES: tl.constexpr):  # fmt: skip
    """Multiply transposed g with bases m0 ... m0 + MC - 1 of a block of features; column = feature * MC + basis."""
    compute = tables[1].dtype.element_ty
    begin = tl.program_id(2).to(tl.int64) * rows
    o = tl.program_id(1) * BO + tl.arange(0, BO)
    inner = block * BI + tl.arange(0, BI)
    i = first + inner
    mask_i = inner < features
    valid = first + tl.minimum(inner, features - 1)
    SCALED: tl.constexpr = MODE == "fp16x3" and (WEIGHTED or D > 0)
    g_scale, g_inverse = _gradient_scale(gs, begin, end, o, O, MODE, BN, BO)
    if SCALED:
        bound = column_bounds(xs, ws, tables, i, mask_i, begin, end, D, WEIGHTED, True, "none", BN, BI)
        scale, inverse = power_of_two_scale(bound)
    acc = tl.zeros((BO, MC * BI), compute)
    for n0 in tl.range(begin, end, BN, num_stages=STAGES):
        n = n0 + tl.arange(0, BN)
        mask = (n < end)[:, None] & mask_i[None, :]
        x = load_tile(xs, n, i, mask).to(compute)
        state = evaluate(x, valid, tables, K, D, DEPTH, WAY)
        if WEIGHTED or SCALED or (D > 0 and WAY != "adaptive"):
            factor = unit(x, valid, tables, D, WAY)
            if WEIGHTED:
                factor = factor * load_tile(ws, n, i, mask).to(compute)
            if SCALED:
                factor = factor * scale[None, :]
            state = weighted(state, factor, WAY)
        a = bases_tile(state, m0, M, K, D, WAY, MC)
        acc = _add_product(gs, n, n < end, o, O, g_scale, a, acc, MODE, BO, MC * BI, False)
    if SCALED:
        of_columns = tl.reshape(tl.broadcast_to(inverse[:, None], (BI, MC)), (MC * BI,))
        acc = unscaled(acc, g_inverse[:, None], of_columns[None, :])
    elif MODE == "fp16x3":
        acc = acc * g_inverse[:, None]
    column = tl.arange(0, MC * BI)
    m = (m0 + column % MC).to(tl.int64)
    inner = block * BI + column // MC
    mask = ((m < M) & (inner < features))[None, :] & (o < O)[:, None]
    tl.store(part + (m * features + inner)[None, :] * O + o[:, None], acc, mask=mask)


@triton.jit
def _base(xs, ws, gs, tables, part, block, end, rows, first, features, O, M,
          D: tl.constexpr, WEIGHTED: tl.constexpr, BASE: tl.constexpr, MODE: tl.constexpr,
          BN: tl.constexpr, BO: tl.constexpr, WIDTH: tl.constexpr, STAGES: tl.constexpr):  # fmt: skip
    """Multiply transposed g with the base activation of WIDTH features."""
    begin = tl.program_id(2).to(tl.int64) * rows
    o = tl.program_id(1) * BO + tl.arange(0, BO)
    inner = block * WIDTH + tl.arange(0, WIDTH)
    i = first + inner
    mask_i = inner < features
    compute = tables[1].dtype.element_ty
    g_scale, g_inverse = _gradient_scale(gs, begin, end, o, O, MODE, BN, BO)
    if MODE == "fp16x3":
        bound = column_bounds(xs, ws, tables, i, mask_i, begin, end, D, WEIGHTED, False, BASE, BN, WIDTH)
        scale, inverse = power_of_two_scale(bound)
    acc = tl.zeros((BO, WIDTH), compute)
    for n0 in tl.range(begin, end, BN, num_stages=STAGES):
        n = n0 + tl.arange(0, BN)
        mask = (n < end)[:, None] & mask_i[None, :]
        a = activation(load_tile(xs, n, i, mask).to(compute), D, BASE)
        if WEIGHTED:
            a = a * load_tile(ws, n, i, mask).to(compute)
        if MODE == "fp16x3":
            a = a * scale[None, :]
        acc = _add_product(gs, n, n < end, o, O, g_scale, a, acc, MODE, BO, WIDTH, True)
    if MODE == "fp16x3":
        acc = unscaled(acc, g_inverse[:, None], inverse[None, :])
    row = M.to(tl.int64) * features + inner
    tl.store(part + row[None, :] * O + o[:, None], acc, mask=mask_i[None, :] & (o < O)[:, None])


@triton.jit
def _gradient_scale(gs, begin, end, o, O, MODE: tl.constexpr, BN: tl.constexpr, BO: tl.constexpr):
    """Return the scales (BO,) of g's columns, powers of two, and their inverses; 1 in modes without scaling."""
    scale = tl.full((BO,), 1.0, tl.float32)
    inverse = scale
    if MODE == "fp16x3":
        bound = tl.zeros((BO,), tl.float32)
        for n0 in range(begin, end, BN):
            n = n0 + tl.arange(0, BN)
            gradient = load_tile(gs, n, o, (n < end)[:, None] & (o < O)[None, :])
            bound = tl.maximum(bound, tl.max(tl.abs(gradient.to(tl.float32)), axis=0))
        scale, inverse = power_of_two_scale(bound)
    return scale, inverse


@triton.jit
def _add_product(gs, n, mask_n, o, O, g_scale, a, acc,
                 MODE: tl.constexpr, BO: tl.constexpr, WIDTH: tl.constexpr, INFINITE: tl.constexpr):  # fmt: skip
    """Return acc plus transposed g, for the rows n, times a (rows, WIDTH); INFINITE allows infinities in a."""
    gradient = load_tile(gs, n, o, mask_n[:, None] & (o < O)[None, :])
    high = operand(a, MODE)
    if MODE == "fp16x3":
        gradient = tl.trans(gradient.to(tl.float32) * g_scale[None, :])
        g_high = operand(gradient, MODE)
        a_finite = high
        if INFINITE:
            a = finite(a)
            a_finite = finite(high)
        # Tensor cores truncate sums, so each tile is accumulated outside of them.
        tile = tl.zeros((BO, WIDTH), tl.float32)
        tile = dot(g_high, rest(a, a_finite), tile, MODE)
        tile = dot(rest(gradient, g_high), a_finite, tile, MODE)
        acc += dot(g_high, high, tile, MODE)
    else:
        acc = dot(operand(tl.trans(gradient), MODE), high, acc, MODE)
    return acc


def spline_backward_weight(
    x: Tensor, w: Tensor | None, g: Tensor, spline_weight: Tensor | None, spline_scaler: Tensor | None, grid: Tensor,
    spline_order: int, activation: str, derivative: int,
    need_spline_weight: bool, need_spline_scaler: bool, need_base_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    needs = (need_spline_weight, need_spline_scaler, need_base_weight)
    if runs_on_reference(x, derivative, x if need_base_weight else None):
        results = reference.spline_backward_weight(
            x, w, g, spline_weight, spline_scaler, grid, spline_order, activation, derivative, *needs
        )
        return in_layout(results, spline_weight)
    (N, I), O, T, K = x.shape, g.shape[1], grid.shape[1], spline_order
    M, mode = T - K - 1, mode_of(x.dtype)
    gradients = Gradients(x, spline_weight, spline_scaler, (O, I, M), needs)
    spline = (need_spline_weight or need_spline_scaler) and derivative <= K
    if N == 0 or not (spline or need_base_weight):
        for gradient in gradients.tensors:
            gradient.zero_()
        return gradients.tensors
    chosen = regime("spline_backward_weight", mode, N, I, O, K, M, derivative, w is not None)
    with torch.cuda.device_of(x):
        if chosen == "direct":
            needed = activation if need_base_weight else "none"
            direct.backward_weight(x, w, g, grid, gradients, K, derivative, needed, mode)
            return gradients.tensors
        tables = prepare_knots(x, grid, K, derivative, mode)
        if chosen == "wide":
            wide.backward_weight(x, w, g, tables, gradients, K, M, activation, derivative, mode)
            return gradients.tensors
        g = with_contiguous_rows(g)
        features, S, rows = backward_weight_split(mode, N, I, O, M, is_hopper(x))
        weight = x if w is None else w
        for first in range(0, I, features):
            some = min(features, I - first)
            # Derivatives of order greater than K are 0.
            partial = (tables.step.new_empty if spline else tables.step.new_zeros)(S, M + 1, some, O)
            base = need_base_weight
            for way, guarded in ways_of(mode, K, derivative):
                tiles = backward_weight_tiles(mode, way, O, is_hopper(x))
                columns = ceil_div(some, tiles.BI) * ceil_div(M, tiles.MC) * spline
                columns += ceil_div(some, tiles.MC * tiles.BI) * base
                backward_weight_kernel[(columns, ceil_div(O, tiles.BO), S)](
                    x, *x.stride(), weight, *weight.stride(), g, *g.stride(), *tables, partial,
                    N, O, T, M, rows, first, some,
                    K=K, D=derivative, DEPTH=search_depth(T), WEIGHTED=w is not None, BASE=activation if base else "none",
                    SPLINE=spline, MODE=mode, WAY=way, GUARDED=guarded, **constants(tiles),
                )  # fmt: skip
                base = False  # does not depend on the knots, one launch computes it
                if not spline:
                    break
            gradients.finish(partial, first)
    return gradients.tensors
