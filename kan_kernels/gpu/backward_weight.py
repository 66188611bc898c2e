"""sum over n of w[n,i] beta^(D)_{i,m}(x[n,i]) g[n,o]: g transposed times MC bases of BI features at once.

The rows are split over S programs by the shape alone, so that the sums have the same order on every device; `finish_kernel`
adds the parts.
"""

import triton
import triton.language as tl

from .basis import activation, bases_tile, evaluate, unit, weighted
from .product import dot, finite, operand, power_of_two, rest, unscaled
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
    rows,  # of a program
    first,  # feature, and how many: those of this launch
    features,
    K: tl.constexpr,
    D: tl.constexpr,
    DEPTH: tl.constexpr,
    WEIGHTED: tl.constexpr,
    BASE: tl.constexpr,  # "silu", "identity" or "none"
    SPLINE: tl.constexpr,  # whether the gradients of the bases' weights are wanted
    MODE: tl.constexpr,
    WAY: tl.constexpr,  # of evaluation, see basis.py
    GUARDED: tl.constexpr,  # whether to leave the bases alone if the knots are for another way
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
    """A block's bases m0 ... m0 + MC - 1: columns of g transposed times their values, column = feature * MC + basis."""
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
        scale, inverse = power_of_two(bound)
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
    """The same for the base activation of WIDTH features."""
    begin = tl.program_id(2).to(tl.int64) * rows
    o = tl.program_id(1) * BO + tl.arange(0, BO)
    inner = block * WIDTH + tl.arange(0, WIDTH)
    i = first + inner
    mask_i = inner < features
    compute = tables[1].dtype.element_ty
    g_scale, g_inverse = _gradient_scale(gs, begin, end, o, O, MODE, BN, BO)
    if MODE == "fp16x3":
        bound = column_bounds(xs, ws, tables, i, mask_i, begin, end, D, WEIGHTED, False, BASE, BN, WIDTH)
        scale, inverse = power_of_two(bound)
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
    """(BO,) and (BO,): powers of two for g's columns and their inverses; 1 where products need none."""
    scale = tl.full((BO,), 1.0, tl.float32)
    inverse = scale
    if MODE == "fp16x3":
        bound = tl.zeros((BO,), tl.float32)
        for n0 in range(begin, end, BN):
            n = n0 + tl.arange(0, BN)
            gradient = load_tile(gs, n, o, (n < end)[:, None] & (o < O)[None, :])
            bound = tl.maximum(bound, tl.max(tl.abs(gradient.to(tl.float32)), axis=0))
        scale, inverse = power_of_two(bound)
    return scale, inverse


@triton.jit
def _add_product(gs, n, mask_n, o, O, g_scale, a, acc,
                 MODE: tl.constexpr, BO: tl.constexpr, WIDTH: tl.constexpr, INFINITE: tl.constexpr):  # fmt: skip
    """acc + g transposed, for the rows n, times a (rows, WIDTH), which may be infinite or not."""
    gradient = load_tile(gs, n, o, mask_n[:, None] & (o < O)[None, :])
    high = operand(a, MODE)
    if MODE == "fp16x3":
        gradient = tl.trans(gradient.to(tl.float32) * g_scale[None, :])
        g_high = operand(gradient, MODE)
        a_finite = high
        if INFINITE:
            a = finite(a)
            a_finite = finite(high)
        # Tensor cores truncate their sums: what a tile adds is rounded outside of them.
        tile = tl.zeros((BO, WIDTH), tl.float32)
        tile = dot(g_high, rest(a, a_finite), tile, MODE)
        tile = dot(rest(gradient, g_high), a_finite, tile, MODE)
        acc += dot(g_high, high, tile, MODE)
    else:
        acc = dot(operand(tl.trans(gradient), MODE), high, acc, MODE)
    return acc
