"""The correctness gate, which prevents timings of wrong results."""

from collections.abc import Callable

import torch
from cases import Case, Tensors, make
from torch import Tensor

import kan_kernels as kk
from kan_kernels import reference

# The largest N I M for which the float64 reference is quick and fits in memory.
REFERENCE_BASES = {"cpu": 8_000_000, "cuda": 150_000_000}
ROWS = 256  # number of rows to check in larger cases


def check(name: str, case: Case, device: str = "cpu") -> None:
    """Exit unless kan_kernels' float32 forward and gradients are as accurate as the reference's.

    The error against the float64 reference may be at most twice that of the float32 reference, plus the rounding of the
    largest value.
    """
    t = make(case, torch.float32)
    limit = REFERENCE_BASES[device]
    if limit < case.N * case.I * case.M:
        t.x, t.g = t.x[:ROWS], t.g[:ROWS]
    t = t.on(device)
    ours = _results(kk.kan_linear, t)
    same_dtype = _results(reference.kan_linear, t)
    exact = _results(reference.kan_linear, t.to(torch.float64))
    rounding = torch.finfo(torch.float32).eps
    for what, truth in exact.items():
        error = _largest(ours[what] - truth)
        allowed = 2 * _largest(same_dtype[what] - truth) + rounding * _largest(truth)
        if not error <= allowed:  # also true for NaN
            raise SystemExit(f"{name}: {what} is wrong by {error:.2e}, allowed are {allowed:.2e}: not timed")


def _results(function: Callable[..., Tensor], t: Tensors) -> dict[str, Tensor]:
    inputs = {"x": t.x, "spline_weight": t.spline_weight, "base_weight": t.base_weight}
    leaves = {name: value.detach().requires_grad_() for name, value in inputs.items() if value is not None}
    y = function(leaves["x"], leaves["spline_weight"], t.grid, leaves.get("base_weight"))
    gradients = torch.autograd.grad(y, list(leaves.values()), t.g)
    return {"y": y.detach()} | {f"grad of {name}": grad for name, grad in zip(leaves, gradients, strict=True)}


def _largest(values: Tensor) -> float:
    return values.abs().max().item()
