"""FLOP formulas of the operators for `torch.utils.flop_counter`: 2 per multiply-add with a coefficient, as for matmul.

The evaluation of the bases, about K^2 operations for each of N I inputs, is not counted. The formulas are registered only if
the program has imported `torch.utils.flop_counter`, which takes longer to import than this package.
"""

import sys
from collections.abc import Callable

import torch

Shape = tuple[int, ...]


def register_if_counted() -> bool:
    """Register the formulas if torch's flop counter is imported. Return whether it is."""
    counter = sys.modules.get("torch.utils.flop_counter")
    if counter is None or not hasattr(counter, "register_flop_formula"):
        return False
    for name, formula in _FORMULAS.items():
        operator = getattr(torch.ops.kan_kernels, name)
        if operator not in counter.flop_registry:
            counter.register_flop_formula(operator)(formula)
    return True


def _products(x: Shape, outputs: int, per_edge: int) -> int:
    return 2 * x[0] * x[1] * outputs * per_edge


def _live(spline_weight: Shape, grid: Shape) -> int:
    """Return K+1, the number of non-zero bases at an input."""
    return grid[1] - spline_weight[2]


def _forward(x, _, spline_weight, spline_scaler, grid, base_weight, *__, **___) -> int:
    return _products(x, spline_weight[0], _live(spline_weight, grid) + (base_weight is not None))


def _backward_weight(x, w, g, spline_weight, spline_scaler, grid, order, activation, derivative, *needs, **_) -> int:
    return _of_parameters(x, g[1], order + 1, *needs)


def _of_parameters(
    x: Shape, outputs: int, live: int, need_spline_weight: bool, need_spline_scaler: bool, need_base: bool
) -> int:
    return _products(x, outputs, (need_spline_weight or need_spline_scaler) * live + need_base)


def _backward(x, w, g, spline_weight, spline_scaler, grid, base_weight, activation, derivative, *needs, **_) -> int:
    of_parameters = _of_parameters(x, g[1], _live(spline_weight, grid), *needs)
    return _forward(x, g, spline_weight, spline_scaler, grid, base_weight) + of_parameters


def _edge_l1(x, spline_weight, spline_scaler, grid, base_weight, *_, **__) -> int:
    return _forward(x, None, spline_weight, spline_scaler, grid, base_weight)


def _edge_l1_backward(x, spline_weight, spline_scaler, grid, base_weight, activation, r, need_input, *needs, **_) -> int:
    phi = _edge_l1(x, spline_weight, spline_scaler, grid, base_weight)
    return phi * (1 + need_input) + _of_parameters(x, r[0], _live(spline_weight, grid), *needs)


def _moments(x, grid, order, *_, **__) -> int:
    return _products(x, 1, (order + 1) * (order + 8) // 2)  # half of a symmetric band, and a border of three


def _channels(x, w, spline_weight, spline_scaler, grid, base_weight, *_, **__) -> int:
    return (1 + w[0]) * _forward(x, None, spline_weight, spline_scaler, grid, base_weight)


def _channels_backward(x, w, g, spline_weight, spline_scaler, grid, base_weight, *rest, **_) -> int:
    need_input, need_spline_weight, need_spline_scaler, need_base = rest[-4:]
    of_input = need_input * (1 + 2 * w[0]) * _forward(x, None, spline_weight, spline_scaler, grid, base_weight)
    live = _live(spline_weight, grid)
    return of_input + g[0] * _of_parameters(x, g[2], live, need_spline_weight, need_spline_scaler, need_base)


_FORMULAS: dict[str, Callable[..., int]] = {
    "spline_forward": _forward,
    "spline_backward_input": _forward,
    "spline_backward_weight": _backward_weight,
    "spline_backward": _backward,
    "spline_channels": _channels,
    "spline_channels_backward": _channels_backward,
    "edge_l1": _edge_l1,
    "edge_l1_backward": _edge_l1_backward,
    "basis_moments": _moments,
    "basis_moments_backward": _moments,
}
