"""All gradients of a layer so small that its weights and their gradients fit one program: x and g are read once.

The weights are the columns of one tile, column = feature * MC + basis. Products are of three tf32 (or float32's own, where
there are none): sums over few outputs need no scale, and the matrix units are not what limits so small a layer.
"""

import triton
import triton.language as tl

from .basis import activation, bases_tile, evaluate, unit
from .product import dot, operand
from .tiles import knots_are_for, load_tile


@triton.jit(do_not_specialize=["N", "T", "M", "rows"])
def tiny_backward_kernel(
    x,  # (N, I)
    x_stride_n,
    x_stride_i,
    g,  # (N, O)
    g_stride_n,
    g_stride_o,
    packed,  # (M+1, I, O), from `pack_kernel`
    knots,  # (I, T), this and the next three from `knots_kernel`
    step,  # (I,)
    origin,  # (I,)
    uniform,  # (I,)
    result,  # out (N, I): the gradient of x
    partial,  # out (S, M+1, I, O): the gradients of the weights, a part of the rows each
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
    BI: tl.constexpr,
    MC: tl.constexpr,
    STAGES: tl.constexpr,
):
    xs = (x, x_stride_n, x_stride_i)
    gs = (g, g_stride_n, g_stride_o)
    tables = (knots, step, origin, step, T)
    if knots_are_for(uniform, I, WAY, GUARDED):
        _tiny_backward(xs, gs, packed, tables, result, partial, N, I, O, M, rows,
                       K, DEPTH, BASE, MODE, WAY, BN, BO, BI, MC, STAGES)  # fmt: skip


@triton.jit
def _tiny_backward(xs, gs, packed, tables, result, partial, N, I, O, M, rows,
                   K: tl.constexpr, DEPTH: tl.constexpr, BASE: tl.constexpr, MODE: tl.constexpr, WAY: tl.constexpr,
                   BN: tl.constexpr, BO: tl.constexpr, BI: tl.constexpr, MC: tl.constexpr, STAGES: tl.constexpr):  # fmt: skip
    BASES: tl.constexpr = 16  # columns of the base's products, which have 16 or more
    o = tl.arange(0, BO)
    i = tl.arange(0, BI)
    j = tl.arange(0, BASES)
    column = tl.arange(0, MC * BI)
    row = (column % MC) * I + column // MC
    mask_row = (column % MC < M) & (column // MC < I)
    valid = tl.minimum(i, I - 1)
    weights = tl.load(packed + row[None, :] * O + o[:, None], mask=mask_row[None, :] & (o < O)[:, None], other=0.0)
    mask_base = (j < I)[None, :] & (o < O)[:, None]
    base = tl.load(packed + (M * I + j)[None, :] * O + o[:, None], mask=mask_base, other=0.0)
    acc = tl.zeros((BO, MC * BI), tl.float32)
    base_acc = tl.zeros((BO, BASES), tl.float32)
    begin = tl.program_id(0).to(tl.int64) * rows
    end = tl.minimum(begin + rows, N)
    for n0 in tl.range(begin, end, BN, num_stages=STAGES):
        n = n0 + tl.arange(0, BN)
        mask_n = (n < end)[:, None]
        gradient = operand(load_tile(gs, n, o, mask_n & (o < O)[None, :]), MODE)
        x = load_tile(xs, n, i, mask_n & (i < I)[None, :]).to(tl.float32)
        along = dot(gradient, weights, tl.zeros((BN, MC * BI), tl.float32), MODE)
        slopes = bases_tile(evaluate(x, valid, tables, K, 1, DEPTH, WAY), 0, M, K, 1, WAY, MC)
        slope = tl.sum(tl.reshape(slopes * along, (BN, BI, MC)), axis=2) * unit(x, valid, tables, 1, WAY)
        turned = tl.trans(gradient)
        bases = operand(bases_tile(evaluate(x, valid, tables, K, 0, DEPTH, WAY), 0, M, K, 0, WAY, MC), MODE)
        # Tensor cores truncate their sums: what a tile adds is rounded outside of them.
        acc += dot(turned, bases, tl.zeros((BO, MC * BI), tl.float32), MODE)
        if BASE != "none":
            y = load_tile(xs, n, j, mask_n & (j < I)[None, :]).to(tl.float32)
            along = dot(gradient, base, tl.zeros((BN, BASES), tl.float32), MODE) * activation(y, 1, BASE)
            slope += _first_columns(along, BN, BASES, BI)
            base_acc += dot(turned, operand(activation(y, 0, BASE), MODE), tl.zeros((BO, BASES), tl.float32), MODE)
        at = result + n[:, None] * I + i[None, :]
        tl.store(at, slope.to(result.dtype.element_ty), mask=mask_n & (i < I)[None, :])
    part = partial + tl.program_id(0).to(tl.int64) * (M + 1) * I * O
    tl.store(part + row[None, :] * O + o[:, None], acc, mask=mask_row[None, :] & (o < O)[:, None])
    if BASE != "none":
        tl.store(part + (M * I + j)[None, :] * O + o[:, None], base_acc, mask=mask_base)


@triton.jit
def _first_columns(tile, ROWS: tl.constexpr, COLUMNS: tl.constexpr, WANTED: tl.constexpr):
    """(ROWS, WANTED) of a tile (ROWS, COLUMNS) that is zero from column WANTED on."""
    return tl.sum(tl.reshape(tile, (ROWS, COLUMNS // WANTED, WANTED)), axis=1)
