"""KAN layers with fused kernels: `KANLinear`, `KAN`, `kan_linear`, `edge_norms`, and `accelerate` for existing models."""

from typing import TYPE_CHECKING

from . import reference as reference
from . import symbolic as symbolic
from .backends import Info, info, use_backend
from .differential import derivatives, hessian, laplacian, register_derivative_rule
from .functional import edge_norms, kan_linear
from .interop import accelerate, restore
from .nn import KAN, AttributionScores, Edge, KANLinear, PruneResult, plot
from .version import __version__ as __version__

__all__ = [
    "KAN",
    "AttributionScores",
    "Edge",
    "Info",
    "KANLinear",
    "PruneResult",
    "accelerate",
    "derivatives",
    "edge_norms",
    "hessian",
    "info",
    "kan_linear",
    "laplacian",
    "plot",
    "register_derivative_rule",
    "restore",
    "use_backend",
]

if TYPE_CHECKING:
    from . import parallel as parallel
else:

    def __getattr__(name):
        # Imported lazily because torch.distributed is slow to import.
        if name == "parallel":
            import importlib

            return importlib.import_module(".parallel", __name__)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
