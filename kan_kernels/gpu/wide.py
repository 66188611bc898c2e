"""For many outputs: the bases in the operands' type in memory, a bounded part at a time, and the vendor's matrix products.

The bases are evaluated once, not once for each block of outputs, and the product runs at the vendor's speed: for more than
some thousand outputs this is worth the trip through memory. Column of a matrix of bases: feature * M + basis, as in
spline_weight (O, I, M).
"""

import triton
import triton.language as tl

from .basis import activation, bases_tile, evaluate, unit, weighted
from .product import operand
from .tiles import knots_are_for, load_tile


@triton.jit(do_not_specialize=["N", "T", "M", "first", "features"])
def bases_kernel(
    x,  # (N, I)
    x_stride_n,
    x_stride_i,
    w,  # (N, I) or unused
    w_stride_n,
    w_stride_i,
    knots,  # (I, T), this and the next three from `knots_kernel`
    step,  # (I,)
    origin,  # (I,)
    uniform,  # (I,)
    bases,  # out (N, features * M)
    base_values,  # out (N, features): the base activation, or unused
    N,
    I,
    T,
    M,
    first,  # feature, and how many: those of this launch
    features,
    K: tl.constexpr,
    D: tl.constexpr,
    DEPTH: tl.constexpr,
    WEIGHTED: tl.constexpr,
    BASE: tl.constexpr,  # "silu", "identity" or "none"
    MODE: tl.constexpr,
    WAY: tl.constexpr,  # of evaluation, see basis.py
    GUARDED: tl.constexpr,  # whether to do nothing if the knots are for another way
    BN: tl.constexpr,
    BI: tl.constexpr,
    MC: tl.constexpr,
):
    xs = (x, x_stride_n, x_stride_i)
    ws = (w, w_stride_n, w_stride_i)
    tables = (knots, step, origin, step, T)
    if knots_are_for(uniform, I, WAY, GUARDED):
        _bases(xs, ws, tables, bases, base_values, N, M, first, features, K, D, DEPTH, WEIGHTED, BASE, MODE, WAY, BN, BI, MC)


@triton.jit
def _bases(xs, ws, tables, bases, base_values, N, M, first, features,
           K: tl.constexpr, D: tl.constexpr, DEPTH: tl.constexpr, WEIGHTED: tl.constexpr, BASE: tl.constexpr,
           MODE: tl.constexpr, WAY: tl.constexpr, BN: tl.constexpr, BI: tl.constexpr, MC: tl.constexpr):  # fmt: skip
    n = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    inner = tl.program_id(1) * BI + tl.arange(0, BI)
    i = first + inner
    mask = (n < N)[:, None] & (inner < features)[None, :]
    x = load_tile(xs, n, i, mask).to(tl.float32)
    factor = tl.full((BN, BI), 1.0, tl.float32)
    if WEIGHTED:
        factor = load_tile(ws, n, i, mask).to(tl.float32)
    if D <= K:
        valid = first + tl.minimum(inner, features - 1)
        state = evaluate(x, valid, tables, K, D, DEPTH, WAY)
        if WEIGHTED or (D > 0 and WAY != "adaptive"):
            state = weighted(state, factor * unit(x, valid, tables, D, WAY), WAY)
        column = tl.arange(0, MC * BI)
        feature = tl.program_id(1) * BI + column // MC
        for m0 in range(0, M, MC):
            m = m0 + column % MC
            at = n[:, None] * features * M + (feature * M + m)[None, :]
            keep = (n < N)[:, None] & ((m < M) & (feature < features))[None, :]
            tl.store(bases + at, operand(bases_tile(state, m0, M, K, D, WAY, MC), MODE), mask=keep)
    if BASE != "none":
        value = activation(x, D, BASE) * factor
        tl.store(base_values + n[:, None] * features + inner[None, :], operand(value, MODE), mask=mask)


@triton.jit(do_not_specialize=["N", "T", "M"])
def contract_kernel(
    x,  # (N, I)
    x_stride_n,
    x_stride_i,
    knots,  # (I, T), this and the next three from `knots_kernel`
    step,  # (I,)
    origin,  # (I,)
    uniform,  # (I,)
    along,  # (N, I * M): g times the bases' weights
    along_base,  # (N, I): g times the base's weights, or unused
    result,  # out (N, I)
    N,
    I,
    T,
    M,
    K: tl.constexpr,
    D: tl.constexpr,
    DEPTH: tl.constexpr,
    BASE: tl.constexpr,  # "silu", "identity" or "none"
    WAY: tl.constexpr,  # of evaluation, see basis.py
    GUARDED: tl.constexpr,  # whether to do nothing if the knots are for another way
    BN: tl.constexpr,
    BI: tl.constexpr,
    MC: tl.constexpr,
):
    xs = (x, x_stride_n, x_stride_i)
    tables = (knots, step, origin, step, T)
    if knots_are_for(uniform, I, WAY, GUARDED):
        _contract(xs, tables, along, along_base, result, N, I, M, K, D, DEPTH, BASE, WAY, BN, BI, MC)


@triton.jit
def _contract(xs, tables, along, along_base, result, N, I, M,
              K: tl.constexpr, D: tl.constexpr, DEPTH: tl.constexpr, BASE: tl.constexpr, WAY: tl.constexpr,
              BN: tl.constexpr, BI: tl.constexpr, MC: tl.constexpr):  # fmt: skip
    n = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    i = tl.program_id(1) * BI + tl.arange(0, BI)
    mask = (n < N)[:, None] & (i < I)[None, :]
    x = load_tile(xs, n, i, mask).to(tl.float32)
    total = tl.zeros((BN, BI), tl.float32)
    if D <= K:
        valid = tl.minimum(i, I - 1)
        state = evaluate(x, valid, tables, K, D, DEPTH, WAY)
        column = tl.arange(0, MC * BI)
        feature = tl.program_id(1) * BI + column // MC
        for m0 in range(0, M, MC):
            m = m0 + column % MC
            at = n[:, None] * I * M + (feature * M + m)[None, :]
            keep = (n < N)[:, None] & ((m < M) & (feature < I))[None, :]
            products = tl.load(along + at, mask=keep, other=0.0) * bases_tile(state, m0, M, K, D, WAY, MC)
            total += tl.sum(tl.reshape(products, (BN, BI, MC)), axis=2)
        total = total * unit(x, valid, tables, D, WAY)
    if BASE != "none":
        total += tl.load(along_base + n[:, None] * I + i[None, :], mask=mask, other=0.0) * activation(x, D, BASE)
    tl.store(result + n[:, None] * I + i[None, :], total.to(result.dtype.element_ty), mask=mask)
