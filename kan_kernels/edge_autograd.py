"""The derivatives of what is asked about edges: gradients by the kernels, second ones and tangents by the reference.

The reference is dense in rows, features and outputs: what runs on it is noted as a fallback.
"""

from typing import Any

import torch

from . import batching, fallbacks, ops
from .autograd import Differentiable, register, wanted


class EdgeL1(Differentiable):
    """Inputs x, spline_weight, spline_scaler, grid, base_weight, activation."""

    operator = ops.edge_l1

    @staticmethod
    def backward(ctx, r):
        needs = [ctx.needs_input_grad[k] for k in (0, 1, 2, 4)]
        gradients = ops.edge_l1_backward(*ctx.saved_tensors, *ctx.rest, r, *needs)
        grad_x, grad_spline_weight, grad_spline_scaler, grad_base_weight = wanted(gradients, needs)
        return grad_x, grad_spline_weight, grad_spline_scaler, None, grad_base_weight, None


class BasisMoments(Differentiable):
    """Inputs x, grid, K, activation."""

    operator = ops.basis_moments

    @staticmethod
    def backward(ctx, r):
        return ops.basis_moments_backward(*ctx.saved_tensors, *ctx.rest, r), None, None, None


class EdgeStd(Differentiable):
    """Inputs moments, spline_weight, spline_scaler, base_weight, rows."""

    operator = ops.edge_std

    @staticmethod
    def backward(ctx, r):
        needs = ctx.needs_input_grad[:4]
        return *wanted(ops.edge_std_backward(*ctx.saved_tensors, *ctx.rest, r, *needs), needs), None


def _by_reference(operator: Any) -> Any:
    """The reference's function, which torch differentiates in every mode."""
    name = operator._schema.name.partition("::")[2]
    function = ops.referred(name)

    def computed(*arguments: Any) -> Any:
        if not torch.compiler.is_compiling():
            fallbacks.note("second derivatives and tangents of edge norms run on the reference", "the kernels give gradients")
        return function(*arguments)

    return computed


for _function in (EdgeL1, BasisMoments, EdgeStd):
    register(_function.operator, _function.recorded, _by_reference(_function.operator), batching.one_by_one)
for _operator in (ops.edge_l1_backward, ops.basis_moments_backward, ops.edge_std_backward):
    register(_operator, _by_reference(_operator), _by_reference(_operator), batching.one_by_one)
