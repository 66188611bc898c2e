"""Refinement of the parameters of c f(a x + b) + d by damped Gauss-Newton steps."""

from collections.abc import Callable

import torch
from torch import Tensor

from .affine_fit import least_squares

_STEPS = 30
_EXACT = 1e-30  # a relative sum of squares that is rounding


def polish(fun: Callable[[Tensor], Tensor], x: Tensor, y: Tensor, parameters: Tensor) -> tuple[Tensor, float]:
    """Return refined parameters (4,) and their r2 = 1 - sum of squared residuals / sum of squares of y - mean(y), in float64.

    Each step solves for all four parameters, and then c and d are the least squares for a and b: Kaufman's variant of variable
    projection (BIT 15, 1975), with Marquardt's damping. Steps that do not reduce the residual are discarded, so that the
    result is never worse than the start.

    Args:
        x, y: (N,), float64, y not constant.
        parameters: (4,), float64: a, b, c, d, the start.
    """
    total = (y - y.mean()).square().sum()
    best, (values, slopes) = parameters, _with_slopes(fun, parameters[0] * x + parameters[1])
    residual = y - (best[2] * values + best[3])
    left = residual.square().sum()
    damping = 1e-3
    for _ in range(_STEPS):
        if not bool(left > _EXACT * total):
            break
        along = best[2] * slopes
        jacobian = torch.stack([along * x, along, values, torch.ones_like(x)], 1)
        step = _damped_step(jacobian, residual, damping)
        a, b = best[0] + step[0], best[1] + step[1]
        new_values, new_slopes = _with_slopes(fun, a * x + b)
        c, d = least_squares(new_values, y)
        new_residual = y - (c * new_values + d)
        new_left = new_residual.square().sum()
        if not bool(new_left < left):  # NaN counts as worse
            damping *= 10
            if damping > 1e8:
                break
            continue
        converged = bool(new_left > (1 - 1e-12) * left)
        best, values, slopes, residual, left = torch.stack([a, b, c, d]), new_values, new_slopes, new_residual, new_left
        damping = max(damping / 10, 1e-15)
        if converged:
            break
    return best, 1.0 - float(left / total) if bool(left.isfinite()) else 0.0


def _damped_step(jacobian: Tensor, residual: Tensor, damping: float) -> Tensor:
    """Return the least squares of jacobian @ step = residual, with Marquardt's penalty of a scaled step."""
    scale = jacobian.norm(dim=0).clamp_min(torch.finfo(jacobian.dtype).tiny)
    penalty = damping**0.5 * torch.eye(4, dtype=jacobian.dtype, device=jacobian.device)
    rows = torch.cat([jacobian / scale, penalty])
    right = torch.cat([residual, residual.new_zeros(4)]).unsqueeze(1)
    orthogonal, triangular = torch.linalg.qr(rows)
    return torch.linalg.solve_triangular(triangular, orthogonal.T @ right, upper=True).squeeze(1) / scale


def _with_slopes(fun: Callable[[Tensor], Tensor], z: Tensor) -> tuple[Tensor, Tensor]:
    """Return f(z) and f'(z); a function that autograd does not record has slopes of 0."""
    with torch.inference_mode(False), torch.enable_grad():
        leaf = z.detach().clone().requires_grad_()
        values = fun(leaf)
        slopes = torch.autograd.grad(values.sum(), leaf, allow_unused=True)[0] if values.requires_grad else None
    return values.detach(), torch.zeros_like(z) if slopes is None else slopes
