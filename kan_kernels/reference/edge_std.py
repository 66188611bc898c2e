"""The standard deviation of every edge's function over a batch, from second moments of the bases: Var phi = C^T Cov(basis) C.

With the basis (beta_0, ..., beta_{M-1}, b, e), where e = 1 - sum_m beta_m, an edge's function minus a number s has the
coefficients C = (spline_weight - s, base_weight, -s). s is the mean, which avoids cancellation if the standard deviation is
small compared to it. The moment matrix is banded with a border (see `reference.basis_moments`), so P = moments C takes K+1
products per coefficient, and the variance and its gradients take one or two products with P.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from .spline import scaled


def edge_std(
    moments: Tensor, spline_weight: Tensor, spline_scaler: Tensor | None, base_weight: Tensor | None, rows: int
) -> Tensor:
    """Return the unbiased standard deviation over `rows` rows, (O, I), dtype of spline_weight; 0 within rounding error."""
    return _measured(moments, spline_weight, spline_scaler, base_weight, rows).std.to(spline_weight.dtype)


def edge_std_backward(
    moments: Tensor,
    spline_weight: Tensor,
    spline_scaler: Tensor | None,
    base_weight: Tensor | None,
    rows: int,
    r: Tensor,
    need_moments: bool,
    need_spline_weight: bool,
    need_spline_scaler: bool,
    need_base_weight: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of the sum of r (O, I) times `edge_std`; (0,) if not needed.

    They are taken with respect to moments (I, M+2, K+4), spline_weight (O, I, M), spline_scaler (O, I) and base_weight (O, I).
    """
    edges = _measured(moments, spline_weight, spline_scaler, base_weight, rows)
    M, K, dtype = spline_weight.shape[2], moments.shape[2] - 4, spline_weight.dtype
    vanishes = edges.std == 0
    share = (r / (edges.std.masked_fill(vanishes, 1.0) * (rows - 1))).masked_fill(vanishes, 0.0).unsqueeze(-1)
    # The gradient of C. s is treated as a constant because its contribution cancels.
    along = share * (edges.P - edges.mean.unsqueeze(-1) * moments[:, :, K + 3])
    return (
        _moments_gradient(moments, edges, share) if need_moments else moments.new_empty(0),
        scaled(along[..., :M], spline_scaler).to(dtype) if need_spline_weight else spline_weight.new_empty(0),
        (along[..., :M] * spline_weight).sum(-1).to(dtype) if need_spline_scaler else spline_weight.new_empty(0),
        along[..., M].to(dtype) if need_base_weight else spline_weight.new_empty(0),
    )


@dataclass(frozen=True)
class _Measured:
    C: Tensor  # (O, I, M+2)
    P: Tensor  # moments times C
    mean: Tensor  # (O, I), of the function minus s
    std: Tensor  # (O, I)


def _measured(
    moments: Tensor, spline_weight: Tensor, spline_scaler: Tensor | None, base_weight: Tensor | None, rows: int
) -> _Measured:
    K = moments.shape[2] - 4
    sums = moments[:, :, K + 3]
    weights = scaled(spline_weight.double(), spline_scaler)
    none = torch.zeros_like(weights[..., :1])
    base = none if base_weight is None else base_weight.double().unsqueeze(-1)
    s = (sums * torch.cat([weights, base, none], -1)).sum(-1, keepdim=True) / rows
    C = torch.cat([weights - s, base, -s], -1)
    P = _times(moments, C)
    mean = (sums * C).sum(-1) / rows
    variance = ((C * P).sum(-1) - rows * mean.square()) / (rows - 1)
    eps = torch.finfo(torch.float64).eps
    sizes = (moments[:, :, 0] * C * C).sum(-1)  # magnitude of the terms that cancel
    rounding = (8 + rows**0.5 / 2) * eps  # relative rounding error of a sum over the rows
    vanishes = variance <= (K + 1) * rounding / (rows - 1) * sizes + (16 * eps * s.squeeze(-1)) ** 2
    return _Measured(C, P, mean, variance.masked_fill(vanishes, 1.0).sqrt().masked_fill(vanishes, 0.0))


def _times(moments: Tensor, C: Tensor) -> Tensor:
    K, M = moments.shape[2] - 4, C.shape[2] - 2
    P = moments[:, :, 0] * C
    for d in range(1, min(K + 1, M)):
        band = moments[:, : M - d, d]
        P = P + pad(band * C[..., d:M], (0, d + 2)) + pad(band * C[..., : M - d], (d, 2))
    border = moments[:, :M, K + 1 : K + 3]
    of_bases = torch.einsum("imk,oik->oim", border, C[..., M:])
    of_border = torch.einsum("imk,oim->oik", border, C[..., :M]) + moments[:, M, K + 2].unsqueeze(-1) * C[..., M:].flip(-1)
    return P + torch.cat([of_bases, of_border], -1)


def _moments_gradient(moments: Tensor, edges: _Measured, share: Tensor) -> Tensor:
    K, M = moments.shape[2] - 4, moments.shape[1] - 2
    C, weighted = edges.C, share * edges.C
    columns = [(weighted * C).sum(0) / 2]
    columns += [
        pad((weighted[..., : max(0, M - d)] * C[..., min(d, M) : M]).sum(0), (0, min(d, M) + 2)) for d in range(1, K + 1)
    ]
    border = pad(torch.einsum("oim,oik->imk", weighted[..., :M], C[..., M:]), (0, 0, 0, 2))
    corner = pad((weighted[..., M] * C[..., M + 1]).sum(0).unsqueeze(-1), (M, 1))
    columns += [border[..., 0], border[..., 1] + corner, -(weighted * edges.mean.unsqueeze(-1)).sum(0)]
    return torch.stack(columns, 2)
