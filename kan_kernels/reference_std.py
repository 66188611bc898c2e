"""The standard deviation of every edge's function over a batch, from second moments of the bases: Var phi = C^T Cov(basis) C.

With the basis (beta_0, ..., beta_{M-1}, b, e), where e = 1 - sum_m beta_m, an edge's function less a number s is the
combination C = (coef - s, base_weight, -s). The mean is taken for s, or a spread small beside it would be lost. The moments'
matrix is a band with a border (`reference_norms.basis_moments` lays it out), so that P = moments C takes K+1 products a
coefficient, and both the variance and its gradients are a product or two with P.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import pad

from .reference import scaled


def edge_std(moments: Tensor, coef: Tensor, scaler: Tensor | None, base_weight: Tensor | None, rows: int) -> Tensor:
    """(I, O), dtype of coef: the unbiased standard deviation over `rows` rows; one that is only rounding is 0."""
    return _measured(moments, coef, scaler, base_weight, rows).std.to(coef.dtype)


def edge_std_backward(
    moments: Tensor,
    coef: Tensor,
    scaler: Tensor | None,
    base_weight: Tensor | None,
    rows: int,
    r: Tensor,
    need_moments: bool,
    need_coef: bool,
    need_scaler: bool,
    need_base: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of the sum of r (I, O) times `edge_std`: of moments, coef, scaler and base_weight; (0,) if not needed."""
    edges = _measured(moments, coef, scaler, base_weight, rows)
    M, K = coef.shape[1], moments.shape[2] - 4
    vanishes = edges.std == 0
    share = (r / (edges.std.masked_fill(vanishes, 1.0) * (rows - 1))).masked_fill(vanishes, 0.0).unsqueeze(1)
    # Of C; the number taken from the coefficients cancels: it counts as constant.
    along = share * (edges.P - edges.mean.unsqueeze(1) * moments[:, :, K + 3 :])
    none = coef.new_empty(0)
    return (
        _moments_gradient(moments, edges, share) if need_moments else moments.new_empty(0),
        scaled(along[:, :M], scaler).to(coef.dtype) if need_coef else none,
        (along[:, :M] * coef).sum(1).to(coef.dtype) if need_scaler else none,
        along[:, M].to(coef.dtype) if need_base else none,
    )


@dataclass(frozen=True)
class _Measured:
    C: Tensor  # (I, M+2, O)
    P: Tensor  # the moments times C
    mean: Tensor  # (I, O), of the function less s
    std: Tensor  # (I, O)


def _measured(moments: Tensor, coef: Tensor, scaler: Tensor | None, base_weight: Tensor | None, rows: int) -> _Measured:
    K = moments.shape[2] - 4
    sums = moments[:, :, K + 3 :]
    weights = scaled(coef.double(), scaler)
    none = torch.zeros_like(weights[:, :1])
    base = none if base_weight is None else base_weight.double().unsqueeze(1)
    s = (sums * torch.cat([weights, base, none], 1)).sum(1) / rows
    C = torch.cat([weights - s.unsqueeze(1), base, -s.unsqueeze(1)], 1)
    P = _times(moments, C)
    mean = (sums * C).sum(1) / rows
    variance = ((C * P).sum(1) - rows * mean.square()) / (rows - 1)
    eps = torch.finfo(torch.float64).eps
    sizes = (moments[:, :, :1] * C * C).sum(1)  # of the terms that cancel
    rounding = (8 + rows**0.5 / 2) * eps  # of a sum of that many
    vanishes = variance <= (K + 1) * rounding / (rows - 1) * sizes + (16 * eps * s) ** 2
    return _Measured(C, P, mean, variance.masked_fill(vanishes, 1.0).sqrt().masked_fill(vanishes, 0.0))


def _times(moments: Tensor, C: Tensor) -> Tensor:
    K, M = moments.shape[2] - 4, C.shape[1] - 2
    P = moments[:, :, :1] * C
    for d in range(1, min(K + 1, M)):
        band = moments[:, : M - d, d : d + 1]
        P = P + pad(band * C[:, d:M], (0, 0, 0, d + 2)) + pad(band * C[:, : M - d], (0, 0, d, 2))
    border = moments[:, :M, K + 1 : K + 3]
    corner = moments[:, M, K + 2].view(-1, 1, 1) * C[:, M:].flip(1)
    return P + torch.cat([border @ C[:, M:], border.transpose(1, 2) @ C[:, :M] + corner], 1)


def _moments_gradient(moments: Tensor, edges: _Measured, share: Tensor) -> Tensor:
    K, M = moments.shape[2] - 4, moments.shape[1] - 2
    C, weighted = edges.C, share * edges.C
    columns = [(weighted * C).sum(2) / 2]
    columns += [pad((weighted[:, : max(0, M - d)] * C[:, min(d, M) : M]).sum(2), (0, min(d, M) + 2)) for d in range(1, K + 1)]
    border = pad(weighted[:, :M] @ C[:, M:].transpose(1, 2), (0, 0, 0, 2))
    corner = pad((weighted[:, M : M + 1] * C[:, M + 1 :]).sum(2), (M, 1))
    columns += [border[..., 0], border[..., 1] + corner, -(weighted * edges.mean.unsqueeze(1)).sum(2)]
    return torch.stack(columns, 2)
