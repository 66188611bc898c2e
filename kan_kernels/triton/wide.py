"""Operators for large problems: bases in memory, as operands and in bounded parts, and plain matrix products.

The bases are evaluated once instead of once per block of outputs, and the products, which load nothing but operands, keep the
tensor cores busy. A row of the matrix of bases has the slices 0 to M - 1, the bases, and the slice M, the base activation.
Column m * pitch + feature is slice m of a feature. Zeros pad each slice to the length `pitch`, so that slices are aligned.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import heuristics
from .basis import activation, basis_slice, evaluate, unit, weighted
from .heuristics import ALIGNED, ceil_div, wide_part
from .matmul import finite, operand, power_of_two_scale, rest
from .prepare import (
    OPERANDS,
    OPTIONS,
    Gradients,
    Knots,
    Layout,
    base_name,
    pack,
    search_depth,
    ways_of,
)
from .product import Operand, product
from .tiles import knots_are_for, load_tile


@triton.jit(do_not_specialize=["N", "T", "M"])
def bases_kernel(
    x,  # (N, I)
    x_stride_n,
    x_stride_i,
    w,  # (N, I) or unused
    w_stride_n,
    w_stride_i,
    bound,  # (N,) or (I,): the largest base activation of a row or of a feature, or unused; see SCALES
    knots,  # (I, T), this and the next three from `knots_kernel`
    step,  # (I,)
    origin,  # (I,)
    uniform,  # (I,)
    bases,  # out (N, stride), see the top of this file
    bases_rest,  # out, as bases: the rounding errors, for fp16x3
    inverse,  # out (N,) or (stride,): the inverses of the scales, for fp16x3
    N,
    I,
    T,
    M,
    stride,
    pitch,
    first,  # first feature and number of features of this launch
    features,
    K: tl.constexpr,
    D: tl.constexpr,
    DEPTH: tl.constexpr,
    WEIGHTED: tl.constexpr,
    BASE: tl.constexpr,  # "silu", "identity" or "none"
    MODE: tl.constexpr,
    WAY: tl.constexpr,  # evaluation method, see basis.py
    GUARDED: tl.constexpr,  # whether to return if the knots need another WAY
    SCALES: tl.constexpr,  # "rows" or "columns" for fp16x3, otherwise "none"
    SLICES: tl.constexpr,  # M to unroll over the bases, or 0
    BN: tl.constexpr,
    BI: tl.constexpr,
):
    xs = (x, x_stride_n, x_stride_i)
    ws = (w, w_stride_n, w_stride_i)
    tables = (knots, step, origin, step, T)
    if knots_are_for(uniform, I, WAY, GUARDED):
        _bases(xs, ws, bound, tables, bases, bases_rest, inverse, N, M, stride, pitch, first, features,
               K, D, DEPTH, WEIGHTED, BASE, MODE, WAY, SCALES, SLICES, BN, BI)  # fmt: skip


@triton.jit
def _bases(xs, ws, bound, tables, bases, bases_rest, inverse, N, M, stride, pitch, first, features,
           K: tl.constexpr, D: tl.constexpr, DEPTH: tl.constexpr, WEIGHTED: tl.constexpr, BASE: tl.constexpr,
           MODE: tl.constexpr, WAY: tl.constexpr, SCALES: tl.constexpr, SLICES: tl.constexpr,
           BN: tl.constexpr, BI: tl.constexpr):  # fmt: skip
    n = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    inner = tl.program_id(1) * BI + tl.arange(0, BI)
    i = first + inner
    mask = (n < N)[:, None] & (inner < features)[None, :]
    x = load_tile(xs, n, i, mask).to(tl.float32)
    valid = first + tl.minimum(inner, features - 1)
    state = evaluate(x, valid, tables, K, D, DEPTH, WAY)
    if WEIGHTED or (D > 0 and WAY != "adaptive"):
        factor = unit(x, valid, tables, D, WAY)
        if WEIGHTED:
            factor = factor * load_tile(ws, n, i, mask).to(tl.float32)
        state = weighted(state, factor, WAY)
    inside = inner < features  # the padding gets zeros
    stored = (n < N)[:, None] & (inner < pitch)[None, :]
    if SCALES == "rows":
        largest = 1.0
        if BASE != "none":
            largest = tl.maximum(tl.load(bound + n, mask=n < N, other=0.0), 1.0)
        scale, inverse_scale = power_of_two_scale(largest + tl.zeros((BN,), tl.float32))
        base_scale = scale[:, None]
        state = weighted(state, base_scale, WAY)
        if tl.program_id(1) == 0:
            tl.store(inverse + n, inverse_scale, mask=n < N)
    elif SCALES == "columns":
        scale, inverse_scale = power_of_two_scale(tl.full((1, BI), 1.0, tl.float32))
        state = weighted(state, scale, WAY)
        if tl.program_id(0) == 0:
            for m in range(M):
                tl.store(inverse + m * pitch + inner[None, :], inverse_scale, mask=(inner < pitch)[None, :])
        if BASE != "none":
            largest = tl.maximum(tl.load(bound + i, mask=inside, other=0.0), 0.28)
            base_scale, inverse_scale = power_of_two_scale(largest[None, :])
            if tl.program_id(0) == 0:
                tl.store(inverse + M * pitch + inner[None, :], inverse_scale, mask=(inner < pitch)[None, :])
    at = n[:, None] * stride + inner[None, :]
    if SLICES > 0:
        for m in tl.static_range(0, SLICES):
            _store(bases, bases_rest, at + m * pitch, basis_slice(state, m, K, D, WAY), inside, stored, MODE)
    else:
        for m in range(M):
            _store(bases, bases_rest, at + m * pitch, basis_slice(state, m, K, D, WAY), inside, stored, MODE)
    if BASE != "none":
        value = activation(x, D, BASE)
        if WEIGHTED:
            value = value * load_tile(ws, n, i, mask).to(tl.float32)
        if SCALES != "none":
            value = value * base_scale
        _store(bases, bases_rest, at + M * pitch, value, inside, stored, MODE)


@triton.jit
def _store(high, low, at, value, inside, mask, MODE: tl.constexpr):
    value = tl.where(inside[None, :], value, 0.0)
    rounded = operand(value, MODE)
    tl.store(high + at, rounded, mask=mask)
    if MODE == "fp16x3":
        tl.store(low + at, rest(finite(value), finite(rounded)), mask=mask)


@triton.jit(do_not_specialize=["N"])
def split_kernel(
    g,  # (N, O)
    g_stride_n,
    g_stride_o,
    bound,  # (N,) or (O,): the largest |g| of a row or of a column
    high,  # out (N, O): g times a power of two, rounded to float16
    low,  # out (N, O): the rounding errors
    inverse,  # out, as bound: the inverse of the power of two
    N,
    O,
    ROWS: tl.constexpr,  # whether a row has a scale, or a column
    BN: tl.constexpr,
    BO: tl.constexpr,
):
    n = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    o = tl.program_id(1) * BO + tl.arange(0, BO)
    mask = (n < N)[:, None] & (o < O)[None, :]
    if ROWS:
        scale, inverse_scale = power_of_two_scale(tl.load(bound + n, mask=n < N, other=0.0))
        tl.store(inverse + n, inverse_scale, mask=n < N)
        scale = scale[:, None]
    else:
        scale, inverse_scale = power_of_two_scale(tl.load(bound + o, mask=o < O, other=0.0))
        tl.store(inverse + o, inverse_scale, mask=o < O)
        scale = scale[None, :]
    value = load_tile((g, g_stride_n, g_stride_o), n, o, mask) * scale
    rounded = operand(value, "fp16x3")
    at = n[:, None] * O + o[None, :]
    tl.store(high + at, rounded, mask=mask)
    tl.store(low + at, rest(value, rounded), mask=mask)


@triton.jit(do_not_specialize=["N", "T", "M"])
def contract_kernel(
    x,  # (N, I)
    x_stride_n,
    x_stride_i,
    knots,  # (I, T), this and the next three from `knots_kernel`
    step,  # (I,)
    origin,  # (I,)
    uniform,  # (I,)
    along,  # (N, stride): g times the weights, see the top of this file
    result,  # out (N, I)
    N,
    I,
    T,
    M,
    stride,
    pitch,
    K: tl.constexpr,
    D: tl.constexpr,
    DEPTH: tl.constexpr,
    BASE: tl.constexpr,  # "silu", "identity" or "none"
    SLICES: tl.constexpr,  # M to unroll over the bases, or 0
    WAY: tl.constexpr,  # evaluation method, see basis.py
    GUARDED: tl.constexpr,  # whether to return if the knots need another WAY
    BN: tl.constexpr,
    BI: tl.constexpr,
):
    xs = (x, x_stride_n, x_stride_i)
    tables = (knots, step, origin, step, T)
    if knots_are_for(uniform, I, WAY, GUARDED):
        _contract(xs, tables, along, result, N, I, M, stride, pitch, K, D, DEPTH, BASE, SLICES, WAY, BN, BI)


@triton.jit
def _contract(xs, tables, along, result, N, I, M, stride, pitch,
              K: tl.constexpr, D: tl.constexpr, DEPTH: tl.constexpr, BASE: tl.constexpr, SLICES: tl.constexpr,
              WAY: tl.constexpr, BN: tl.constexpr, BI: tl.constexpr):  # fmt: skip
    n = tl.program_id(0).to(tl.int64) * BN + tl.arange(0, BN)
    i = tl.program_id(1) * BI + tl.arange(0, BI)
    mask = (n < N)[:, None] & (i < I)[None, :]
    x = load_tile(xs, n, i, mask).to(tl.float32)
    valid = tl.minimum(i, I - 1)
    state = evaluate(x, valid, tables, K, D, DEPTH, WAY)
    at = along + n[:, None] * stride + i[None, :]
    total = tl.zeros((BN, BI), tl.float32)
    if SLICES > 0:
        for m in tl.static_range(0, SLICES):
            total += tl.load(at + m * pitch, mask=mask, other=0.0) * basis_slice(state, m, K, D, WAY)
    else:
        for m in range(M):
            total += tl.load(at + m * pitch, mask=mask, other=0.0) * basis_slice(state, m, K, D, WAY)
    total = total * unit(x, valid, tables, D, WAY)
    if BASE != "none":
        total += tl.load(at + M * pitch, mask=mask, other=0.0) * activation(x, D, BASE)
    tl.store(result + n[:, None] * I + i[None, :], total.to(result.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["N", "rows"])
def largest_of_columns_kernel(
    x,  # (N, C)
    x_stride_n,
    x_stride_c,
    largest,  # out (P, C): the largest value of a column in the rows of a program, at least 0; it ignores NaN
    N,
    C,
    rows,  # per program
    ABSOLUTE: tl.constexpr,
    BN: tl.constexpr,
    BC: tl.constexpr,
):
    begin = tl.program_id(0).to(tl.int64) * rows
    end = tl.minimum(begin + rows, N)
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    found = tl.zeros((BN, BC), tl.float32)
    for n0 in range(begin, end, BN):
        n = n0 + tl.arange(0, BN)
        value = load_tile((x, x_stride_n, x_stride_c), n, c, (n < end)[:, None] & (c < C)[None, :])
        if ABSOLUTE:
            value = tl.abs(value)
        found = tl.maximum(found, value)
    tl.store(largest + tl.program_id(0).to(tl.int64) * C + c, tl.max(found, axis=0), mask=c < C)


def _largest_of_columns(x: Tensor, absolute: bool) -> Tensor:
    (N, C), rows = x.shape, 512
    tiles = heuristics.bases_tiles(C)
    largest = x.new_empty(ceil_div(N, rows), C)
    largest_of_columns_kernel[(largest.shape[0], ceil_div(C, tiles["BI"]))](
        x, *x.stride(), largest, N, C, rows, ABSOLUTE=absolute,
        BN=tiles["BN"], BC=tiles["BI"], num_warps=tiles["num_warps"], **OPTIONS,
    )  # fmt: skip
    return largest.amax(0)


class Problem(NamedTuple):
    """What the kernels of this file need beside the tensors."""

    tables: Knots
    K: int
    M: int
    base: str
    D: int
    mode: str

    @property
    def slices(self) -> int:
        return self.M + (self.base != "none")

    @property
    def unrolled(self) -> int:
        return self.M if self.M <= heuristics.UNROLLED_BASES else 0

    @property
    def itemsize(self) -> int:
        """Return the bytes of an operand, for fp16x3 of two."""
        return OPERANDS[self.mode].itemsize * (2 if self.mode == "fp16x3" else 1)


def _pitch(features: int) -> int:
    return ceil_div(features, ALIGNED) * ALIGNED


def _bases_of(
    x: Tensor, w: Tensor | None, p: Problem, bound: Tensor | None, scales: str, first: int, features: int
) -> Operand:
    """Return the bases and the base activation of some features.

    For fp16x3, `scales` says whether rows or columns have scales, and bound holds the largest base activation of each.
    """
    (N, I), T, pitch = x.shape, p.tables.knots.shape[1], _pitch(features)
    high = x.new_empty(N, p.slices * pitch, dtype=OPERANDS[p.mode])
    low, inverse = high, high
    if p.mode == "fp16x3":
        low, inverse = torch.empty_like(high), x.new_empty(N if scales == "rows" else p.slices * pitch)
    weight = x if w is None else w
    tiles = heuristics.bases_tiles(features)
    for way, guarded in ways_of(p.mode, p.K, p.D):
        bases_kernel[(ceil_div(N, tiles["BN"]), ceil_div(pitch, tiles["BI"]))](
            x, *x.stride(), weight, *weight.stride(), x if bound is None else bound,
            p.tables.knots, p.tables.step, p.tables.origin, p.tables.uniform, high, low, inverse,
            N, I, T, p.M, p.slices * pitch, pitch, first, features, K=p.K, D=p.D, DEPTH=search_depth(T),
            WEIGHTED=w is not None, BASE=p.base, MODE=p.mode, WAY=way, GUARDED=guarded,
            SCALES=scales if p.mode == "fp16x3" else "none", SLICES=p.unrolled, **tiles, **OPTIONS,
        )  # fmt: skip
    return Operand(high, low, inverse)


def _gradient_of(g: Tensor, mode: str, scales: str) -> Operand:
    """Return g as operands; for fp16x3, with a scale for every row or column."""
    if mode != "fp16x3":
        high = g.to(OPERANDS[mode])
        return Operand(high, high, high)
    N, O = g.shape
    bound = _largest_of_columns(g, True) if scales == "columns" else torch.linalg.vector_norm(g, float("inf"), 1)
    high = g.new_empty(N, O, dtype=torch.float16)
    low, inverse = torch.empty_like(high), torch.empty_like(bound)
    tiles = heuristics.bases_tiles(O)
    split_kernel[(ceil_div(N, tiles["BN"]), ceil_div(O, tiles["BI"]))](
        g, *g.stride(), bound, high, low, inverse, N, O, ROWS=scales == "rows",
        BN=tiles["BN"], BO=tiles["BI"], num_warps=tiles["num_warps"], **OPTIONS,
    )  # fmt: skip
    return Operand(high, low, inverse)


def _weights_of(spline_weight: Tensor, spline_scaler: Tensor | None, base_weight: Tensor | None, p: Problem) -> Operand:
    """Return the weights (O, slices * pitch), in the order of the bases' columns."""
    (O, I, M), pitch = spline_weight.shape, _pitch(spline_weight.shape[1])
    width = p.slices * pitch
    if base_weight is None:  # its zeros go behind the matrix
        layout = Layout(M, (1, pitch, width), (1, I), base=O * width, size=O * (width + I))
    else:
        layout = Layout(M, (1, pitch, width), (1, width), base=M * pitch, size=O * width)
    packed = pack(spline_weight, spline_scaler, base_weight, p.mode, layout)
    high, low = (matrix[: O * width].view(O, width) for matrix in (packed.packed, packed.packed_rest))
    if pitch > I:
        for matrix in (high, low):
            matrix.view(O, p.slices, pitch)[:, :, I:].zero_()
    return Operand(high, low, packed.inverse_scale)


def _parts(count: int, bytes_of_one: int, multiple: int) -> list[slice]:
    """Return about equal parts of rows or features, such that what a part needs in memory fits the scratch."""
    most = wide_part(count, bytes_of_one)
    size = ceil_div(count, ceil_div(count, most))
    if most >= multiple:
        size = min(most // multiple, ceil_div(size, multiple)) * multiple
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def forward(
    x: Tensor, w: Tensor | None, spline_weight: Tensor, spline_scaler: Tensor | None, tables: Knots,
    base_weight: Tensor | None, activation: str, K: int, D: int, mode: str,
) -> Tensor:  # fmt: skip
    (N, I), (O, _, M) = x.shape, spline_weight.shape
    p = Problem(tables, K, M, base_name(base_weight, activation), D, mode)
    weights = _weights_of(spline_weight, spline_scaler, base_weight, p).turned()
    y = x.new_empty(N, O)
    for part in _parts(N, p.slices * _pitch(I) * p.itemsize, 128):
        bound = None
        if mode == "fp16x3" and p.base != "none":
            # SiLU's least value is -0.28, so large negative inputs must not determine the scale.
            bound = torch.amax(x[part], 1) if p.base == "silu" else torch.linalg.vector_norm(x[part], float("inf"), 1)
        bases = _bases_of(x[part], None if w is None else w[part], p, bound, "rows", 0, I)
        product(bases, weights, mode, y[part])
    return y


def backward_input(
    x: Tensor, g: Tensor, spline_weight: Tensor, spline_scaler: Tensor | None, tables: Knots,
    base_weight: Tensor | None, activation: str, K: int, D: int, mode: str,
) -> Tensor:  # fmt: skip
    (N, I), (O, _, M), T = x.shape, spline_weight.shape, tables.knots.shape[1]
    p = Problem(tables, K, M, base_name(base_weight, activation), D, mode)
    weights = _weights_of(spline_weight, spline_scaler, base_weight, p)
    result, pitch = x.new_empty(N, I), _pitch(I)
    tiles = heuristics.bases_tiles(I)
    for part in _parts(N, p.slices * pitch * 4 + O * p.itemsize, 128):
        xs, some = x[part], result[part]
        along = product(_gradient_of(g[part], mode, "rows"), weights, mode)
        for way, guarded in ways_of(mode, K, D):
            contract_kernel[(ceil_div(len(xs), tiles["BN"]), ceil_div(I, tiles["BI"]))](
                xs, *xs.stride(), tables.knots, tables.step, tables.origin, tables.uniform, along, some,
                len(xs), I, T, M, p.slices * pitch, pitch, K=K, D=D, DEPTH=search_depth(T), BASE=p.base,
                SLICES=p.unrolled, WAY=way, GUARDED=guarded, **tiles, **OPTIONS,
            )  # fmt: skip
    return result


def backward_weight(
    x: Tensor, w: Tensor | None, g: Tensor, tables: Knots, gradients: Gradients, K: int, M: int, activation: str,
    D: int, mode: str,
) -> None:  # fmt: skip
    """Write the gradients of some features at a time, for all rows or, if there are very many, the sum over parts of them."""
    (N, I), O = x.shape, g.shape[1]
    p = Problem(tables, K, M, activation if gradients.needs[2] else "none", D, mode)
    gradient = _gradient_of(g, mode, "columns")
    bound = None
    if mode == "fp16x3" and p.base != "none":
        bound = _largest_of_columns(x, p.base == "identity")
    parts_of_rows = _parts(N, p.slices * ALIGNED * p.itemsize, 512)
    for part in _parts(I, parts_of_rows[0].stop * p.slices * p.itemsize, 64):
        features, total = part.stop - part.start, None
        for rows in parts_of_rows:
            some_w = None if w is None else w[rows]
            bases = _bases_of(x[rows], some_w, p, bound, "columns", part.start, features)
            of_rows = Operand(gradient.high[rows], gradient.low[rows], gradient.inverse)
            summed = product(bases.turned(), of_rows, mode)
            total = summed if total is None else total.add_(summed)
        assert total is not None
        total = total.view(1, p.slices, _pitch(features), O)[:, :, :features]
        gradients.finish(total.contiguous(), part.start)
