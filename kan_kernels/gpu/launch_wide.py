"""The operators for many outputs, see `wide.py`: bases in parts that fit the scratch, each followed by a matrix product."""

import torch
from torch import Tensor

from .choose import BASES_TILES, ceil_div, wide_part
from .prepare import OPERANDS, OPTIONS, Gradients, Knots, base_name, search_depth, ways_of
from .wide import bases_kernel, contract_kernel

_CONSTANTS = {name: getattr(BASES_TILES, name) for name in ("BN", "BI", "MC", "num_warps")} | OPTIONS


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a b of operands, in float32."""
    if a.dtype is torch.float32:
        return torch.mm(a, b)
    if a.device.type == "cpu":
        return torch.mm(a.float(), b.float())  # under Triton's interpreter
    return torch.mm(a, b, out_dtype=torch.float32)


def _bases(
    x: Tensor, w: Tensor | None, tables: Knots, K: int, M: int, base: str, D: int, mode: str, first: int, features: int
) -> tuple[Tensor, Tensor]:
    """(N, features * M) and (N, features): the bases and the base activation of some features, as operands."""
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
        bases, values = _bases(x[part], some_w, tables, K, M, base_name(base_weight, activation), D, mode, 0, I)
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
    """All rows of some features at a time: their gradients are whole after one product."""
    (N, I), O, operand = x.shape, g.shape[1], OPERANDS[mode]
    need_spline_weight, need_spline_scaler, need_base_weight = gradients.needs
    of_spline_weight, of_spline_scaler, of_base_weight = gradients.tensors
    base = activation if need_base_weight else "none"
    turned = g.to(operand).t()
    features = wide_part(I, N * (M + 1) * operand.itemsize + 2 * M * O * 4)
    for i in range(0, I, features):
        part = slice(i, min(i + features, I))
        bases, values = _bases(x, w, tables, K, M, base, D, mode, i, part.stop - i)
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
