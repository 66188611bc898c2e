"""What the operators cost, for `torch.utils.flop_counter`: 2 for each multiplication and addition with a coefficient.

As products of matrices are counted there; bases, K^2 or so for each of N I inputs, are not. Importing that module takes longer
than importing this package: the formulas wait for a program that imported it.
"""

import sys
from collections.abc import Callable

import torch

Shape = tuple[int, ...]


def register_if_counted() -> bool:
    """Give torch the formulas if its counter is loaded; whether it is."""
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


def _live(coef: Shape, grid: Shape) -> int:
    """K+1, the bases that are not zero at an input."""
    return grid[1] - coef[1]


def _forward(x, _, coef, scaler, grid, base_weight, *__, **___) -> int:
    return _products(x, coef[2], _live(coef, grid) + (base_weight is not None))


def _backward_coef(x, w, g, coef, scaler, grid, order, activation, n, need_coef, need_scaler, need_base, **_) -> int:
    return _products(x, g[1], (need_coef or need_scaler) * (order + 1) + need_base)


def _backward(x, w, g, coef, scaler, grid, base_weight, activation, n, *needs, **_) -> int:
    of_parameters = _backward_coef(x, w, g, coef, scaler, grid, _live(coef, grid) - 1, activation, n, *needs)
    return _forward(x, g, coef, scaler, grid, base_weight) + of_parameters


def _edge_l1(x, coef, scaler, grid, base_weight, *_, **__) -> int:
    return _forward(x, None, coef, scaler, grid, base_weight)


def _edge_l1_backward(x, coef, scaler, grid, base_weight, activation, r, need_input, *needs, **_) -> int:
    phi = _edge_l1(x, coef, scaler, grid, base_weight)
    of_parameters = _backward_coef(x, None, r, coef, scaler, grid, _live(coef, grid) - 1, activation, 0, *needs)
    return phi * (1 + need_input) + of_parameters


def _moments(x, grid, order, *_, **__) -> int:
    return _products(x, 1, (order + 1) * (order + 8) // 2)  # half of a symmetric band, and a border of three


_FORMULAS: dict[str, Callable[..., int]] = {
    "spline_forward": _forward,
    "spline_backward_input": _forward,
    "spline_backward_coef": _backward_coef,
    "spline_backward": _backward,
    "edge_l1": _edge_l1,
    "edge_l1_backward": _edge_l1_backward,
    "basis_moments": _moments,
    "basis_moments_backward": _moments,
}
