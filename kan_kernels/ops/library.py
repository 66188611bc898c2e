"""The operators in `torch.ops.kan_kernels`: their schemas, fake kernels and kernels for each device.

`reference/` defines the formulas and is the default for every dispatch key. The C++ extension, if it is built, registers CPU
kernels. The Triton kernels, if triton is installed, are registered for CUDA, which includes ROCm.
"""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import backends, reference
from ..utils.memory_layout import features_first, laid_out, new_gradient

MAX_DERIVATIVE = 30  # the highest order in the tables of the C++ kernels

# Name -> schema. The C++ library defines the operators from the same file, so it can be loaded without Python.
_SCHEMAS = {line.partition("(")[0]: line for line in (Path(__file__).parent / "schemas.txt").read_text().splitlines()}
# They run on the reference on a GPU: the time of the first two does not depend on N, and the third is for fits after training.
_ON_REFERENCE = ("edge_std", "edge_std_backward", "affine_cells")


def _forward_shape(x, w, spline_weight, spline_scaler, grid, base_weight, activation, derivative):
    return x.new_empty(x.shape[0], spline_weight.shape[0])


def _backward_input_shape(x, g, spline_weight, spline_scaler, grid, base_weight, activation, derivative):
    return x.new_empty(x.shape)


def _backward_weight_shape(x, w, g, spline_weight, spline_scaler, grid, spline_order, activation, derivative, *needs):
    outputs, features, bases = g.shape[1], x.shape[1], grid.shape[1] - spline_order - 1
    return _parameter_gradients(x, (outputs, features, bases), spline_weight, needs)


def _parameter_gradients(like, shape, spline_weight, needs):
    """Allocate gradients of spline_weight, of `shape` (O, I, M), spline_scaler and base_weight; (0,) if not needed."""
    transposed = features_first(spline_weight)
    shapes = (shape, shape[:2], shape[:2])
    return tuple(
        new_gradient(like, size, transposed) if need else like.new_empty(0) for need, size in zip(needs, shapes, strict=True)
    )


def _backward_shape(x, w, g, spline_weight, spline_scaler, grid, base_weight, activation, derivative, *needs):
    return x.new_empty(x.shape), *_parameter_gradients(x, spline_weight.shape, spline_weight, needs)


def _edge_l1_shape(x, spline_weight, spline_scaler, grid, base_weight, activation):
    return x.new_empty(spline_weight.shape[:2])


def _edge_l1_backward_shape(x, spline_weight, spline_scaler, grid, base_weight, activation, r, need_input, *needs):
    of_x = x.new_empty(x.shape if need_input else (0,))
    return of_x, *_parameter_gradients(x, spline_weight.shape, spline_weight, needs)


def _basis_moments_shape(x, grid, spline_order, activation):
    return x.new_empty(x.shape[1], grid.shape[1] - spline_order + 1, spline_order + 4, dtype=torch.float64)


def _basis_moments_backward_shape(x, grid, spline_order, activation, r):
    return x.new_empty(x.shape)


def _edge_std_shape(moments, spline_weight, spline_scaler, base_weight, rows):
    return spline_weight.new_empty(spline_weight.shape[:2])


def _edge_std_backward_shape(moments, spline_weight, spline_scaler, base_weight, rows, r, need_moments, *needs):
    of_moments = moments.new_empty(moments.shape if need_moments else (0,))
    return of_moments, *_parameter_gradients(spline_weight, spline_weight.shape, spline_weight, needs)


def _affine_cells_shape(x, target, function, a, b):
    return x.new_empty(a.shape[0], b.shape[0])


def _channels_shape(x, w, spline_weight, spline_scaler, grid, base_weight, activation, channels, orders):
    return x.new_empty(max(channels, default=0) + 1, x.shape[0], spline_weight.shape[0])


def _channels_backward_shape(x, w, g, spline_weight, spline_scaler, grid, base_weight, activation, channels, orders, *needs):
    of_x, of_w = (t.new_empty(t.shape if needs[0] else (0,)) for t in (x, w))
    return of_x, of_w, *_parameter_gradients(x, spline_weight.shape, spline_weight, needs[1:])


_SHAPES: dict[str, Callable[..., Any]] = {
    "spline_forward": _forward_shape,
    "spline_backward_input": _backward_input_shape,
    "spline_backward_weight": _backward_weight_shape,
    "spline_backward": _backward_shape,
    "spline_channels": _channels_shape,
    "spline_channels_backward": _channels_backward_shape,
    "edge_l1": _edge_l1_shape,
    "edge_l1_backward": _edge_l1_backward_shape,
    "basis_moments": _basis_moments_shape,
    "basis_moments_backward": _basis_moments_backward_shape,
    "edge_std": _edge_std_shape,
    "edge_std_backward": _edge_std_backward_shape,
    "affine_cells": _affine_cells_shape,
}


def reference_op(name: str) -> Callable[..., Any]:
    """Return the reference implementation of an operator, with results in the memory layout of `_SHAPES`."""
    function = getattr(reference, name)
    parameters = _SCHEMAS[name].partition(")")[0].split(", ")
    place = next((k for k, parameter in enumerate(parameters) if parameter.endswith(" spline_weight")), None)

    def computed(*arguments: Any) -> Any:
        results = function(*arguments)
        if isinstance(results, Tensor):
            return results.contiguous()
        *others, of_spline_weight, of_spline_scaler, of_base_weight = results
        transposed = place is not None and features_first(arguments[place])
        gradients = [laid_out(gradient, transposed) for gradient in (of_spline_weight, of_spline_scaler, of_base_weight)]
        return (*(other.contiguous() for other in others), *gradients)

    return computed


def _register() -> torch.library.Library:
    library = torch.library.Library("kan_kernels", "DEF" if backends.extension is None else "FRAGMENT")
    for name, schema in _SCHEMAS.items():
        if backends.extension is None:
            library.define(schema)
        library.impl(name, reference_op(name), "CompositeExplicitAutograd")
        torch.library.register_fake(f"kan_kernels::{name}", _SHAPES[name], lib=library)
    return library


def _register_triton() -> None:
    """Register the Triton kernels. Triton is imported on the first call of a kernel."""
    for name in _SCHEMAS:
        if name in _ON_REFERENCE:
            continue
        LIBRARY.impl(name, functools.partial(_launch, name), "CUDA")
        if backends.INTERPRETED:
            LIBRARY.impl(name, functools.partial(_interpret, name), "CPU")


def _launch(name: str, *arguments: Any) -> Any:
    if backends.triton_missing:
        backends.log_fallback("the GPU runs on the reference", backends.triton_missing)
        return reference_op(name)(*arguments)
    from .. import triton

    return getattr(triton, name)(*arguments)


def _interpret(name: str, *arguments: Any) -> Any:
    return _launch(name, *arguments) if backends.backend() == "triton" else reference_op(name)(*arguments)


LIBRARY = _register()
_register_triton()

spline_forward = torch.ops.kan_kernels.spline_forward.default
spline_backward_input = torch.ops.kan_kernels.spline_backward_input.default
spline_backward_weight = torch.ops.kan_kernels.spline_backward_weight.default
spline_backward = torch.ops.kan_kernels.spline_backward.default
spline_channels = torch.ops.kan_kernels.spline_channels.default
spline_channels_backward = torch.ops.kan_kernels.spline_channels_backward.default
edge_l1 = torch.ops.kan_kernels.edge_l1.default
edge_l1_backward = torch.ops.kan_kernels.edge_l1_backward.default
basis_moments = torch.ops.kan_kernels.basis_moments.default
basis_moments_backward = torch.ops.kan_kernels.basis_moments_backward.default
edge_std = torch.ops.kan_kernels.edge_std.default
affine_cells = torch.ops.kan_kernels.affine_cells.default
edge_std_backward = torch.ops.kan_kernels.edge_std_backward.default
