"""Search for the parameters of formulas."""

from .affine_fit import AffineFit, affine_fit

__all__ = ["AffineFit", "affine_fit"]
