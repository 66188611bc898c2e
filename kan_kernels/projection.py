"""Coefficients of splines fitted to values, and to the same functions on other knots, by quadrature and on the data.

A spline's coefficients on new knots depend linearly on the old ones, feature by feature and alike for every output, so that a
matrix (I, M_new, M_old) carries any number of outputs over. It minimises the squared distance of the functions over the new
knots' whole length, by Gauss quadrature that is exact for splines, or with data that over the data, plus a 10^-8th of the
former, which decides what the data leave open. Normal equations in float64: scaled to a unit diagonal, those of B-splines
are well conditioned on any increasing knots (de Boor, "A Practical Guide to Splines", ch. XI).
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .ops import spline_forward
from .reference import basis

OPEN_SHARE = 1e-8
_BASES_AT_ONCE = 1 << 18  # values in memory; eight times as many take twice as long


def interpolation_matrix(knots: Tensor, grid_size: int, spline_order: int) -> Tensor:
    """(M, G+1): values on the G+1 inner knots -> the coefficients of least norm among those that fit them best.

    knots (G+2K+1), float64. There are fewer inner knots than coefficients for K > 1, so many splines fit exactly.
    """
    inner = knots[spline_order : spline_order + grid_size + 1].unsqueeze(1)
    return torch.linalg.pinv(basis(inner, knots.unsqueeze(0), spline_order)[:, 0])


def transfer_matrix(old: Tensor, new: Tensor, spline_order: int, x: Tensor | None = None) -> Tensor:
    """(I, M_new, M_old), float64: old coefficients -> new ones, of splines of degree K on old and new knots (I, G+2K+1).

    x (N, I) are data on which the functions are to agree best.
    """
    old, new = old.double(), new.double()
    bases = old.shape[1] + new.shape[1]
    features = max(1, _BASES_AT_ONCE // (bases * bases * (spline_order + 1)))
    parts = [
        _transfer(o, n, spline_order, None if x is None else x[:, k * features : (k + 1) * features])
        for k, (o, n) in enumerate(zip(old.split(features), new.split(features), strict=True))
    ]
    return torch.cat(parts)


def transferred(spline_weight: Tensor, transfer: Tensor) -> Tensor:
    """(O, I, M_new) in float64: `transfer_matrix`'s (I, M_new, M_old) applied to spline_weight (O, I, M_old)."""
    return torch.einsum("imk,oik->oim", transfer, spline_weight.double())


def fitted(bases: Tensor, values: Tensor) -> Tensor:
    """(O, I, M) of least norm among those that fit best: bases (N, I, M) and values (N, I, O), feature by feature.

    Least squares by singular values: features whose bases do not determine the coefficients are no exception.
    """
    wide = torch.promote_types(bases.dtype, torch.float32)  # LAPACK has no half types
    left, right = bases.transpose(0, 1).to(wide), values.transpose(0, 1).to(wide)
    if bases.device.type == "cpu":
        solution = torch.linalg.lstsq(left, right, driver="gelsd").solution
    else:
        solution = torch.linalg.pinv(left) @ right  # other devices' lstsq expects bases of full rank
    return solution.permute(2, 0, 1).contiguous().to(bases.dtype)


def _transfer(old: Tensor, new: Tensor, spline_order: int, x: Tensor | None) -> Tensor:
    points, weights = _quadrature(torch.cat([old, new], dim=1).sort(dim=1).values, spline_order + 1)
    gram, cross = _products(points, weights, old, new, spline_order)
    transfer = _solver(gram)(cross)
    if x is None:
        return transfer
    data_gram, data_cross = _products(x, None, old, new, spline_order)
    length = new[:, -1] - new[:, 0]
    share = (OPEN_SHARE * x.shape[0] / length)[:, None, None]
    solve = _solver(data_gram + share * gram)
    # As corrections: where the new knots can hold the function, there is nothing to correct, and no rounding. The first leaves
    # some 1e-5 to the least-squares fit of well spread data, the second 1e-10.
    for _ in range(2):
        transfer = transfer + solve(data_cross - data_gram @ transfer)
    return transfer


def _quadrature(ends: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Points and weights (P, I) of Gauss-Legendre with `count` points on every interval of ends (I, T)."""
    k = torch.arange(1, count, dtype=torch.float64, device="cpu")
    off_diagonal = k / (4 * k * k - 1).sqrt()
    # Golub and Welsch: nodes are the eigenvalues of the Legendre polynomials' recurrence.
    nodes, vectors = torch.linalg.eigh(torch.diag(off_diagonal, 1) + torch.diag(off_diagonal, -1))
    weights = (2 * vectors[0] ** 2).to(ends.device)
    nodes = nodes.to(ends.device)
    half = ends.diff(dim=1).unsqueeze(-1) / 2
    points = ends[:, :-1].unsqueeze(-1) + half * (nodes + 1)
    return points.flatten(1).t(), (half * weights).flatten(1).t()


def _products(points: Tensor, weights: Tensor | None, old: Tensor, new: Tensor, K: int) -> tuple[Tensor, Tensor]:
    """(I, M_new, M_new) and (I, M_new, M_old): sums over points (P, I) of products of bases, feature by feature."""
    bases = old.shape[1] + new.shape[1]
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
    """(P, M) of one feature, x (P, 1): splines whose coefficients are a unit matrix, 8 times as fast as the reference's."""
    unit = torch.eye(len(knots) - K - 1, dtype=x.dtype, device=x.device).unsqueeze(1)
    return spline_forward(x, None, unit, None, knots.unsqueeze(0), None, "silu", 0)


def _solver(gram: Tensor) -> Callable[[Tensor], Tensor]:
    """right (I, M, R) -> the solution of gram (I, M, M), positive definite, for it."""
    scale = gram.diagonal(dim1=1, dim2=2).clamp_min(math.ulp(0.0)).rsqrt().unsqueeze(-1)
    factor = torch.linalg.cholesky(gram * scale * scale.transpose(1, 2))
    return lambda right: scale * torch.cholesky_solve(scale * right, factor)
