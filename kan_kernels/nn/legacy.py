"""Conversion of checkpoints and pickles of version 0.1.0, which used other names and stored parameters features first."""

import sys
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

# Module in 0.1.0 -> current module of the same classes.
_MODULES = {"kan_kernels.layers": "kan_kernels.nn.linear", "kan_kernels.network": "kan_kernels.nn.kan"}

# Name in 0.1.0 -> current name, and the permutation from the old to the current order of dimensions.
_PARAMETERS = {
    "base_coef": ("base_weight", (1, 0)),  # was (I, O)
    "coef": ("spline_weight", (2, 0, 1)),  # was (I, M, O)
    "scaler": ("spline_scaler", (1, 0)),  # was (I, O)
}
_BUFFERS = {"mask": ("edge_mask", (1, 0))}  # was (I, O)


def converted_state_dict(state_dict: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Return a state_dict in which the layer at `prefix` has the current names and shapes.

    A `state_dict` of 0.1.0 already has the current names, but its tensors are views. They are made contiguous because they may
    be assigned to the layer. Tensors with an unexpected number of dimensions are kept, and torch reports them.
    """
    converted = dict(state_dict)
    for old, (new, order) in (_PARAMETERS | _BUFFERS).items():
        value = converted.get(prefix + old)
        if isinstance(value, Tensor) and value.dim() == len(order) and prefix + new not in converted:
            converted[prefix + new] = converted.pop(prefix + old).permute(order)
        if isinstance(converted.get(prefix + new), Tensor):
            converted[prefix + new] = converted[prefix + new].contiguous()
    return converted


def converted_attributes(attributes: dict[str, Any]) -> dict[str, Any]:
    """Return a pickled layer's `__dict__` with the current parameters and buffers. Current pickles are unchanged."""
    parameters, buffers = attributes["_parameters"], attributes["_buffers"]
    if "coef" not in parameters:
        return attributes
    # In 0.1.0 a disabled parameter was a plain attribute set to None. Attributes added by the user are kept.
    kept = {name: value for name, value in attributes.items() if name not in _PARAMETERS}
    kept["_parameters"] = {new: _parameter(parameters.get(old), order) for old, (new, order) in _PARAMETERS.items()} | {
        name: parameter for name, parameter in parameters.items() if name not in _PARAMETERS
    }
    kept["_buffers"] = {"grid": buffers["grid"]} | {
        new: None if buffers.get(old) is None else buffers[old].permute(order).contiguous()
        for old, (new, order) in _BUFFERS.items()
    }
    kept["_buffers"] |= {name: buffer for name, buffer in buffers.items() if name not in _BUFFERS}
    return kept


def _parameter(old: nn.Parameter | None, order: tuple[int, ...]) -> nn.Parameter | None:
    if old is None:
        return None
    return nn.Parameter(old.detach().permute(order).contiguous(), requires_grad=old.requires_grad)


def register_old_modules() -> None:
    """Register the module names of 0.1.0, by which its pickles import their classes."""
    for old, new in _MODULES.items():
        sys.modules[old] = sys.modules[new]
