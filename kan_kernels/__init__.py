"""KAN layers with fused kernels: `KANLinear`, `KAN`, `kan_linear`, `use_backend`, `info`."""

from .diagnostics import info
from .functional import kan_linear
from .layers import KAN, KANLinear
from .ops import use_backend

__all__ = ["KAN", "KANLinear", "info", "kan_linear", "use_backend"]
__version__ = "0.1.0"
