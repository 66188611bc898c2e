"""All gradients of a small layer, whose weights and their gradients fit one program, in one pass over x and g.

The weights are the columns of one tile, column = feature * MC + basis. Products use three tf32 products, or float32 where tf32
is not available. Sums over few outputs need no scaling, and the matrix units do not limit such a small layer.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..reference import infer_spline_order
from .backward_input import spline_backward_input
from .backward_weight import spline_backward_weight
from .basis import activation, bases_tile, evaluate, unit
from .heuristics import (
    regime,
    tiny_split,
    tiny_tiles,
)
from .matmul import dot, operand
from .prepare import (
    Gradients,
    base_name,
    constants,
    exact_mode,
    mode_of,
    pack,
    prepare_knots,
    search_depth,
    slices_of_edges,
    ways_of,
)
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
    partial,  # out (S, M+1, I, O): the gradients of the weights, over a part of the rows each
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
    BASES: tl.constexpr = 16  # columns of the base's products, at least 16
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
        # Tensor cores truncate sums, so each tile is accumulated outside of them.
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
    """Return the first WANTED columns of a tile (ROWS, COLUMNS) whose other columns are zero."""
    return tl.sum(tl.reshape(tile, (ROWS, COLUMNS // WANTED, WANTED)), axis=1)


def spline_backward(
    x: Tensor, w: Tensor | None, g: Tensor, spline_weight: Tensor, spline_scaler: Tensor | None, grid: Tensor,
    base_weight: Tensor | None, activation: str, derivative: int,
    need_spline_weight: bool, need_spline_scaler: bool, need_base_weight: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    (N, I), (O, _, M), T = x.shape, spline_weight.shape, grid.shape[1]
    K, needs = infer_spline_order(M, T), (need_spline_weight, need_spline_scaler, need_base_weight)
    plain = w is None and derivative == 0 and N > 0
    if plain and regime("spline_backward", mode_of(x.dtype), N, I, O, K, M, 0, False) == "tiny":
        return _in_one_pass(x, g, spline_weight, spline_scaler, grid, base_weight, activation, K, needs)
    slope = spline_backward_input(x, g, spline_weight, spline_scaler, grid, base_weight, activation, derivative + 1)
    gradients = spline_backward_weight(x, w, g, spline_weight, spline_scaler, grid, K, activation, derivative, *needs)
    return slope if w is None else slope.mul_(w), *gradients


def _in_one_pass(
    x: Tensor, g: Tensor, spline_weight: Tensor, spline_scaler: Tensor | None, grid: Tensor, base_weight: Tensor | None,
    activation: str, K: int, needs: tuple[bool, bool, bool],
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    (N, I), (O, _, M), T = x.shape, spline_weight.shape, grid.shape[1]
    mode = mode_of(x.dtype)
    if mode == "fp16x3":
        mode = exact_mode()
    S, rows = tiny_split(N)
    with torch.cuda.device_of(x):
        tables = prepare_knots(x, grid, K, 1, mode)
        packed = pack(spline_weight, spline_scaler, base_weight, mode, slices_of_edges(M, I, O, outputs_last=True)).packed
        result = x.new_empty(N, I)
        partial = tables.step.new_empty(S, M + 1, I, O)
        gradients = Gradients(x, spline_weight, spline_scaler, (O, I, M), needs)
        for way, guarded in ways_of(mode, K, 1):
            tiny_backward_kernel[(S,)](
                x, *x.stride(), g, *g.stride(), packed, tables.knots, tables.step, tables.origin, tables.uniform,
                result, partial, N, I, O, T, M, rows, K=K, DEPTH=search_depth(T), BASE=base_name(base_weight, activation),
                MODE=mode, WAY=way, GUARDED=guarded, **constants(tiny_tiles(I)),
            )  # fmt: skip
        gradients.finish(partial, 0)
    return result, *gradients.tensors
