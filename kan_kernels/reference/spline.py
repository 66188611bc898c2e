"""Reference implementation of B-spline KAN layers in plain torch.

The functions support any device, dtype, degree and grid, evaluate all bases densely, and are differentiable by autograd.
Sizes: N rows, I in_features, O out_features, G grid_size, K spline_order, M = G + K bases per feature.
"""

import torch
from torch import Tensor
from torch.nn.functional import linear, silu

FUSED_ACTIVATIONS = ("silu", "identity")


def infer_spline_order(bases: int, knots: int) -> int:
    """Return the degree K for M bases and G + 2K + 1 knots per feature: G + 2K + 1 - (G + K) - 1."""
    return knots - bases - 1


def basis(x: Tensor, grid: Tensor, degree: int, derivative: int = 0) -> Tensor:
    """Return the n-th derivative of every B-spline of degree K at x, n = derivative.

    x (N, I), grid (I, G+2K+1) with non-decreasing rows -> (N, I, G+K), dtype of x.

    The Cox-de Boor recursion on half-open intervals (de Boor, "A Practical Guide to Splines", ch. IX and X), as in
    efficient-kan and pykan. Every basis is 0 outside the extended knots. With repeated knots, quotients 0/0 are taken as 0.
    """
    if derivative > degree:
        return x.new_zeros(*x.shape, grid.shape[1] - degree - 1)
    points, knots = x.unsqueeze(-1), grid.to(x.dtype)
    if degree == 0:
        return ((points >= knots[:, :-1]) & (points < knots[:, 1:])).to(x.dtype)

    lower = basis(x, grid, degree - 1, max(derivative - 1, 0))
    span = knots[:, degree:] - knots[:, :-degree]
    span = torch.where(span > 0, span, torch.ones_like(span))  # the basis on an empty span is 0
    if derivative == 0:
        rising = (points - knots[:, : -degree - 1]) / span[:, :-1]
        falling = (knots[:, degree + 1 :] - points) / span[:, 1:]
        return rising * lower[..., :-1] + falling * lower[..., 1:]
    return degree * (lower[..., :-1] / span[:, :-1] - lower[..., 1:] / span[:, 1:])


def base_activation(x: Tensor, name: str, derivative: int = 0) -> Tensor:
    """Return the n-th derivative of the base activation b ("silu" or "identity") at x, with the shape and dtype of x.

    With s = sigmoid(x), q = 1 - s: s' = s q, and every higher derivative is s q times a polynomial in z = q - s,
    Q_1 = 1, Q_{n+1} = z Q_n - (1 - z^2) / 2 Q_n'. In z, unlike in s, the coefficients are small with little cancellation.
    The Leibniz rule gives silu^(n) = x s^(n) + n s^(n-1).
    """
    if name == "identity":
        return x if derivative == 0 else torch.full_like(x, 1.0 if derivative == 1 else 0.0)
    if derivative == 0:
        return silu(x)
    return x * _sigmoid_derivative(x, derivative) + derivative * _sigmoid_derivative(x, derivative - 1)


def sigmoid_polynomial(derivative: int) -> list[float]:
    """Return the coefficients, lowest degree first, of Q_n in s^(n) = s q Q_n(z), n >= 1."""
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
    spline_weight: Tensor,
    grid: Tensor,
    base_weight: Tensor | None = None,
    activation: str = "silu",
    spline_scaler: Tensor | None = None,
) -> Tensor:
    """y[n,o] = sum_i ( base_weight[o,i] b(x[n,i]) + sum_m spline_weight[o,i,m] beta_{i,m}(x[n,i]) ), x (N, I) -> (N, O).

    If given, spline_scaler (O, I) multiplies spline_weight.
    """
    return spline_forward(x, None, spline_weight, spline_scaler, grid, base_weight, activation, 0)


def spline_forward(
    x: Tensor,
    w: Tensor | None,
    spline_weight: Tensor,
    spline_scaler: Tensor | None,
    grid: Tensor,
    base_weight: Tensor | None,
    activation: str,
    derivative: int,
) -> Tensor:
    """Return the sum over i, m of w[n,i] beta^(n)_{i,m}(x[n,i]) spline_weight[o,i,m], (N, O), with b as an extra basis."""
    bases = _weighted(basis(x, grid, infer_spline_order(spline_weight.shape[2], grid.shape[1]), derivative), w)
    y = linear(bases.flatten(1), scaled(spline_weight, spline_scaler).flatten(1))
    if base_weight is not None:
        y = y + linear(_weighted(base_activation(x, activation, derivative), w), base_weight)
    return y


def spline_backward_input(
    x: Tensor,
    g: Tensor,
    spline_weight: Tensor,
    spline_scaler: Tensor | None,
    grid: Tensor,
    base_weight: Tensor | None,
    activation: str,
    derivative: int,
) -> Tensor:
    """Return the gradient with respect to w, (N, I): sum over o, m of g[n,o] spline_weight[o,i,m] beta^(n)_{i,m}(x[n,i])."""
    bases = basis(x, grid, infer_spline_order(spline_weight.shape[2], grid.shape[1]), derivative)
    along_bases = (g @ scaled(spline_weight, spline_scaler).flatten(1)).view(bases.shape)
    result = (bases * along_bases).sum(-1)
    if base_weight is not None:
        result = result + base_activation(x, activation, derivative) * (g @ base_weight)
    return result


def spline_backward_weight(
    x: Tensor,
    w: Tensor | None,
    g: Tensor,
    spline_weight: Tensor | None,
    spline_scaler: Tensor | None,
    grid: Tensor,
    spline_order: int,
    activation: str,
    derivative: int,
    need_spline_weight: bool,
    need_spline_scaler: bool,
    need_base_weight: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients with respect to spline_weight (O, I, M), spline_scaler and base_weight (O, I); (0,) if not needed.

    With D[o,i,m] = sum over n of g[n,o] w[n,i] beta^(n)_{i,m}(x[n,i]), they are D times spline_scaler, the sum over m of D
    times spline_weight, and the sum D with the base activation in place of the basis. Only the gradient of spline_scaler
    depends on spline_weight.
    """
    of_spline_weight, of_spline_scaler, of_base_weight = (x.new_empty(0) for _ in range(3))
    if need_spline_weight or need_spline_scaler:
        bases = _weighted(basis(x, grid, spline_order, derivative), w)
        unscaled = (g.t() @ bases.flatten(1)).view(g.shape[1], *bases.shape[1:])
        if need_spline_weight:
            of_spline_weight = scaled(unscaled, spline_scaler)
        if need_spline_scaler and spline_weight is not None:
            of_spline_scaler = (unscaled * spline_weight).sum(-1)
    if need_base_weight:
        of_base_weight = g.t() @ _weighted(base_activation(x, activation, derivative), w)
    return of_spline_weight, of_spline_scaler, of_base_weight


def spline_backward(
    x: Tensor,
    w: Tensor | None,
    g: Tensor,
    spline_weight: Tensor,
    spline_scaler: Tensor | None,
    grid: Tensor,
    base_weight: Tensor | None,
    activation: str,
    derivative: int,
    need_spline_weight: bool,
    need_spline_scaler: bool,
    need_base_weight: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of `spline_forward` with respect to x (N, I), spline_weight, spline_scaler and base_weight, but not w."""
    slope = spline_backward_input(x, g, spline_weight, spline_scaler, grid, base_weight, activation, derivative + 1)
    order = infer_spline_order(spline_weight.shape[2], grid.shape[1])
    needs = (need_spline_weight, need_spline_scaler, need_base_weight)
    gradients = spline_backward_weight(x, w, g, spline_weight, spline_scaler, grid, order, activation, derivative, *needs)
    return _weighted(slope, w), *gradients


def scaled(spline_weight: Tensor, spline_scaler: Tensor | None) -> Tensor:
    """Return spline_weight (..., O, I, M) times spline_scaler (..., O, I)."""
    return spline_weight if spline_scaler is None else spline_weight * spline_scaler.unsqueeze(-1)


def _weighted(values: Tensor, w: Tensor | None) -> Tensor:
    return values if w is None else values * w.view(w.shape + (1,) * (values.dim() - 2))
