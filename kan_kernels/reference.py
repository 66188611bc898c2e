"""The truth: B-spline KAN layers in plain torch, written to be read.

Everything here runs on any device, dtype, degree and grid, is dense in the bases, and is differentiable by autograd.
Sizes: N rows, I in_features, O out_features, G grid_size, K spline_order, M = G + K bases per feature.
"""

import torch
from torch import Tensor

FUSED_ACTIVATIONS = ("silu", "identity")


def spline_order(coef_bases: int, knots: int) -> int:
    """Degree K from the M bases and the G + 2K + 1 knots of a feature: G + 2K + 1 - (G + K) - 1."""
    return knots - coef_bases - 1


def basis(x: Tensor, grid: Tensor, degree: int, derivative: int = 0) -> Tensor:
    """The n-th derivative of every B-spline of degree K at x, n = derivative.

    x (N, I), grid (I, G+2K+1) with non-decreasing rows -> (N, I, G+K), dtype of x.

    Cox-de Boor on half-open intervals (de Boor, "A Practical Guide to Splines", ch. IX and X), as in efficient-kan and
    pykan: outside the extended knots every basis is 0. A repeated knot makes a quotient 0/0, which counts as 0.
    """
    if derivative > degree:
        return x.new_zeros(*x.shape, grid.shape[1] - degree - 1)
    points, knots = x.unsqueeze(-1), grid.to(x.dtype)
    if degree == 0:
        return ((points >= knots[:, :-1]) & (points < knots[:, 1:])).to(x.dtype)

    lower = basis(x, grid, degree - 1, max(derivative - 1, 0))
    span = knots[:, degree:] - knots[:, :-degree]
    span = torch.where(span > 0, span, torch.ones_like(span))  # the basis over an empty span is 0 already
    if derivative == 0:
        rising = (points - knots[:, : -degree - 1]) / span[:, :-1]
        falling = (knots[:, degree + 1 :] - points) / span[:, 1:]
        return rising * lower[..., :-1] + falling * lower[..., 1:]
    return degree * (lower[..., :-1] / span[:, :-1] - lower[..., 1:] / span[:, 1:])


def base_activation(x: Tensor, name: str, derivative: int = 0) -> Tensor:
    """The n-th derivative of the base activation b ("silu" or "identity") at x; same shape and dtype as x.

    With s = sigmoid(x), q = 1 - s: s' = s q, and every higher derivative is s q times a polynomial in z = q - s,
    Q_1 = 1, Q_{n+1} = z Q_n - (1 - z^2) / 2 Q_n'. In z, unlike in s, the coefficients stay small and cancel little.
    Leibniz then gives silu^(n) = x s^(n) + n s^(n-1).
    """
    if name == "identity":
        return x if derivative == 0 else torch.full_like(x, 1.0 if derivative == 1 else 0.0)
    if derivative == 0:
        return torch.nn.functional.silu(x)
    return x * _sigmoid_derivative(x, derivative) + derivative * _sigmoid_derivative(x, derivative - 1)


def sigmoid_polynomial(derivative: int) -> list[float]:
    """Coefficients, lowest first, of Q_n in s^(n) = s q Q_n(z), n >= 1."""
    q = [1.0]
    for _ in range(derivative - 1):
        slope = [k * c for k, c in enumerate(q)][1:]
        terms = [(1, 1.0, q), (0, -0.5, slope), (2, 0.5, slope)]
        q = [sum(factor * c[k - shift] for shift, factor, c in terms if 0 <= k - shift < len(c)) for k in range(len(q) + 1)]
    return q


def _sigmoid_derivative(x: Tensor, derivative: int) -> Tensor:
    s = torch.sigmoid(x)
    if derivative == 0:
        return s
    z = torch.tanh(-x / 2)
    polynomial = torch.zeros_like(z)
    for c in reversed(sigmoid_polynomial(derivative)):
        polynomial = polynomial * z + c
    return s * torch.sigmoid(-x) * polynomial


def kan_linear(
    x: Tensor,
    coef: Tensor,
    grid: Tensor,
    base_weight: Tensor | None = None,
    activation: str = "silu",
    scaler: Tensor | None = None,
) -> Tensor:
    """y[n,o] = sum_i ( base_weight[i,o] b(x[n,i]) + sum_m coef[i,m,o] beta_{i,m}(x[n,i]) ), x (N, I) -> (N, O).

    scaler (I, O), where given, multiplies coef.
    """
    return spline_forward(x, None, coef, scaler, grid, base_weight, activation, 0)


def spline_forward(
    x: Tensor,
    w: Tensor | None,
    coef: Tensor,
    scaler: Tensor | None,
    grid: Tensor,
    base_weight: Tensor | None,
    activation: str,
    derivative: int,
) -> Tensor:
    """(N, O): sum over i, m of w[n,i] beta^(n)_{i,m}(x[n,i]) coef[i,m,o], the base activation being one more row m."""
    bases = _weighted(basis(x, grid, spline_order(coef.shape[1], grid.shape[1]), derivative), w)
    y = bases.flatten(1) @ scaled(coef, scaler).reshape(-1, coef.shape[2])
    if base_weight is not None:
        y = y + _weighted(base_activation(x, activation, derivative), w) @ base_weight
    return y


def spline_backward_input(
    x: Tensor,
    g: Tensor,
    coef: Tensor,
    scaler: Tensor | None,
    grid: Tensor,
    base_weight: Tensor | None,
    activation: str,
    derivative: int,
) -> Tensor:
    """(N, I): sum over m, o of beta^(n)_{i,m}(x[n,i]) coef[i,m,o] g[n,o]: the gradient of the form with respect to w."""
    bases = basis(x, grid, spline_order(coef.shape[1], grid.shape[1]), derivative)
    along_bases = (g @ scaled(coef, scaler).reshape(-1, coef.shape[2]).t()).view(bases.shape)
    result = (bases * along_bases).sum(-1)
    if base_weight is not None:
        result = result + base_activation(x, activation, derivative) * (g @ base_weight.t())
    return result


def spline_backward_coef(
    x: Tensor,
    w: Tensor | None,
    g: Tensor,
    coef: Tensor | None,
    scaler: Tensor | None,
    grid: Tensor,
    spline_order: int,
    activation: str,
    derivative: int,
    need_coef: bool,
    need_scaler: bool,
    need_base: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """(I, M, O), (I, O), (I, O): the form's gradients with respect to coef, scaler, base_weight; (0,) where not needed.

    With D = sum over n of w[n,i] beta^(n)_{i,m}(x[n,i]) g[n,o]: D scaler, the sum over m of D coef, and the base's row of D.
    Only the gradient of scaler reads coef.
    """
    coef_gradient = scaler_gradient = base_gradient = x.new_empty(0)
    if need_coef or need_scaler:
        bases = _weighted(basis(x, grid, spline_order, derivative), w)
        gradient = (bases.flatten(1).t() @ g).view(*bases.shape[1:], g.shape[1])
        if need_coef:
            coef_gradient = scaled(gradient, scaler)
        if need_scaler and coef is not None:
            scaler_gradient = (gradient * coef).sum(1)
    if need_base:
        base_gradient = _weighted(base_activation(x, activation, derivative), w).t() @ g
    return coef_gradient, scaler_gradient, base_gradient


def spline_backward(
    x: Tensor,
    w: Tensor | None,
    g: Tensor,
    coef: Tensor,
    scaler: Tensor | None,
    grid: Tensor,
    base_weight: Tensor | None,
    activation: str,
    derivative: int,
    need_coef: bool,
    need_scaler: bool,
    need_base: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(N, I) and `spline_backward_coef`'s three: all gradients of `spline_forward` but w's, from one evaluation."""
    slope = spline_backward_input(x, g, coef, scaler, grid, base_weight, activation, derivative + 1)
    order = spline_order(coef.shape[1], grid.shape[1])
    needs = (need_coef, need_scaler, need_base)
    return _weighted(slope, w), *spline_backward_coef(x, w, g, coef, scaler, grid, order, activation, derivative, *needs)


def scaled(coef: Tensor, scaler: Tensor | None) -> Tensor:
    """coef (..., I, M, O) times scaler (..., I, O)."""
    return coef if scaler is None else coef * scaler.unsqueeze(-2)


def _weighted(values: Tensor, w: Tensor | None) -> Tensor:
    return values if w is None else values * w.view(w.shape + (1,) * (values.dim() - 2))
