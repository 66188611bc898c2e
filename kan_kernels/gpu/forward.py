"""y = sum over i, m of w[n,i] beta^(D)_{i,m}(x[n,i]) spline_weight[o,i,m]: the bases go from registers into the products."""

import triton
import triton.language as tl

from .basis import activation, bases_tile, basis_slice, evaluate, unit, weighted
from .product import power_of_two, split_dot, unscaled
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
    blocks,  # of BI features, of a program
    K: tl.constexpr,
    D: tl.constexpr,
    DEPTH: tl.constexpr,
    WEIGHTED: tl.constexpr,
    BASE: tl.constexpr,  # "silu", "identity" or "none"
    MODE: tl.constexpr,
    WAY: tl.constexpr,  # of evaluation, see basis.py
    GUARDED: tl.constexpr,  # whether to do nothing if the knots are for another way
    SLICES: tl.constexpr,  # M, to unroll over the bases; 0 to take MC of them as the columns of one tile
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
    # An operand of fp16x3 has to be scaled where nothing bounds it: by its row, which the sum over features allows.
    SCALED: tl.constexpr = MODE == "fp16x3" and (WEIGHTED or BASE != "none" or D > 0)
    if SCALED:
        bound = row_bounds(xs, ws, tables, n, mask_n, begin, end, D, WEIGHTED, D <= K, BASE, BN, BI)
        scale, inverse = power_of_two(bound)
    acc = tl.zeros((BN, BO), compute)
    for i0 in tl.range(begin, end, BI, num_stages=STAGES):
        i = i0 + tl.arange(0, BI)
        mask = mask_n[:, None] & (i < end)[None, :]
        x = load_tile(xs, n, i, mask).to(compute)
        if MODE == "fp16x3":
            # Tensor cores truncate their sums: what a tile adds is rounded outside of them.
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
                # 64-bit offsets to a slice's tile, 32-bit offsets within
                at = tl.arange(0, BO)[None, :] * I + tl.arange(0, BI)[:, None]
                first = tl.program_id(1).to(tl.int64) * BO * I + i0
                for m in tl.static_range(0, SLICES):
                    a = basis_slice(state, m, K, D, WAY)
                    tile = _add_product(a, tile, weights, first, at, (i < end)[:, None] & mask_o[None, :], MODE)
                    first += I.to(tl.int64) * O
            else:
                column = tl.arange(0, MC * BI)
                padded = tl.cdiv(M, MC) * MC
                at = (tl.arange(0, BO)[None, :].to(tl.int64) * I + column[:, None] // MC) * padded + column[:, None] % MC
                first = (tl.program_id(1).to(tl.int64) * BO * I + i0) * padded
                mask_b = (i0 + column // MC < end)[:, None] & mask_o[None, :]
                for m0 in tl.range(0, M, MC, num_stages=STAGES):
                    a = bases_tile(state, m0, M, K, D, WAY, MC)
                    tile = _add_product(a, tile, weights, first + m0, at, mask_b, MODE)
        if BASE != "none":
            WIDTH: tl.constexpr = 16 if BI < 16 else BI  # a product sums over 16 or more
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
    """acc + a times the weights at offsets `first` + `at`."""
    b = tl.load(weights[0] + first + at, mask=mask, other=0.0)
    b_rest = b
    if MODE == "fp16x3":
        b_rest = tl.load(weights[1] + first + at, mask=mask, other=0.0)
    return split_dot(a, b, b_rest, acc, MODE)
