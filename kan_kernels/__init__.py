"""KAN layers with fused kernels: `KANLinear`, `KAN`, `kan_linear`, `edge_norms`, and `accelerate` for those of others."""

from typing import TYPE_CHECKING

from . import reference as reference
from .diagnostics import info
from .edge_norms import edge_norms
from .functional import kan_linear
from .interop import accelerate, restore
from .layers import KANLinear
from .network import KAN
from .ops import use_backend
from .plotting import plot

__all__ = ["KAN", "KANLinear", "accelerate", "edge_norms", "info", "kan_linear", "plot", "restore", "use_backend"]
__version__ = "0.1.0"

if TYPE_CHECKING:
    from . import parallel as parallel
else:

    def __getattr__(name):
        # torch.distributed takes its time to import.
        if name == "parallel":
            import importlib

            return importlib.import_module(".parallel", __name__)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
