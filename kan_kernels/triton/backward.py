"""The gradients of x and of the weights together: one launch for small problems, otherwise the two operators."""

import torch
from torch import Tensor

from ..reference import infer_spline_order
from . import direct
from .backward_input import spline_backward_input
from .backward_weight import spline_backward_weight
from .heuristics import regime
from .prepare import Gradients, base_name, mode_of, runs_on_reference


def spline_backward(
    x: Tensor, w: Tensor | None, g: Tensor, spline_weight: Tensor, spline_scaler: Tensor | None, grid: Tensor,
    base_weight: Tensor | None, activation: str, derivative: int,
    need_spline_weight: bool, need_spline_scaler: bool, need_base_weight: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    (N, I), (O, _, M) = x.shape, spline_weight.shape
    K, mode = infer_spline_order(M, grid.shape[1]), mode_of(x.dtype)
    needs = (need_spline_weight, need_spline_scaler, need_base_weight)
    if N > 0 and not runs_on_reference(x, derivative + 1, base_weight):
        chosen = regime("spline_backward", mode, N, I, O, K, M, derivative, w is not None)
        if chosen == "direct" and direct.is_addressable(spline_weight, spline_scaler):
            gradients = Gradients(x, spline_weight, spline_scaler, (O, I, M), needs)
            base = base_name(base_weight, activation)
            with torch.cuda.device_of(x):
                slope = direct.backward(
                    x, w, g, spline_weight, spline_scaler, grid, base_weight, gradients, K, derivative, base, mode
                )
            return slope, *gradients.tensors
    slope = spline_backward_input(x, g, spline_weight, spline_scaler, grid, base_weight, activation, derivative + 1)
    gradients_of_weights = spline_backward_weight(
        x, w, g, spline_weight, spline_scaler, grid, K, activation, derivative, *needs
    )
    return slope if w is None else slope.mul_(w), *gradients_of_weights
