"""The operators on tensors: scratch, strides and grids around the kernels. Arguments and results as in `reference.py`."""

import torch
from torch import Tensor

from .. import fallbacks, reference
from ..reference import spline_order
from . import launch_wide
from .backward_input import backward_input_kernel
from .backward_weight import backward_weight_kernel
from .choose import (
    backward_input_tiles,
    backward_weight_split,
    backward_weight_tiles,
    ceil_div,
    forward_bases,
    forward_split,
    forward_tiles,
    forward_unrolled,
    regime,
    tiny_split,
    tiny_tiles,
)
from .forward import forward_kernel
from .prepare import (
    Gradients,
    Layout,
    base_name,
    constants,
    exact_mode,
    in_layout,
    mode_of,
    pack,
    prepare_knots,
    search_depth,
    uncompiled,
    ways_of,
)
from .tiny import tiny_backward_kernel

MAX_DERIVATIVE = 5  # of the base activation in `basis.py`; a third nested derivative's gradients need the fourth


def _unserved(x: Tensor, derivative: int, base_weight: Tensor | None) -> bool:
    """Whether an operator has to run on the reference; logged once."""
    if base_weight is not None and derivative > MAX_DERIVATIVE:
        fallbacks.note("derivatives on a GPU run on the reference", f"the base activation's end with order {MAX_DERIVATIVE}")
        return True
    return uncompiled(x.dtype)


def _is_blackwell(x: Tensor) -> bool:
    return x.is_cuda and torch.version.hip is None and torch.cuda.get_device_capability(x.device) >= (10, 0)


def spline_forward(
    x: Tensor, w: Tensor | None, spline_weight: Tensor, spline_scaler: Tensor | None, grid: Tensor, base_weight: Tensor | None,
    activation: str, derivative: int,
) -> Tensor:  # fmt: skip
    if _unserved(x, derivative, base_weight):
        return reference.spline_forward(x, w, spline_weight, spline_scaler, grid, base_weight, activation, derivative)
    (N, I), (O, _, M), T = x.shape, spline_weight.shape, grid.shape[1]
    if N == 0:
        return x.new_empty(0, O)
    K, mode = spline_order(M, T), mode_of(x.dtype)
    with torch.cuda.device_of(x):
        tables = prepare_knots(x, grid, K, derivative, mode)
        if regime("spline_forward", mode, N, I, O, K, M) == "wide":
            effective = reference.scaled(spline_weight, spline_scaler)
            return launch_wide.forward(x, w, effective, tables, base_weight, activation, K, derivative, mode)
        unrolled = forward_unrolled(I, M, w is not None, _is_blackwell(x))
        S, of_program = forward_split(N, I, O, unrolled)
        if unrolled:
            layout = Layout(M, (1, O * I, I), (1, I))
        else:
            padded = ceil_div(M, forward_bases(unrolled)) * forward_bases(unrolled)
            layout = Layout(padded, (padded, 1, I * padded), (1, I))
        packed = pack(spline_weight, spline_scaler, base_weight, mode, layout)
        y = x.new_empty(N, O) if S == 1 else tables.step.new_empty(S, N, O)
        weight = x if w is None else w
        for way, guarded in ways_of(mode, K, derivative):
            tiles = forward_tiles(mode, way, I, O, unrolled)
            forward_kernel[(ceil_div(N, tiles.BN), ceil_div(O, tiles.BO), S)](
                x, *x.stride(), weight, *weight.stride(), *packed, *tables, y, N, I, O, T, M, of_program,
                K=K, D=derivative, DEPTH=search_depth(T), WEIGHTED=w is not None,
                BASE=base_name(base_weight, activation),
                MODE=mode, WAY=way, GUARDED=guarded, SLICES=unrolled, **constants(tiles),
            )  # fmt: skip
        return y if S == 1 else y.sum(0).to(x.dtype)


def spline_backward_input(
    x: Tensor, g: Tensor, spline_weight: Tensor, spline_scaler: Tensor | None, grid: Tensor, base_weight: Tensor | None,
    activation: str, derivative: int,
) -> Tensor:  # fmt: skip
    if _unserved(x, derivative, base_weight):
        return reference.spline_backward_input(x, g, spline_weight, spline_scaler, grid, base_weight, activation, derivative)
    (N, I), (O, _, M), T = x.shape, spline_weight.shape, grid.shape[1]
    result = x.new_empty(N, I)
    if N == 0:
        return result
    K, mode = spline_order(M, T), mode_of(x.dtype)
    with torch.cuda.device_of(x):
        tables = prepare_knots(x, grid, K, derivative, mode)
        if regime("spline_backward_input", mode, N, I, O, K, M) == "wide":
            effective = reference.scaled(spline_weight, spline_scaler)
            return launch_wide.backward_input(x, g, effective, tables, base_weight, activation, K, derivative, mode)
        packed = pack(spline_weight, spline_scaler, base_weight, mode, Layout(M, (O, I * O, 1), (O, 1)))
        for way, guarded in ways_of(mode, K, derivative):
            tiles = backward_input_tiles(mode, way)
            backward_input_kernel[(ceil_div(N, tiles.BN) * ceil_div(I, tiles.BI),)](
                x, *x.stride(), g, *g.stride(), *packed, tables.knots, tables.step, tables.origin, tables.uniform, result,
                N, I, O, T, M, K=K, D=derivative, DEPTH=search_depth(T), BASE=base_name(base_weight, activation),
                MODE=mode, WAY=way, GUARDED=guarded, **constants(tiles),
            )  # fmt: skip
    return result


def spline_backward_weight(
    x: Tensor, w: Tensor | None, g: Tensor, spline_weight: Tensor | None, spline_scaler: Tensor | None, grid: Tensor,
    spline_order: int, activation: str, derivative: int,
    need_spline_weight: bool, need_spline_scaler: bool, need_base_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    needs = (need_spline_weight, need_spline_scaler, need_base_weight)
    if _unserved(x, derivative, x if need_base_weight else None):
        results = reference.spline_backward_weight(
            x, w, g, spline_weight, spline_scaler, grid, spline_order, activation, derivative, *needs
        )
        return in_layout(results, spline_weight)
    (N, I), O, T, K = x.shape, g.shape[1], grid.shape[1], spline_order
    M, mode = T - K - 1, mode_of(x.dtype)
    gradients = Gradients(x, spline_weight, spline_scaler, (O, I, M), needs)
    spline = (need_spline_weight or need_spline_scaler) and derivative <= K
    if N == 0 or not (spline or need_base_weight):
        for gradient in gradients.tensors:
            gradient.zero_()
        return gradients.tensors
    with torch.cuda.device_of(x):
        tables = prepare_knots(x, grid, K, derivative, mode)
        if regime("spline_backward_weight", mode, N, I, O, K, M) == "wide":
            launch_wide.backward_weight(x, w, g, tables, gradients, K, M, activation, derivative, mode)
            return gradients.tensors
        features, S, rows = backward_weight_split(mode, N, I, O, M)
        weight = x if w is None else w
        for first in range(0, I, features):
            some = min(features, I - first)
            # Derivatives of order above K are 0.
            partial = (tables.step.new_empty if spline else tables.step.new_zeros)(S, M + 1, some, O)
            base = need_base_weight
            for way, guarded in ways_of(mode, K, derivative):
                tiles = backward_weight_tiles(mode, way, O)
                columns = ceil_div(some, tiles.BI) * ceil_div(M, tiles.MC) * spline
                columns += ceil_div(some, tiles.MC * tiles.BI) * base
                backward_weight_kernel[(columns, ceil_div(O, tiles.BO), S)](
                    x, *x.stride(), weight, *weight.stride(), g, *g.stride(), *tables, partial,
                    N, O, T, M, rows, first, some,
                    K=K, D=derivative, DEPTH=search_depth(T), WEIGHTED=w is not None, BASE=activation if base else "none",
                    SPLINE=spline, MODE=mode, WAY=way, GUARDED=guarded, **constants(tiles),
                )  # fmt: skip
                base = False  # done, whatever the knots
                if not spline:
                    break
            gradients.finish(partial, first)
    return gradients.tensors


def spline_backward(
    x: Tensor, w: Tensor | None, g: Tensor, spline_weight: Tensor, spline_scaler: Tensor | None, grid: Tensor,
    base_weight: Tensor | None, activation: str, derivative: int,
    need_spline_weight: bool, need_spline_scaler: bool, need_base_weight: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    (N, I), (O, _, M), T = x.shape, spline_weight.shape, grid.shape[1]
    K, needs = spline_order(M, T), (need_spline_weight, need_spline_scaler, need_base_weight)
    plain = w is None and derivative == 0 and N > 0
    if plain and regime("spline_backward", mode_of(x.dtype), N, I, O, K, M) == "tiny":
        return _tiny_backward(x, g, spline_weight, spline_scaler, grid, base_weight, activation, K, needs)
    slope = spline_backward_input(x, g, spline_weight, spline_scaler, grid, base_weight, activation, derivative + 1)
    gradients = spline_backward_weight(x, w, g, spline_weight, spline_scaler, grid, K, activation, derivative, *needs)
    return slope if w is None else slope.mul_(w), *gradients


def _tiny_backward(
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
        packed = pack(spline_weight, spline_scaler, base_weight, mode, Layout(M, (O, I * O, 1), (O, 1))).packed
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
