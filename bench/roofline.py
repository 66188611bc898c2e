"""Compute the least time that a GPU's limits allow for the products and the memory traffic of a KAN layer.

The products are those of the dense layer, because the kernels multiply all M + 1 rows of bases on the tensor cores.
"""

from dataclasses import dataclass

from cases import Case


@dataclass(frozen=True)
class Device:
    """Rates that matrix products reach in practice, not the rates of the data sheet."""

    name: str
    teraflops: dict[str, float]  # by precision
    terabytes: float  # per second


# "highest" computes one float32 product as three float16 products.
H200 = Device("H200", {"highest": 263, "high": 395, "medium": 790}, 4.3)
PRECISIONS = tuple(H200.teraflops)


def least_milliseconds(case: Case, precision: str, mode: str, device: Device = H200) -> float:
    """Return the larger of products / peak and bytes / bandwidth in mode "forward" or "step" for float32 tensors."""
    rows, weights = case.N * (case.I + case.O), case.I * (case.M + 1) * case.O
    products = 1 if mode == "forward" else 3
    # A step reads x and g twice and writes y and the gradients of x and of the weights.
    traffic = 4 * (rows + weights) if mode == "forward" else 4 * (3 * rows + 3 * weights)
    flops = 2 * case.N * weights * products
    return 1e3 * max(flops / (1e12 * device.teraflops[precision]), traffic / (1e12 * device.terabytes))
