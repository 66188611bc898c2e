"""From curves to formulas: `suggest` fits the functions of a library, and `KAN.symbolic` does so for every edge."""

from .affine_fit import AffineFit, affine_fit
from .library import LIBRARY, Function
from .network import Report, ReportedEdge, SymbolicKAN, SymbolicLayer
from .suggest import Candidate, suggest

__all__ = [
    "LIBRARY",
    "AffineFit",
    "Candidate",
    "Function",
    "Report",
    "ReportedEdge",
    "SymbolicKAN",
    "SymbolicLayer",
    "affine_fit",
    "suggest",
]
