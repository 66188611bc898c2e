"""Least-squares fits of spline coefficients to values, and to splines on other knots.

The new coefficients depend linearly on the old ones, independently for every feature and identically for every output, so a
matrix (I, M_new, M_old) transfers any number of outputs. Without data, it minimises the squared distance of the functions over
the range of the new knots, using Gauss quadrature that is exact for splines. With data, it minimises the squared distance on
the data plus a small share of the former, which determines the other coefficients. The normal equations are solved in float64:
with a unit diagonal, those of B-splines are well conditioned on any increasing knots (de Boor, "A Practical Guide to Splines",
ch. XI).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..ops import spline_forward
from ..reference import basis

OPEN_SHARE = 1e-4  # less fits a few distinct values, such as pixels, by coefficients of hundreds, which act beside the data
PYKANS_SHARE = 1e-8  # as pykan's least squares, to rounding in float64
_BASES_AT_ONCE = 1 << 18  # values in memory; eight times as many take twice the time


def interpolation_matrix(knots: Tensor, grid_size: int, spline_order: int) -> Tensor:
    """Return the matrix (M, G+1) that maps values at the G+1 inner knots to minimum-norm least-squares coefficients.

    knots (G+2K+1), float64. For K > 1 there are fewer inner knots than coefficients, so many splines fit exactly.
    """
    inner = knots[spline_order : spline_order + grid_size + 1].unsqueeze(1)
    return torch.linalg.pinv(basis(inner, knots.unsqueeze(0), spline_order)[:, 0])


def transfer_matrix(old: Tensor, new: Tensor, spline_order: int, x: Tensor | None = None, share: float = OPEN_SHARE) -> Tensor:
    """Return the matrix (I, M_new, M_old), float64, from coefficients on old knots to coefficients on new knots (I, G+2K+1).

    If x (N, I) is given, the fit minimises the distance of the functions on x, plus `share` of that over the range.
    """
    old, new = old.double(), new.double()
    bases = old.shape[1] + new.shape[1]
    features = max(1, _BASES_AT_ONCE // (bases * bases * (spline_order + 1)))
    parts = [
        _transfer(o, n, spline_order, None if x is None else x[:, k * features : (k + 1) * features], share)
        for k, (o, n) in enumerate(zip(old.split(features), new.split(features), strict=True))
    ]
    return torch.cat(parts)


def transferred(spline_weight: Tensor, transfer: Tensor) -> Tensor:
    """Apply a `transfer_matrix` (I, M_new, M_old) to spline_weight (O, I, M_old). Returns (O, I, M_new) in float64."""
    return torch.einsum("imk,oik->oim", transfer, spline_weight.double())


def fitted(bases: Tensor, values: Tensor) -> Tensor:
    """Return the minimum-norm least-squares coefficients (O, I, M) for bases (N, I, M) and values (N, I, O), per feature.

    It uses the singular value decomposition, so bases need not determine all coefficients.
    """
    wide = torch.promote_types(bases.dtype, torch.float32)  # LAPACK does not support half types
    left, right = bases.transpose(0, 1).to(wide), values.transpose(0, 1).to(wide)
    if bases.device.type == "cpu":
        solution = torch.linalg.lstsq(left, right, driver="gelsd").solution
    else:
        solution = torch.linalg.pinv(left) @ right  # lstsq requires full rank on other devices
    return solution.permute(2, 0, 1).contiguous().to(bases.dtype)


def _transfer(old: Tensor, new: Tensor, spline_order: int, x: Tensor | None, share: float) -> Tensor:
    points, weights = _quadrature(torch.cat([old, new], dim=1).sort(dim=1).values, spline_order + 1)
    gram, cross = _products(points, weights, old, new, spline_order)
    transfer = _solver(gram)(cross)
    if x is None:
        return transfer
    data_gram, data_cross = _products(x, None, old, new, spline_order)
    length = new[:, -1] - new[:, 0]
    solve = _solver(data_gram + (share * x.shape[0] / length)[:, None, None] * gram)
    # Iterative refinement. If the new knots represent the function exactly, the correction is zero and adds no rounding error.
    # On well spread data every step multiplies the distance from the least-squares fit by about `share`.
    for _ in range(3):
        transfer = transfer + solve(data_cross - data_gram @ transfer)
    return transfer


def _quadrature(ends: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return points and weights (P, I) of Gauss-Legendre quadrature with `count` points per interval of ends (I, T)."""
    k = torch.arange(1, count, dtype=torch.float64, device="cpu")
    off_diagonal = k / (4 * k * k - 1).sqrt()
    # Golub-Welsch: the nodes are the eigenvalues of the recurrence matrix of the Legendre polynomials.
    nodes, vectors = torch.linalg.eigh(torch.diag(off_diagonal, 1) + torch.diag(off_diagonal, -1))
    weights = (2 * vectors[0] ** 2).to(ends.device)
    nodes = nodes.to(ends.device)
    half = ends.diff(dim=1).unsqueeze(-1) / 2
    points = ends[:, :-1].unsqueeze(-1) + half * (nodes + 1)
    return points.flatten(1).t(), (half * weights).flatten(1).t()


def _products(points: Tensor, weights: Tensor | None, old: Tensor, new: Tensor, K: int) -> tuple[Tensor, Tensor]:
    """Return sums over points (P, I) of products of bases, per feature: (I, M_new, M_new) and (I, M_new, M_old)."""
    bases = old.shape[1] + new.shape[1]
    if points.numel() * bases <= _BASES_AT_ONCE:  # for few points the calls for single features would take longer
        x = points.double()
        of_new, of_old = (basis(x, knots, K).transpose(0, 1) for knots in (new, old))  # (I, P, M)
        tested = (of_new if weights is None else of_new * weights.t().unsqueeze(-1)).transpose(1, 2)
        return tested @ of_new, tested @ of_old
    sums = []
    for i in range(points.shape[1]):
        own = points[:, i : i + 1].split(max(1, _BASES_AT_ONCE // bases))
        total = None
        for k, part in enumerate(own):
            x = part.double()
            new_bases, old_bases = _bases(x, new[i], K), _bases(x, old[i], K)
            tested = new_bases if weights is None else new_bases * weights[k * len(own[0]) :][: len(part), i : i + 1]
            products = torch.cat([tested.t() @ new_bases, tested.t() @ old_bases], dim=1)
            total = products if total is None else total + products
        assert total is not None, "no rows"
        sums.append(total)
    gram, cross = torch.stack(sums).split([new.shape[1] - K - 1, old.shape[1] - K - 1], dim=2)
    return gram, cross


def _bases(x: Tensor, knots: Tensor, K: int) -> Tensor:
    """Evaluate the bases (P, M) of one feature at x (P, 1), as splines with unit coefficients: 8 times faster than `basis`."""
    unit = torch.eye(len(knots) - K - 1, dtype=x.dtype, device=x.device).unsqueeze(1)
    return spline_forward(x, None, unit, None, knots.unsqueeze(0), None, "silu", 0)


def _solver(gram: Tensor) -> Callable[[Tensor], Tensor]:
    """Factorise a positive definite gram (I, M, M). Return the function that solves for a right-hand side (I, M, R)."""
    scale = gram.diagonal(dim1=1, dim2=2).clamp_min(math.ulp(0.0)).rsqrt().unsqueeze(-1)
    factor = torch.linalg.cholesky(gram * scale * scale.transpose(1, 2))
    return lambda right: scale * torch.cholesky_solve(scale * right, factor)
