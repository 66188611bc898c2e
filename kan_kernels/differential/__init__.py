"""Derivatives of networks with respect to their inputs, in one pass."""

from .jet import Jet
from .operators import Derivatives, Laplacian, derivatives, hessian, laplacian
from .rules import register_derivative_rule

__all__ = ["Derivatives", "Jet", "Laplacian", "derivatives", "hessian", "laplacian", "register_derivative_rule"]
