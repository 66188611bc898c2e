"""Operators for many outputs: bases in memory, in the operands' type and in bounded parts, with the vendor's matrix products.

The bases are evaluated once instead of once per block of outputs, and the products run at the vendor's speed. From about a
thousand outputs on, this outweighs the memory traffic. Column of a matrix of bases: feature * M + basis, as in
spline_weight (O, I, M).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .basis import activation, bases_tile, evaluate, unit, weighted
from .heuristics import (
    BASES_TILES,
    ceil_div,
    wide_part,
)
from .matmul import operand
from .prepare import (
    OPERANDS,
    OPTIONS,
    Gradients,
    Knots,
    base_name,
    search_depth,
    ways_of,
)
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
    WAY: tl.constexpr,  # evaluation method, see basis.py
    GUARDED: tl.constexpr,  # whether to return if the knots need another WAY
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


_CONSTANTS = {name: getattr(BASES_TILES, name) for name in ("BN", "BI", "MC", "num_warps")} | OPTIONS


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Return the product a b of operands in float32."""
    if a.dtype is torch.float32:
        return torch.mm(a, b)
    if a.device.type == "cpu":
        return torch.mm(a.float(), b.float())  # for Triton's interpreter
    return torch.mm(a, b, out_dtype=torch.float32)


def _operands(
    x: Tensor, w: Tensor | None, tables: Knots, K: int, M: int, base: str, D: int, mode: str, first: int, features: int
) -> tuple[Tensor, Tensor]:
    """Return the bases (N, features * M) and the base activation (N, features) of some features as operands."""
    (N, I), T = x.shape, tables.knots.shape[1]
    bases = x.new_empty(N, features * M, dtype=OPERANDS[mode])
    values = bases.new_empty(N, features if base != "none" else 0)
    weight = x if w is None else w
    for way, guarded in ways_of(mode, K, D):
        bases_kernel[(ceil_div(N, BASES_TILES.BN), ceil_div(features, BASES_TILES.BI))](
            x, *x.stride(), weight, *weight.stride(), tables.knots, tables.step, tables.origin, tables.uniform, bases, values,
            N, I, T, M, first, features, K=K, D=D, DEPTH=search_depth(T), WEIGHTED=w is not None, BASE=base, MODE=mode,
            WAY=way, GUARDED=guarded, **_CONSTANTS,
        )  # fmt: skip
    return bases, values


def forward(
    x: Tensor, w: Tensor | None, spline_weight: Tensor, tables: Knots, base_weight: Tensor | None, activation: str,
    K: int, D: int, mode: str,
) -> Tensor:  # fmt: skip
    (N, I), (O, _, M), operand = x.shape, spline_weight.shape, OPERANDS[mode]
    y = x.new_empty(N, O)
    matrix = spline_weight.to(operand).reshape(O, I * M).t()
    base = None if base_weight is None else base_weight.to(operand).t()
    rows = wide_part(N, I * (M + 1) * operand.itemsize + 2 * O * 4)
    for n in range(0, N, rows):
        part = slice(n, min(n + rows, N))
        some_w = None if w is None else w[part]
        bases, values = _operands(x[part], some_w, tables, K, M, base_name(base_weight, activation), D, mode, 0, I)
        total = _product(bases, matrix) if D <= K else 0.0
        if base is not None:
            total = total + _product(values, base)
        y[part] = total
    return y


def backward_input(
    x: Tensor, g: Tensor, spline_weight: Tensor, tables: Knots, base_weight: Tensor | None, activation: str,
    K: int, D: int, mode: str,
) -> Tensor:  # fmt: skip
    (N, I), (O, _, M), T, operand = x.shape, spline_weight.shape, tables.knots.shape[1], OPERANDS[mode]
    result = x.new_empty(N, I)
    matrix = spline_weight.to(operand).reshape(O, I * M)
    base = None if base_weight is None else base_weight.to(operand)
    rows = wide_part(N, I * (M + 1) * 4 + O * operand.itemsize)
    for n in range(0, N, rows):
        part = slice(n, min(n + rows, N))
        xs, gs, some = x[part], g[part].to(operand), result[part]
        along = _product(gs, matrix) if D <= K else some
        along_base = some if base is None else _product(gs, base)
        for way, guarded in ways_of(mode, K, D):
            contract_kernel[(ceil_div(len(xs), BASES_TILES.BN), ceil_div(I, BASES_TILES.BI))](
                xs, *xs.stride(), tables.knots, tables.step, tables.origin, tables.uniform, along, along_base, some,
                len(xs), I, T, M, K=K, D=D, DEPTH=search_depth(T), BASE=base_name(base_weight, activation),
                WAY=way, GUARDED=guarded, **_CONSTANTS,
            )  # fmt: skip
    return result


def backward_weight(
    x: Tensor, w: Tensor | None, g: Tensor, tables: Knots, gradients: Gradients, K: int, M: int, activation: str,
    D: int, mode: str,
) -> None:  # fmt: skip
    """Write the gradients for all rows and some features at a time, with one product per part."""
    (N, I), O, operand = x.shape, g.shape[1], OPERANDS[mode]
    need_spline_weight, need_spline_scaler, need_base_weight = gradients.needs
    of_spline_weight, of_spline_scaler, of_base_weight = gradients.tensors
    base = activation if need_base_weight else "none"
    turned = g.to(operand).t()
    features = wide_part(I, N * (M + 1) * operand.itemsize + 2 * M * O * 4)
    for i in range(0, I, features):
        part = slice(i, min(i + features, I))
        bases, values = _operands(x, w, tables, K, M, base, D, mode, i, part.stop - i)
        if need_spline_weight or need_spline_scaler:
            gradient = _product(turned, bases).view(O, -1, M) if D <= K else x.new_zeros(O, part.stop - i, M)
            if need_spline_scaler:
                of_spline_scaler[:, part] = (gradient * gradients.spline_weight[:, part]).sum(2)
            if need_spline_weight:
                if gradients.scaled:
                    gradient = gradient * gradients.spline_scaler[:, part].unsqueeze(2)
                of_spline_weight[:, part] = gradient
        if need_base_weight:
            of_base_weight[:, part] = _product(turned, values)
