"""Mean magnitudes of the edges' functions phi_{i,o} over the rows, and their gradients. phi stays in registers.

A program processes one feature. It computes phi for a tile of rows as the product of MC columns (the bases, and the base
activation as an additional column) with their weights. For more than MC columns it adds the products of slices, starting with
the slice whose gradient it computes. Every kernel that needs sign(phi) recomputes it. For full float32 precision the products
use three tf32 products, or float32: sums over few columns need no scaling.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .. import reference
from ..reference import infer_spline_order
from .basis import activation, bases_tile, evaluate, unit, weighted
from .heuristics import (
    Tiles,
    ceil_div,
    edge_split,
    edge_tiles,
)
from .matmul import dot, operand
from .prepare import (
    OPTIONS,
    Gradients,
    base_name,
    in_layout,
    mode_of,
    pack,
    prepare_knots,
    search_depth,
    slices_of_edges,
    uncompiled,
    unscaled_mode,
    ways_of,
)
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
    rows,  # per program
    K: tl.constexpr,
    DEPTH: tl.constexpr,
    BASE: tl.constexpr,  # "silu", "identity" or "none"
    MODE: tl.constexpr,
    WAY: tl.constexpr,  # evaluation method, see basis.py
    GUARDED: tl.constexpr,  # whether to return if the knots need another WAY
    BN: tl.constexpr,
    BO: tl.constexpr,
    MC: tl.constexpr,
):
    if knots_are_for(uniform, I, WAY, GUARDED):
        tables = (knots, step, origin, step, T)
        i = tl.program_id(0) % I  # neighbouring programs share cache lines of x
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
    partial,  # out (S, M+1, features, O): the gradients of the weights, over a part of the rows each
    N,
    I,
    O,
    T,
    M,
    rows,  # per program
    first,  # first feature and number of features of this launch
    features,
    K: tl.constexpr,
    DEPTH: tl.constexpr,
    BASE: tl.constexpr,  # "silu", "identity" or "none"
    MODE: tl.constexpr,
    WAY: tl.constexpr,  # evaluation method, see basis.py
    GUARDED: tl.constexpr,  # whether to return if the knots need another WAY
    BN: tl.constexpr,
    BO: tl.constexpr,
    MC: tl.constexpr,
):
    if knots_are_for(uniform, I, WAY, GUARDED):
        tables = (knots, step, origin, step, T)
        compute = step.dtype.element_ty
        slices = tl.cdiv(M + 1, MC)
        inner = tl.program_id(0) % features  # neighbouring programs share cache lines of x
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
            # Tensor cores truncate sums, so each tile is accumulated outside of them.
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
    WAY: tl.constexpr,  # evaluation method, see basis.py
    GUARDED: tl.constexpr,  # whether to return if the knots need another WAY
    BN: tl.constexpr,
    BO: tl.constexpr,
    MC: tl.constexpr,
):
    if knots_are_for(uniform, I, WAY, GUARDED):
        tables = (knots, step, origin, step, T)
        compute = step.dtype.element_ty
        slices = tl.cdiv(M + 1, MC)
        i = tl.program_id(0) % I  # neighbouring programs share cache lines of x
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
    """Return the inputs (BN, 1) of feature i from row n0 on, their state from `evaluate`, and the mask of valid rows."""
    n = n0 + tl.arange(0, BN)
    of_feature = i + tl.arange(0, 1)
    x = load_tile(xs, n, of_feature, (n < end)[:, None]).to(tables[1].dtype.element_ty)
    return x, evaluate(x, of_feature, tables, K, 0, DEPTH, WAY), n < end


@triton.jit
def _columns(x, state, mask_n, m0, M, K: tl.constexpr, D: tl.constexpr, BASE: tl.constexpr, MODE: tl.constexpr,
             WAY: tl.constexpr, MC: tl.constexpr):  # fmt: skip
    """Return the columns m0 ... m0 + MC - 1 (rows, MC) as an operand; masked rows are 0, so that their phi is 0."""
    tile = _with_base(x, bases_tile(state, m0, M, K, D, WAY, MC), m0, M, D, BASE, MC)
    return operand(tl.where(mask_n[:, None], tile, 0.0), MODE)


@triton.jit
def _slopes(x, mask_n, i, tables, m0, M, K: tl.constexpr, DEPTH: tl.constexpr, BASE: tl.constexpr, WAY: tl.constexpr,
            MC: tl.constexpr):  # fmt: skip
    """Return the derivatives (rows, MC) of the columns m0 ... m0 + MC - 1."""
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
    """Return the tile with the base activation as column M."""
    if BASE != "none":
        tile = tl.where((m0 + tl.arange(0, MC) == M)[None, :], activation(x, D, BASE), tile)
    return tile


@triton.jit
def _weights(packed, i, m0, o, I, O, M, MC: tl.constexpr):
    """Return the weights (outputs, MC) of feature i for the columns m0 ... m0 + MC - 1; those from M + 1 on are 0."""
    m = m0 + tl.arange(0, MC)
    at = (m.to(tl.int64) * I + i)[None, :] * O + o[:, None]
    return tl.load(packed + at, mask=(o < O)[:, None] & (m <= M)[None, :], other=0.0)


@triton.jit
def _sign(phi):
    """Return sign(phi), 0 for 0 and NaN as in torch."""
    return tl.where(phi > 0, 1.0, tl.where(phi < 0, -1.0, 0.0)).to(phi.dtype)


def _constants(chosen: Tiles) -> dict[str, int]:
    return {"BN": chosen.BN, "BO": chosen.BO, "MC": chosen.MC, "num_warps": chosen.num_warps} | OPTIONS


def edge_l1(
    x: Tensor, spline_weight: Tensor, spline_scaler: Tensor | None, grid: Tensor, base_weight: Tensor | None, activation: str
) -> Tensor:
    if uncompiled(x.dtype) or x.shape[0] == 0:
        return reference.edge_l1(x, spline_weight, spline_scaler, grid, base_weight, activation)
    (N, I), (O, _, M), T = x.shape, spline_weight.shape, grid.shape[1]
    K, mode = infer_spline_order(M, T), unscaled_mode(mode_of(x.dtype))
    with torch.cuda.device_of(x):
        tables = prepare_knots(x, grid, K, 0, mode)
        packed = pack(spline_weight, spline_scaler, base_weight, mode, slices_of_edges(M, I, O, outputs_last=True)).packed
        _, S, rows = edge_split(mode, N, I, O, 1)
        partial = tables.step.new_empty(S, I, O)
        chosen = edge_tiles(mode, False, O)
        for way, guarded in ways_of(mode, K, 0):
            edge_l1_kernel[(I * ceil_div(O, chosen.BO), S)](
                x, *x.stride(), packed, tables.knots, tables.step, tables.origin, tables.uniform, partial,
                N, I, O, T, M, rows, K=K, DEPTH=search_depth(T), BASE=base_name(base_weight, activation),
                MODE=mode, WAY=way, GUARDED=guarded, **_constants(chosen),
            )  # fmt: skip
        return (partial.sum(0) / N).to(x.dtype).t().contiguous()


def edge_l1_backward(
    x: Tensor, spline_weight: Tensor, spline_scaler: Tensor | None, grid: Tensor, base_weight: Tensor | None,
    activation: str, r: Tensor,
    need_input: bool, need_spline_weight: bool, need_spline_scaler: bool, need_base_weight: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    needs = (need_spline_weight, need_spline_scaler, need_base_weight)
    if uncompiled(x.dtype) or x.shape[0] == 0:
        of_x, *others = reference.edge_l1_backward(
            x, spline_weight, spline_scaler, grid, base_weight, activation, r, need_input, *needs
        )
        return of_x, *in_layout(others, spline_weight)
    (N, I), (O, _, M), T = x.shape, spline_weight.shape, grid.shape[1]
    K, mode = infer_spline_order(M, T), unscaled_mode(mode_of(x.dtype))
    with torch.cuda.device_of(x):
        tables = prepare_knots(x, grid, K, 1, mode)
        packed = pack(spline_weight, spline_scaler, base_weight, mode, slices_of_edges(M, I, O, outputs_last=True)).packed
        result = x.new_empty((N, I) if need_input else 0)
        gradients = Gradients(x, spline_weight, spline_scaler, (O, I, M), needs)
        chosen = edge_tiles(mode, True, O)
        turned = r.t().contiguous()  # for contiguous reads along the outputs
        operands = (x, *x.stride(), turned, *turned.stride(), packed, tables.knots, tables.step, tables.origin, tables.uniform)
        # A missing base_weight counts as 0, and its gradient may still be needed.
        base = activation if need_base_weight else base_name(base_weight, activation)
        common = {"K": K, "DEPTH": search_depth(T), "BASE": base, "MODE": mode} | _constants(chosen)
        if need_input:
            for way, guarded in ways_of(mode, K, 1):
                edge_l1_backward_input_kernel[(ceil_div(N, chosen.BN) * I,)](
                    *operands, result, N, I, O, T, M, WAY=way, GUARDED=guarded, **common
                )
        if any(needs):
            features, S, rows = edge_split(mode, N, I, O, M + 1)
            for first in range(0, I, features):
                some = min(features, I - first)
                partial = tables.step.new_empty(S, M + 1, some, O)
                programs = some * ceil_div(M + 1, chosen.MC) * ceil_div(O, chosen.BO)
                for way, guarded in ways_of(mode, K, 1):
                    edge_l1_backward_weight_kernel[(programs, S)](
                        *operands, partial, N, I, O, T, M, rows, first, some, WAY=way, GUARDED=guarded, **common
                    )
                gradients.finish(partial, first)
    return result, *gradients.tensors
