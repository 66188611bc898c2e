"""What makes edges few: sums and entropies of their norms."""

from typing import Literal, get_args

import torch
from torch import Tensor

from .checks import check_number

Metric = Literal["l1", "edge_forward_spline_n", "edge_forward_spline_u", "edge_backward"]
METRICS: tuple[Metric, ...] = get_args(Metric)


def loss_arguments(
    x: object, regularize_activation: float, regularize_entropy: float | None
) -> tuple[Tensor | None, float, float]:
    """The arguments of `regularization_loss`, which may also be efficient-kan's two factors in its order."""
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
    """activation times the sum of the norms and entropy times that of their shares, in nats (the paper's eq. 2.18, 2.19)."""
    total = norms.sum()
    tiny = torch.finfo(norms.dtype).tiny ** 0.5  # its inverse times its logarithm is finite, so gradients are too
    shares = norms / total.clamp_min(tiny)
    return activation * total - entropy * (shares * shares.clamp_min(tiny).log()).sum()


def bits_loss(norms: Tensor, activation: float, entropy: float) -> Tensor:
    """pykan's `reg`: norms (O, I), the mean entropies, in bits, of the rows' shares and of the columns'."""
    loss = activation * norms.sum()
    for along in (1, 0):
        shares = norms / (norms.sum(along, keepdim=True) + 1)
        loss = loss - entropy * (shares * (shares + 1e-4).log2()).sum(along).mean()
    return loss


def norm_loss(norms: Tensor, metric: Metric, activation: float, entropy: float) -> Tensor:
    """The loss of one of `METRICS`: the paper's for "l1", pykan's for its own."""
    return (coefficient_loss if metric == "l1" else bits_loss)(norms, activation, entropy)
