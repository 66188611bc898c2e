"""Operators for small problems: one launch each, which reads the parameters and the knots as they are.

The time of such a problem is that of its launches, not that of its arithmetic. So nothing is prepared in memory: the weights
are rounded to operands in registers, any knots are evaluated by the "adaptive" method (see `basis.py`), and float32 products
use three tf32 products, which need no scaling. The gradients of x and of the weights are programs of one launch.
"""

from typing import NamedTuple

import triton
import triton.language as tl
from torch import Tensor

from .basis import activation, bases_tile, evaluate, weighted
from .heuristics import ceil_div, direct_backward_split, direct_backward_tiles, direct_forward_split, direct_forward_tiles
from .matmul import dot, operand
from .packing import weight_of
from .prepare import Gradients, base_name, constants, is_hopper, search_depth, sums_dtype, unscaled_mode, with_strides
from .tiles import load_tile


@triton.jit(do_not_specialize=["N", "T", "M", "blocks"])
def direct_forward_kernel(
    x,  # (N, I)
    x_stride_n,
    x_stride_i,
    w,  # (N, I) or unused
    w_stride_n,
    w_stride_i,
    spline_weight,  # (O, I, M)
    spline_scaler,  # (O, I) or unused
    base_weight,  # (O, I) or unused
    spline_weight_stride_o,
    spline_weight_stride_i,
    spline_weight_stride_m,
    spline_scaler_stride_o,
    spline_scaler_stride_i,
    base_weight_stride_o,
    base_weight_stride_i,
    knots,  # (I, T)
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
    SCALED: tl.constexpr,
    BASE: tl.constexpr,  # "silu", "identity" or "none"
    MODE: tl.constexpr,
    BN: tl.constexpr,
    BO: tl.constexpr,
    BI: tl.constexpr,
    MC: tl.constexpr,
    STAGES: tl.constexpr,
):
    compute = tl.float64 if MODE == "fp64" else tl.float32
    xs = (x, x_stride_n, x_stride_i)
    matrices = (
        (spline_weight, spline_weight_stride_o, spline_weight_stride_i, spline_weight_stride_m),
        (spline_scaler, spline_scaler_stride_o, spline_scaler_stride_i),
        (base_weight, base_weight_stride_o, base_weight_stride_i),
    )
    tables = (knots, knots, knots, knots, T)
    n = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    o = tl.program_id(1) * BO + tl.arange(0, BO)
    column = tl.arange(0, MC * BI)
    mask_n = (n < N)[:, None]
    mask_o = (o < O)[None, :]
    begin = tl.program_id(2) * blocks * BI
    end = tl.minimum(begin + blocks * BI, I)
    acc = tl.zeros((BN, BO), compute)
    for i0 in tl.range(begin, end, BI, num_stages=STAGES):
        i = i0 + tl.arange(0, BI)
        mask = mask_n & (i < end)[None, :]
        tile = load_tile(xs, n, i, mask).to(compute)
        if WEIGHTED:
            factor = load_tile((w, w_stride_n, w_stride_i), n, i, mask).to(compute)
        if D <= K:
            state = evaluate(tile, tl.minimum(i, end - 1), tables, K, D, DEPTH, "adaptive")
            if WEIGHTED:
                state = weighted(state, factor, "adaptive")
            feature = (i0 + column // MC)[:, None]
            for m0 in range(0, M, MC):
                m = (m0 + column % MC)[:, None]
                b = weight_of(matrices, o[None, :], feature, m, (feature < end) & (m < M) & mask_o, M, SCALED, False)
                a = bases_tile(state, m0, M, K, D, "adaptive", MC)
                # Tensor cores truncate sums, so each tile is accumulated outside of them.
                acc += dot(operand(a, MODE), operand(b, MODE), tl.zeros((BN, BO), compute), MODE)
        if BASE != "none":
            a = activation(tile, D, BASE)
            if WEIGHTED:
                a = a * factor
            b = load_tile(matrices[2], o, i, (i < end)[None, :] & (o < O)[:, None]).to(compute)
            acc += dot(operand(a, MODE), operand(tl.trans(b), MODE), tl.zeros((BN, BO), compute), MODE)
    at = y + (tl.program_id(2).to(tl.int64) * N + n[:, None]) * O + o[None, :]
    tl.store(at, acc.to(y.dtype.element_ty), mask=mask_n & mask_o)


@triton.jit(do_not_specialize=["N", "T", "M", "rows", "of_input"])
def direct_backward_kernel(
    x,  # (N, I)
    x_stride_n,
    x_stride_i,
    w,  # (N, I) or unused
    w_stride_n,
    w_stride_i,
    g,  # (N, O)
    g_stride_n,
    g_stride_o,
    spline_weight,  # (O, I, M)
    spline_scaler,  # (O, I) or unused
    base_weight,  # (O, I) or unused
    spline_weight_stride_o,
    spline_weight_stride_i,
    spline_weight_stride_m,
    spline_scaler_stride_o,
    spline_scaler_stride_i,
    base_weight_stride_o,
    base_weight_stride_i,
    knots,  # (I, T)
    result,  # out (N, I): the gradient of x
    partial,  # out (S, M+1, I, O): the gradients of the weights, over a part of the rows each
    N,
    I,
    O,
    T,
    M,
    rows,  # per part
    of_input,  # programs for the gradient of x; the others compute those of the weights
    K: tl.constexpr,
    D: tl.constexpr,  # order of the derivative in the gradients of the weights; one less than in that of x
    DEPTH: tl.constexpr,
    WEIGHTED: tl.constexpr,
    SCALED: tl.constexpr,
    BASE: tl.constexpr,  # "silu", "identity" or "none"
    MODE: tl.constexpr,
    BN: tl.constexpr,
    BO: tl.constexpr,
    BI: tl.constexpr,
    MC: tl.constexpr,
    STAGES: tl.constexpr,
):
    xs = (x, x_stride_n, x_stride_i)
    ws = (w, w_stride_n, w_stride_i)
    gs = (g, g_stride_n, g_stride_o)
    matrices = (
        (spline_weight, spline_weight_stride_o, spline_weight_stride_i, spline_weight_stride_m),
        (spline_scaler, spline_scaler_stride_o, spline_scaler_stride_i),
        (base_weight, base_weight_stride_o, base_weight_stride_i),
    )
    tables = (knots, knots, knots, knots, T)
    pid = tl.program_id(0)
    blocks = tl.cdiv(I, BI)
    if pid < of_input:
        _input(xs, ws, gs, matrices, tables, result, pid // blocks, (pid % blocks) * BI, N, I, O, M,
               K, D + 1, DEPTH, WEIGHTED, SCALED, BASE, MODE, BN, BO, BI, MC, STAGES)  # fmt: skip
    else:
        pid -= of_input
        chunks = tl.cdiv(M, MC) + 1
        chunk = pid % chunks
        block = pid // chunks % blocks
        outputs = pid // (chunks * blocks) % tl.cdiv(O, BO)
        part = pid // (chunks * blocks * tl.cdiv(O, BO))
        partial += part.to(tl.int64) * (M + 1) * I * O
        end = tl.minimum((part + 1).to(tl.int64) * rows, N)
        if chunk < chunks - 1:
            _weights(xs, ws, gs, tables, partial, part, end, rows, outputs, block * BI, chunk * MC, I, O, M,
                     K, D, DEPTH, WEIGHTED, MODE, BN, BO, BI, MC, STAGES)  # fmt: skip
        elif BASE != "none":
            _base_weights(xs, ws, gs, partial, part, end, rows, outputs, block * BI, I, O, M,
                          D, WEIGHTED, BASE, MODE, BN, BO, BI, STAGES)  # fmt: skip


@triton.jit
def _input(xs, ws, gs, matrices, tables, result, block, begin, N, I, O, M,
           K: tl.constexpr, D: tl.constexpr, DEPTH: tl.constexpr, WEIGHTED: tl.constexpr, SCALED: tl.constexpr,
           BASE: tl.constexpr, MODE: tl.constexpr, BN: tl.constexpr, BO: tl.constexpr, BI: tl.constexpr, MC: tl.constexpr,
           STAGES: tl.constexpr):  # fmt: skip
    """Write the gradient of x for a block of rows and features."""
    compute = tl.float64 if MODE == "fp64" else tl.float32
    n = block.to(tl.int64) * BN + tl.arange(0, BN)
    i = begin + tl.arange(0, BI)
    column = tl.arange(0, MC * BI)
    feature = (begin + column // MC)[None, :]
    mask_n = (n < N)[:, None]
    mask = mask_n & (i < I)[None, :]
    total = tl.zeros((BN, BI), compute)
    if D <= K:
        for m0 in range(0, M, MC):
            m = (m0 + column % MC)[None, :]
            along = tl.zeros((BN, MC * BI), compute)
            for o0 in tl.range(0, O, BO, num_stages=STAGES):
                o = o0 + tl.arange(0, BO)
                gradient = load_tile(gs, n, o, mask_n & (o < O)[None, :]).to(compute)
                b = weight_of(matrices, o[:, None], feature, m, (feature < I) & (m < M) & (o < O)[:, None], M, SCALED, False)
                along += dot(operand(gradient, MODE), operand(b, MODE), tl.zeros((BN, MC * BI), compute), MODE)
            # Evaluated again for each MC bases, since the state would not stay in registers.
            x = load_tile(xs, n, i, mask).to(compute)
            state = evaluate(x, tl.minimum(i, I - 1), tables, K, D, DEPTH, "adaptive")
            bases = bases_tile(state, m0, M, K, D, "adaptive", MC)
            total += tl.sum(tl.reshape(bases * along, (BN, BI, MC)), axis=2)
    if BASE != "none":
        along = tl.zeros((BN, BI), compute)
        for o0 in tl.range(0, O, BO, num_stages=STAGES):
            o = o0 + tl.arange(0, BO)
            gradient = load_tile(gs, n, o, mask_n & (o < O)[None, :]).to(compute)
            b = load_tile(matrices[2], o, i, (o < O)[:, None] & (i < I)[None, :]).to(compute)
            along += dot(operand(gradient, MODE), operand(b, MODE), tl.zeros((BN, BI), compute), MODE)
        total += along * activation(load_tile(xs, n, i, mask).to(compute), D, BASE)
    if WEIGHTED:
        total = total * load_tile(ws, n, i, mask).to(compute)
    tl.store(result + n[:, None] * I + i[None, :], total.to(result.dtype.element_ty), mask=mask)


@triton.jit
def _weights(xs, ws, gs, tables, partial, part, end, rows, outputs, first, m0, I, O, M,
             K: tl.constexpr, D: tl.constexpr, DEPTH: tl.constexpr, WEIGHTED: tl.constexpr, MODE: tl.constexpr,
             BN: tl.constexpr, BO: tl.constexpr, BI: tl.constexpr, MC: tl.constexpr, STAGES: tl.constexpr):  # fmt: skip
    """Write the gradients of the weights of the bases m0 ... m0 + MC - 1 for a block of features and outputs."""
    compute = tl.float64 if MODE == "fp64" else tl.float32
    i = first + tl.arange(0, BI)
    o = outputs * BO + tl.arange(0, BO)
    acc = tl.zeros((BO, MC * BI), compute)
    if D <= K:
        for n0 in tl.range(part.to(tl.int64) * rows, end, BN, num_stages=STAGES):
            n = n0 + tl.arange(0, BN)
            mask = (n < end)[:, None] & (i < I)[None, :]
            x = load_tile(xs, n, i, mask).to(compute)
            state = evaluate(x, tl.minimum(i, I - 1), tables, K, D, DEPTH, "adaptive")
            if WEIGHTED:
                state = weighted(state, load_tile(ws, n, i, mask).to(compute), "adaptive")
            gradient = load_tile(gs, n, o, (n < end)[:, None] & (o < O)[None, :]).to(compute)
            bases = operand(bases_tile(state, m0, M, K, D, "adaptive", MC), MODE)
            acc += dot(operand(tl.trans(gradient), MODE), bases, tl.zeros((BO, MC * BI), compute), MODE)
    column = tl.arange(0, MC * BI)
    m = m0 + column % MC
    feature = first + column // MC
    mask = ((m < M) & (feature < I))[None, :] & (o < O)[:, None]
    tl.store(partial + (m * I + feature)[None, :] * O + o[:, None], acc, mask=mask)


@triton.jit
def _base_weights(xs, ws, gs, partial, part, end, rows, outputs, first, I, O, M,
                  D: tl.constexpr, WEIGHTED: tl.constexpr, BASE: tl.constexpr, MODE: tl.constexpr,
                  BN: tl.constexpr, BO: tl.constexpr, BI: tl.constexpr, STAGES: tl.constexpr):  # fmt: skip
    """Write the gradients of base_weight for a block of features and outputs."""
    compute = tl.float64 if MODE == "fp64" else tl.float32
    i = first + tl.arange(0, BI)
    o = outputs * BO + tl.arange(0, BO)
    acc = tl.zeros((BO, BI), compute)
    for n0 in tl.range(part.to(tl.int64) * rows, end, BN, num_stages=STAGES):
        n = n0 + tl.arange(0, BN)
        mask = (n < end)[:, None] & (i < I)[None, :]
        value = activation(load_tile(xs, n, i, mask).to(compute), D, BASE)
        if WEIGHTED:
            value = value * load_tile(ws, n, i, mask).to(compute)
        gradient = load_tile(gs, n, o, (n < end)[:, None] & (o < O)[None, :]).to(compute)
        acc += dot(operand(tl.trans(gradient), MODE), operand(value, MODE), tl.zeros((BO, BI), compute), MODE)
    at = (M * I + i)[None, :] * O + o[:, None]
    tl.store(partial + at, acc, mask=(i < I)[None, :] & (o < O)[:, None])


def is_addressable(spline_weight: Tensor, spline_scaler: Tensor | None) -> bool:
    """Return whether the elements are less than 2^31 apart, as the kernels' offsets into the weights require."""
    tensors = [spline_weight] if spline_scaler is None else [spline_weight, spline_scaler]
    return all(sum((n - 1) * step for n, step in zip(t.shape, t.stride(), strict=True)) < 1 << 31 for t in tensors)


def _knots(x: Tensor, grid: Tensor) -> Tensor:
    """Return the knots in the dtype of x, contiguous; a copy only where they are not."""
    return grid.to(x.dtype).contiguous()


def forward(
    x: Tensor, w: Tensor | None, spline_weight: Tensor, spline_scaler: Tensor | None, grid: Tensor,
    base_weight: Tensor | None, activation: str, K: int, D: int, mode: str,
) -> Tensor:  # fmt: skip
    (N, I), (O, _, M), T = x.shape, spline_weight.shape, grid.shape[1]
    tiles = direct_forward_tiles(N, I, O)
    S, of_program = direct_forward_split(tiles, N, I, O)
    y = x.new_empty(N, O) if S == 1 else x.new_empty(S, N, O, dtype=sums_dtype(mode))
    weight = x if w is None else w
    direct_forward_kernel[(ceil_div(N, tiles.BN), ceil_div(O, tiles.BO), S)](
        x, *x.stride(), weight, *weight.stride(), *with_strides(spline_weight, spline_scaler, base_weight),
        _knots(x, grid), y, N, I, O, T, M, of_program, K=K, D=D, DEPTH=search_depth(T), WEIGHTED=w is not None,
        SCALED=spline_scaler is not None, BASE=base_name(base_weight, activation), MODE=unscaled_mode(mode),
        **constants(tiles),
    )  # fmt: skip
    return y if S == 1 else y.sum(0).to(x.dtype)


def backward_input(
    x: Tensor, g: Tensor, spline_weight: Tensor, spline_scaler: Tensor | None, grid: Tensor,
    base_weight: Tensor | None, activation: str, K: int, D: int, mode: str,
) -> Tensor:  # fmt: skip
    result = x.new_empty(x.shape)
    weights = (spline_weight, spline_scaler, base_weight)
    _launch(x, None, g, weights, grid, result, x, _Parts(0, 0), K, D - 1, base_name(base_weight, activation), mode, True)
    return result


def backward_weight(
    x: Tensor, w: Tensor | None, g: Tensor, grid: Tensor, gradients: Gradients, K: int, D: int, base: str, mode: str
) -> None:
    """Write the gradients of the weights."""
    parts, partial = _partial(x, g, grid, K, mode)
    _launch(x, w, g, (gradients.spline_weight, None, None), grid, x, partial, parts, K, D, base, mode, False)
    gradients.finish(partial, 0)


def backward(
    x: Tensor, w: Tensor | None, g: Tensor, spline_weight: Tensor, spline_scaler: Tensor | None, grid: Tensor,
    base_weight: Tensor | None, gradients: Gradients, K: int, D: int, base: str, mode: str,
) -> Tensor:  # fmt: skip
    """Return the gradient of x, and write those of the weights."""
    result = x.new_empty(x.shape)
    parts, partial = _partial(x, g, grid, K, mode)
    _launch(x, w, g, (spline_weight, spline_scaler, base_weight), grid, result, partial, parts, K, D, base, mode, True)
    gradients.finish(partial, 0)
    return result


class _Parts(NamedTuple):
    """The parts of the sum over the rows."""

    number: int
    rows: int  # of a part


def _partial(x: Tensor, g: Tensor, grid: Tensor, K: int, mode: str) -> tuple[_Parts, Tensor]:
    """Return the parts of the sum over the rows, and the memory for their results (S, M+1, I, O)."""
    (N, I), O, M = x.shape, g.shape[1], grid.shape[1] - K - 1
    parts = _Parts(*direct_backward_split(direct_backward_tiles(mode, O, is_hopper(x)), N, I, O, M))
    return parts, x.new_empty(parts.number, M + 1, I, O, dtype=sums_dtype(mode))


def _launch(
    x: Tensor, w: Tensor | None, g: Tensor, weights: tuple[Tensor, Tensor | None, Tensor | None], grid: Tensor,
    result: Tensor, partial: Tensor, parts: _Parts, K: int, D: int, base: str, mode: str, need_input: bool,
) -> None:  # fmt: skip
    """Launch `direct_backward_kernel`, for the gradients of the weights of order D, and that of x of order D + 1."""
    (N, I), O, T = x.shape, g.shape[1], grid.shape[1]
    M, tiles, weight = T - K - 1, direct_backward_tiles(mode, O, is_hopper(x)), x if w is None else w
    blocks = ceil_div(I, tiles.BI)
    of_input = ceil_div(N, tiles.BN) * blocks if need_input else 0
    of_weights = parts.number * blocks * (ceil_div(M, tiles.MC) + 1) * ceil_div(O, tiles.BO)
    direct_backward_kernel[(of_input + of_weights,)](
        x, *x.stride(), weight, *weight.stride(), g, *g.stride(), *with_strides(*weights), _knots(x, grid),
        result, partial, N, I, O, T, M, parts.rows, of_input, K=K, D=D, DEPTH=search_depth(T), WEIGHTED=w is not None,
        SCALED=weights[1] is not None, BASE=base, MODE=unscaled_mode(mode), **constants(tiles),
    )  # fmt: skip
