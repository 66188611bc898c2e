"""Sparsity losses: sums and entropies of edge norms."""

from typing import Literal, get_args

import torch
from torch import Tensor

from ..utils.checks import check_number

Metric = Literal["l1", "edge_forward_spline_n", "edge_forward_spline_u", "edge_backward"]
METRICS: tuple[Metric, ...] = get_args(Metric)


def loss_arguments(
    x: object, regularize_activation: float, regularize_entropy: float | None
) -> tuple[Tensor | None, float, float]:
    """Return x and the two factors of `regularization_loss`, which also accepts efficient-kan's two positional factors."""
    if isinstance(x, (int, float)) and not isinstance(x, bool):
        factors = (x, regularize_activation if regularize_entropy is None else regularize_entropy)
        x = None
    else:
        factors = (regularize_activation, 1.0 if regularize_entropy is None else regularize_entropy)
    check_number("regularize_activation", factors[0])
    check_number("regularize_entropy", factors[1])
    if x is not None and not isinstance(x, Tensor):
        raise TypeError(f"x: expected a torch.Tensor, a number or None, got {type(x).__name__}")
    return x, factors[0], factors[1]


def coefficient_loss(norms: Tensor, activation: float, entropy: float) -> Tensor:
    """Return activation times the sum of the norms plus entropy times their entropy in nats (KAN paper, eq. 2.18, 2.19)."""
    total = norms.sum()
    tiny = torch.finfo(norms.dtype).tiny ** 0.5  # log(tiny) / tiny is finite, so the gradients are finite
    shares = norms / total.clamp_min(tiny)
    return activation * total - entropy * (shares * shares.clamp_min(tiny).log()).sum()


def bits_loss(norms: Tensor, activation: float, entropy: float) -> Tensor:
    """Return pykan's `reg` of norms (O, I), which uses the mean entropies in bits of the normalised rows and columns."""
    loss = activation * norms.sum()
    for along in (1, 0):
        shares = norms / (norms.sum(along, keepdim=True) + 1)
        loss = loss - entropy * (shares * (shares + 1e-4).log2()).sum(along).mean()
    return loss


def norm_loss(norms: Tensor, metric: Metric, activation: float, entropy: float) -> Tensor:
    """Return the loss for one of `METRICS`: `coefficient_loss` for "l1", `bits_loss` for pykan's metrics."""
    return (coefficient_loss if metric == "l1" else bits_loss)(norms, activation, entropy)
