"""Derivatives of the edge norm operators. Gradients use the kernels; second derivatives and tangents use the reference.

The reference materialises (N, O, I) tensors, so its use is logged as a fallback.
"""

from typing import Any

import torch

from .. import reference
from ..backends import log_fallback
from . import library, vmap
from .autograd import Differentiable, drop_unneeded, register


class EdgeL1(Differentiable):
    """Inputs x, spline_weight, spline_scaler, grid, base_weight, activation."""

    operator = library.edge_l1

    @staticmethod
    def backward(ctx, r):
        needs = [ctx.needs_input_grad[k] for k in (0, 1, 2, 4)]
        gradients = library.edge_l1_backward(*ctx.saved_tensors, *ctx.rest, r, *needs)
        grad_x, grad_spline_weight, grad_spline_scaler, grad_base_weight = drop_unneeded(gradients, needs)
        return grad_x, grad_spline_weight, grad_spline_scaler, None, grad_base_weight, None


class BasisMoments(Differentiable):
    """Inputs x, grid, K, activation."""

    operator = library.basis_moments

    @staticmethod
    def backward(ctx, r):
        return library.basis_moments_backward(*ctx.saved_tensors, *ctx.rest, r), None, None, None


class EdgeStd(Differentiable):
    """Inputs moments, spline_weight, spline_scaler, base_weight, rows."""

    operator = library.edge_std

    @staticmethod
    def backward(ctx, r):
        needs = ctx.needs_input_grad[:4]
        return *drop_unneeded(library.edge_std_backward(*ctx.saved_tensors, *ctx.rest, r, *needs), needs), None


def _by_reference(operator: Any) -> Any:
    """Return the reference implementation of an operator, which torch differentiates in every mode."""
    name = operator._schema.name.partition("::")[2]
    function = getattr(reference, name)

    def computed(*arguments: Any) -> Any:
        if not torch.compiler.is_compiling():
            log_fallback("second derivatives and tangents of edge norms run on the reference", "only gradients have kernels")
        return function(*arguments)

    return computed


for _function in (EdgeL1, BasisMoments, EdgeStd):
    register(_function.operator, _function.apply_at_any_level, _by_reference(_function.operator), vmap.one_by_one)
for _operator in (library.edge_l1_backward, library.basis_moments_backward, library.edge_std_backward):
    register(_operator, _by_reference(_operator), _by_reference(_operator), vmap.one_by_one)
