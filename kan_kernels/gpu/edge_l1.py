"""Mean magnitudes of the edges' functions phi_{i,o} over the rows, and their gradients: phi stays in registers.

A program has one feature. Its phi for a tile of rows is a product of MC columns (the bases, and the base activation as one
more) with their weights; where there are more than MC columns, of slices of them, the first being the one whose gradient is
wanted. sign(phi) is computed again by every kernel that needs it. Products are of three tf32 (or float32's own) where float32
is asked for: their sums over few columns need no scale.
"""

import triton
import triton.language as tl

from .basis import activation, bases_tile, evaluate, unit, weighted
from .product import dot, operand
from .tiles import knots_are_for, load_tile


@triton.jit(do_not_specialize=["N", "T", "M", "rows"])
def edge_l1_kernel(
    x,  # (N, I)
    x_stride_n,
    x_stride_i,
    packed,  # (M+1, I, O), from `pack_kernel`
    knots,  # (I, T), this and the next three from `knots_kernel`
    step,  # (I,)
    origin,  # (I,)
    uniform,  # (I,)
    partial,  # out (S, I, O): the sums of |phi|, over a part of the rows each
    N,
    I,
    O,
    T,
    M,
    rows,  # of a program
    K: tl.constexpr,
    DEPTH: tl.constexpr,
    BASE: tl.constexpr,  # "silu", "identity" or "none"
    MODE: tl.constexpr,
    WAY: tl.constexpr,  # of evaluation, see basis.py
    GUARDED: tl.constexpr,  # whether to do nothing if the knots are for another way
    BN: tl.constexpr,
    BO: tl.constexpr,
    MC: tl.constexpr,
):
    if knots_are_for(uniform, I, WAY, GUARDED):
        tables = (knots, step, origin, step, T)
        i = tl.program_id(0) % I  # neighbours share lines of x
        o = (tl.program_id(0) // I) * BO + tl.arange(0, BO)
        weights = _weights(packed, i, 0, o, I, O, M, MC)
        begin = tl.program_id(1).to(tl.int64) * rows
        end = tl.minimum(begin + rows, N)
        acc = tl.zeros((BO, BN), step.dtype.element_ty)
        for n0 in range(begin, end, BN):
            values, state, mask_n = _row_tile((x, x_stride_n, x_stride_i), n0, end, i, tables, K, DEPTH, WAY, BN)
            columns = _columns(values, state, mask_n, 0, M, K, 0, BASE, MODE, WAY, MC)
            phi = dot(weights, tl.trans(columns), tl.zeros((BO, BN), acc.dtype), MODE)
            for m0 in range(MC, M + 1, MC):
                columns = _columns(values, state, mask_n, m0, M, K, 0, BASE, MODE, WAY, MC)
                phi = dot(_weights(packed, i, m0, o, I, O, M, MC), tl.trans(columns), phi, MODE)
            acc += tl.abs(phi)
        at = partial + (tl.program_id(1).to(tl.int64) * I + i) * O + o
        tl.store(at, tl.sum(acc, axis=1), mask=o < O)


@triton.jit(do_not_specialize=["N", "T", "M", "rows", "first", "features"])
def edge_l1_backward_weight_kernel(
    x,  # (N, I)
    x_stride_n,
    x_stride_i,
    r,  # (I, O)
    r_stride_i,
    r_stride_o,
    packed,  # (M+1, I, O), from `pack_kernel`
    knots,  # (I, T), this and the next three from `knots_kernel`
    step,  # (I,)
    origin,  # (I,)
    uniform,  # (I,)
    partial,  # out (S, M+1, features, O): the gradients of the weights, a part of the rows each
    N,
    I,
    O,
    T,
    M,
    rows,  # of a program
    first,  # feature, and how many: those of this launch
    features,
    K: tl.constexpr,
    DEPTH: tl.constexpr,
    BASE: tl.constexpr,  # "silu", "identity" or "none"
    MODE: tl.constexpr,
    WAY: tl.constexpr,  # of evaluation, see basis.py
    GUARDED: tl.constexpr,  # whether to do nothing if the knots are for another way
    BN: tl.constexpr,
    BO: tl.constexpr,
    MC: tl.constexpr,
):
    if knots_are_for(uniform, I, WAY, GUARDED):
        tables = (knots, step, origin, step, T)
        compute = step.dtype.element_ty
        slices = tl.cdiv(M + 1, MC)
        inner = tl.program_id(0) % features  # neighbours share lines of x
        own = (tl.program_id(0) // features % slices) * MC
        i = first + inner
        o = (tl.program_id(0) // features // slices) * BO + tl.arange(0, BO)
        weights = _weights(packed, i, own, o, I, O, M, MC)
        begin = tl.program_id(1).to(tl.int64) * rows
        end = tl.minimum(begin + rows, N)
        acc = tl.zeros((BO, MC), compute)
        for n0 in range(begin, end, BN):
            values, state, mask_n = _row_tile((x, x_stride_n, x_stride_i), n0, end, i, tables, K, DEPTH, WAY, BN)
            columns = _columns(values, state, mask_n, own, M, K, 0, BASE, MODE, WAY, MC)
            phi = dot(weights, tl.trans(columns), tl.zeros((BO, BN), compute), MODE)
            for k in range(1, slices):
                m0 = (own + k * MC) % (slices * MC)
                others = _columns(values, state, mask_n, m0, M, K, 0, BASE, MODE, WAY, MC)
                phi = dot(_weights(packed, i, m0, o, I, O, M, MC), tl.trans(others), phi, MODE)
            # Tensor cores truncate their sums: what a tile adds is rounded outside of them.
            acc += dot(operand(_sign(phi), MODE), columns, tl.zeros((BO, MC), compute), MODE)
        along = tl.load(r + i.to(tl.int64) * r_stride_i + o.to(tl.int64) * r_stride_o, mask=o < O, other=0.0).to(compute)
        m = own + tl.arange(0, MC)
        row = (tl.program_id(1).to(tl.int64) * (M + 1) + m) * features + inner
        mask = (o < O)[:, None] & (m <= M)[None, :]
        tl.store(partial + row[None, :] * O + o[:, None], acc * (along / N.to(compute))[:, None], mask=mask)


@triton.jit(do_not_specialize=["N", "T", "M"])
def edge_l1_backward_input_kernel(
    x,  # (N, I)
    x_stride_n,
    x_stride_i,
    r,  # (I, O)
    r_stride_i,
    r_stride_o,
    packed,  # (M+1, I, O), from `pack_kernel`
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
    DEPTH: tl.constexpr,
    BASE: tl.constexpr,  # "silu", "identity" or "none"
    MODE: tl.constexpr,
    WAY: tl.constexpr,  # of evaluation, see basis.py
    GUARDED: tl.constexpr,  # whether to do nothing if the knots are for another way
    BN: tl.constexpr,
    BO: tl.constexpr,
    MC: tl.constexpr,
):
    if knots_are_for(uniform, I, WAY, GUARDED):
        tables = (knots, step, origin, step, T)
        compute = step.dtype.element_ty
        slices = tl.cdiv(M + 1, MC)
        i = tl.program_id(0) % I  # neighbours share lines of x
        n0 = (tl.program_id(0) // I).to(tl.int64) * BN
        values, state, mask_n = _row_tile((x, x_stride_n, x_stride_i), n0, N, i, tables, K, DEPTH, WAY, BN)
        total = tl.zeros((BN,), compute)
        for own in range(0, M + 1, MC):
            columns = _columns(values, state, mask_n, own, M, K, 0, BASE, MODE, WAY, MC)
            along = tl.zeros((BN, MC), compute)
            for o0 in range(0, O, BO):
                o = o0 + tl.arange(0, BO)
                weights = _weights(packed, i, own, o, I, O, M, MC)
                phi = dot(columns, tl.trans(weights), tl.zeros((BN, BO), compute), MODE)
                for k in range(1, slices):
                    m0 = (own + k * MC) % (slices * MC)
                    others = _columns(values, state, mask_n, m0, M, K, 0, BASE, MODE, WAY, MC)
                    phi = dot(others, tl.trans(_weights(packed, i, m0, o, I, O, M, MC)), phi, MODE)
                at = r + i.to(tl.int64) * r_stride_i + o.to(tl.int64) * r_stride_o
                signs = _sign(phi) * tl.load(at, mask=o < O, other=0.0).to(compute)[None, :]
                along += dot(operand(signs, MODE), weights, tl.zeros((BN, MC), compute), MODE)
            slopes = _slopes(values, mask_n, i, tables, own, M, K, DEPTH, BASE, WAY, MC)
            total += tl.sum(along * slopes, axis=1)
        n = n0 + tl.arange(0, BN)
        tl.store(result + n * I + i, (total / N.to(compute)).to(result.dtype.element_ty), mask=n < N)


@triton.jit
def _row_tile(xs, n0, end, i, tables, K: tl.constexpr, DEPTH: tl.constexpr, WAY: tl.constexpr, BN: tl.constexpr):
    """The inputs (BN, 1) of feature i from row n0 on, what is known of their bases, and which rows there are."""
    n = n0 + tl.arange(0, BN)
    of_feature = i + tl.arange(0, 1)
    x = load_tile(xs, n, of_feature, (n < end)[:, None]).to(tables[1].dtype.element_ty)
    return x, evaluate(x, of_feature, tables, K, 0, DEPTH, WAY), n < end


@triton.jit
def _columns(x, state, mask_n, m0, M, K: tl.constexpr, D: tl.constexpr, BASE: tl.constexpr, MODE: tl.constexpr,
             WAY: tl.constexpr, MC: tl.constexpr):  # fmt: skip
    """(rows, MC), an operand: the columns m0 ... m0 + MC - 1; 0 where there is no row, so that phi is 0 there."""
    tile = _with_base(x, bases_tile(state, m0, M, K, D, WAY, MC), m0, M, D, BASE, MC)
    return operand(tl.where(mask_n[:, None], tile, 0.0), MODE)


@triton.jit
def _slopes(x, mask_n, i, tables, m0, M, K: tl.constexpr, DEPTH: tl.constexpr, BASE: tl.constexpr, WAY: tl.constexpr,
            MC: tl.constexpr):  # fmt: skip
    """(rows, MC): the derivatives of the columns m0 ... m0 + MC - 1."""
    if K > 0:
        of_feature = i + tl.arange(0, 1)
        state = evaluate(x, of_feature, tables, K, 1, DEPTH, WAY)
        state = weighted(state, unit(x, of_feature, tables, 1, WAY), WAY)
        tile = bases_tile(state, m0, M, K, 1, WAY, MC)
    else:
        tile = tl.zeros((x.shape[0], MC), x.dtype)
    return _with_base(x, tile, m0, M, 1, BASE, MC)


@triton.jit
def _with_base(x, tile, m0, M, D: tl.constexpr, BASE: tl.constexpr, MC: tl.constexpr):
    """The tile with the base activation as column M."""
    if BASE != "none":
        tile = tl.where((m0 + tl.arange(0, MC) == M)[None, :], activation(x, D, BASE), tile)
    return tile


@triton.jit
def _weights(packed, i, m0, o, I, O, M, MC: tl.constexpr):
    """(outputs, MC): the weights of feature i and the columns m0 ... m0 + MC - 1, those from M + 1 on being 0."""
    m = m0 + tl.arange(0, MC)
    at = (m.to(tl.int64) * I + i)[None, :] * O + o[:, None]
    return tl.load(packed + at, mask=(o < O)[:, None] & (m <= M)[None, :], other=0.0)


@triton.jit
def _sign(phi):
    """0 where phi is 0 or NaN, as torch's."""
    return tl.where(phi > 0, 1.0, tl.where(phi < 0, -1.0, 0.0)).to(phi.dtype)
