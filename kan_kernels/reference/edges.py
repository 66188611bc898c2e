"""Reference implementation of edge functions: values, mean magnitudes and second moments, in plain torch.

phi_{o,i}(t) = base_weight[o,i] b(t) + sum_m spline_weight[o,i,m] beta_{i,m}(t). If given, spline_scaler (O, I) multiplies
spline_weight. The functions materialise (N, O, I) tensors. Sizes as in `reference.spline`.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad

from .spline import base_activation, basis, infer_spline_order, scaled


def edge_values(
    x: Tensor,
    spline_weight: Tensor,
    spline_scaler: Tensor | None,
    grid: Tensor,
    base_weight: Tensor | None,
    activation: str,
    derivative: int = 0,
) -> Tensor:
    """Return the n-th derivative of phi_{o,i} at x[:, i] for all edges, (N, O, I), n = derivative."""
    bases = basis(x, grid, infer_spline_order(spline_weight.shape[2], grid.shape[1]), derivative)
    values = torch.einsum("nim,oim->noi", bases, scaled(spline_weight, spline_scaler))
    if base_weight is not None:
        values = values + base_activation(x, activation, derivative).unsqueeze(1) * base_weight
    return values


def edge_l1(
    x: Tensor,
    spline_weight: Tensor,
    spline_scaler: Tensor | None,
    grid: Tensor,
    base_weight: Tensor | None,
    activation: str,
) -> Tensor:
    """Return the mean of |phi_{o,i}(x[n,i])| over the rows, (O, I): the L1 norm in eq. 2.17 of the KAN paper."""
    return edge_values(x, spline_weight, spline_scaler, grid, base_weight, activation).abs().mean(0)


def edge_l1_backward(
    x: Tensor,
    spline_weight: Tensor,
    spline_scaler: Tensor | None,
    grid: Tensor,
    base_weight: Tensor | None,
    activation: str,
    r: Tensor,
    need_input: bool,
    need_spline_weight: bool,
    need_spline_scaler: bool,
    need_base_weight: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the sum over o, i of r[o,i] edge_l1[o,i]; (0,) if not needed.

    They are taken with respect to x (N, I), spline_weight (O, I, M), spline_scaler (O, I) and base_weight (O, I).
    """
    edges = (spline_weight, spline_scaler, grid, base_weight, activation)
    signs = edge_values(x, *edges).sign() * (r / x.shape[0])
    of_x, of_spline_weight, of_spline_scaler, of_base_weight = (x.new_empty(0) for _ in range(4))
    if need_input:
        of_x = (signs * edge_values(x, *edges, derivative=1)).sum(1)
    if need_spline_weight or need_spline_scaler:
        bases = basis(x, grid, infer_spline_order(spline_weight.shape[2], grid.shape[1]))
        unscaled = torch.einsum("nim,noi->oim", bases, signs)
        if need_spline_weight:
            of_spline_weight = scaled(unscaled, spline_scaler)
        if need_spline_scaler:
            of_spline_scaler = (unscaled * spline_weight).sum(-1)
    if need_base_weight:
        of_base_weight = (base_activation(x, activation).unsqueeze(1) * signs).sum(0)
    return of_x, of_spline_weight, of_spline_scaler, of_base_weight


def basis_moments(x: Tensor, grid: Tensor, spline_order: int, activation: str) -> Tensor:
    """Return the sums over the rows of products of two bases, (I, M+2, K+4) in float64. Bases more than K apart give 0.

    [i, m, d] for d <= K: beta_m beta_{m+d}, 0 beyond the last; [i, m, K+1]: beta_m b; [i, m, K+2]: beta_m e; [i, m, K+3]:
    beta_m. e = 1 - sum_m beta_m is 0 in the grid range; with it, a constant can be subtracted from the coefficients.
    [i, M, 0]: b b; [i, M, K+2]: b e; [i, M, K+3]: b; [i, M+1, 0]: e e; [i, M+1, K+3]: e; the rest 0.
    """
    x, K = x.double(), spline_order
    bases, b = basis(x, grid.double(), K), base_activation(x, activation)
    M, e = bases.shape[2], 1 - bases.sum(-1)
    squares, sums = ([value.sum(0).unsqueeze(1) for value in pair] for pair in ((b * b, e * e), (b, e)))
    columns = [torch.cat([(bases * bases).sum(0), *squares], 1)]
    columns += [
        pad((bases[..., : max(0, M - d)] * bases[..., min(d, M) :]).sum(0), (0, min(d, M) + 2)) for d in range(1, K + 1)
    ]
    columns.append(pad((bases * b.unsqueeze(-1)).sum(0), (0, 2)))
    columns.append(pad(torch.cat([(bases * e.unsqueeze(-1)).sum(0), (b * e).sum(0).unsqueeze(1)], 1), (0, 1)))
    columns.append(torch.cat([bases.sum(0), *sums], 1))
    return torch.stack(columns, 2)


def basis_moments_backward(x: Tensor, grid: Tensor, spline_order: int, activation: str, r: Tensor) -> Tensor:
    """Return the gradient of the sum of r (I, M+2, K+4) times `basis_moments` with respect to x, (N, I) in the dtype of x."""
    points, knots, K = x.double(), grid.double(), spline_order
    bases, slopes = basis(points, knots, K), basis(points, knots, K, 1)
    b, b_slope = base_activation(points, activation), base_activation(points, activation, 1)
    M, e, e_slope = bases.shape[2], 1 - bases.sum(-1), -slopes.sum(-1)
    gradient = (slopes * r[:, :M, K + 3]).sum(-1) + (b_slope * e + b * e_slope) * r[:, M, K + 2]
    for row, value, slope in ((M, b, b_slope), (M + 1, e, e_slope)):
        along = r[:, :M, K + 1 + row - M]
        gradient = gradient + ((slopes * value.unsqueeze(-1) + bases * slope.unsqueeze(-1)) * along).sum(-1)
        gradient = gradient + slope * r[:, row, K + 3] + 2 * value * slope * r[:, row, 0]
    for d in range(min(K + 1, M)):
        products = slopes[..., : M - d] * bases[..., d:] + bases[..., : M - d] * slopes[..., d:]
        gradient = gradient + (products * r[:, : M - d, d]).sum(-1)
    return gradient.to(x.dtype)
