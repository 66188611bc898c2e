"""The rule that decides whether a kernel agrees with the reference.

A kernel's error against the float64 reference may be at most twice the error of the reference in the same dtype, plus eps.
Errors are relative to the largest sum of |terms| of any element of the results, so that cancellation does not affect them.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor


def largest_error(value: Tensor, exact: Tensor) -> float:
    """Return max |value - exact|, or infinity if any difference is not finite."""
    assert value.shape == exact.shape, f"shape {tuple(value.shape)}, expected {tuple(exact.shape)}"
    difference = (value.double() - exact).abs()
    if not bool(difference.isfinite().all()):
        return float("inf")
    return difference.max().item() if difference.numel() else 0.0


def allowed_error(reference_error: float, reference_dtype: torch.dtype, dtype: torch.dtype) -> float:
    """Return twice the reference's error plus eps.

    For float64, the reference's error is measured in float32 and scaled, because the exact values are themselves computed in
    float64. It is added once more for the error of the exact values.
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
    """Compare the largest errors over `trials` random problems, because one problem says little about a result of one element.

    compute(reference_dtype, seed) yields (value, value of the reference in the same dtype, exact value, scale) per result.
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
