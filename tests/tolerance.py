"""The one rule by which a kernel agrees with the reference.

A kernel's error against the float64 reference is at most twice the same-dtype reference's error, plus eps. Errors are in units
of the largest sum of |terms| that any element of the results adds up, so that cancellation counts for neither.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


def largest_error(value: Tensor, exact: Tensor) -> float:
    """max |value - exact|; infinite where one is finite and the other is not."""
    assert value.shape == exact.shape, f"shape {tuple(value.shape)}, expected {tuple(exact.shape)}"
    difference = (value.double() - exact).abs()
    if not bool(difference.isfinite().all()):
        return float("inf")
    return difference.max().item() if difference.numel() else 0.0


def allowed_error(reference_error: float, reference_dtype: torch.dtype, dtype: torch.dtype) -> float:
    """Twice the reference's error plus eps.

    A float64 reference cannot judge itself: its error is float32's, scaled, and comes once more for being the judge.
    """
    eps = torch.finfo(dtype).eps
    shares = 3 if dtype is torch.float64 else 2
    return shares * reference_error * eps / torch.finfo(reference_dtype).eps + eps


def assert_twice_rule(
    compute: Callable[[torch.dtype, int], Iterable[tuple[Tensor, Tensor, Tensor, Tensor]]],
    dtype: torch.dtype,
    trials: int,
    what: str,
) -> None:
    """Compare over `trials` random problems: one alone says little about a result of one element.

    compute(reference_dtype, seed) gives, for every result, (kernel's, same-dtype reference's, exact, scale).
    """
    reference_dtype = torch.float32 if dtype is torch.float64 else dtype
    worst: dict[int, tuple[float, float, float]] = {}
    for seed in range(trials):
        for k, (value, reference, exact, scale) in enumerate(compute(reference_dtype, seed)):
            assert value.dtype is dtype, f"{what}: result {k} has dtype {value.dtype}"
            largest = scale.abs().max().item() if scale.numel() else 0.0
            now = (largest_error(value, exact), largest_error(reference, exact), largest)
            worst[k] = tuple(map(max, worst.get(k, (0.0, 0.0, 0.0)), now))
    assert worst, "nothing was compared"
    for k, (error, reference_error, scale) in worst.items():
        allowed = allowed_error(reference_error / scale, reference_dtype, dtype) * scale if scale else 0.0
        assert error <= allowed, f"{what}: result {k}: error {error:.2e}, allowed {allowed:.2e}, scale {scale:.2e}"
