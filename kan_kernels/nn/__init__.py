"""Modules: the KAN layer, the KAN network, plotting and pruning."""

from .edge import Edge
from .kan import KAN
from .legacy import register_old_modules
from .linear import KANLinear
from .plotting import plot
from .pruning import AttributionScores, PruneResult

register_old_modules()

__all__ = ["KAN", "AttributionScores", "Edge", "KANLinear", "PruneResult", "plot"]
