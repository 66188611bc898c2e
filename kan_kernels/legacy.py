"""Checkpoints and pickles of layers of version 0.1.0, which had other names and laid their parameters out features first."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

# Of 0.1.0's parameters and buffers: the name now, and the permutation that gives the dimensions their order of now.
_PARAMETERS = {
    "base_coef": ("base_weight", (1, 0)),  # was (I, O)
    "coef": ("spline_weight", (2, 0, 1)),  # was (I, M, O)
    "scaler": ("spline_scaler", (1, 0)),  # was (I, O)
}
_BUFFERS = {"mask": ("edge_mask", (1, 0))}  # was (I, O)


def converted_state_dict(state_dict: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """A state_dict in which the layer at `prefix` has the names and shapes of now.

    A `state_dict` of 0.1.0 has the names of now already, with tensors that are views: they become contiguous, as they may be
    assigned to the layer. What has an unexpected number of dimensions stays, for torch to report.
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
    """A pickled layer's `__dict__` with the parameters and buffers of now; unchanged if it has them already."""
    parameters, buffers = attributes["_parameters"], attributes["_buffers"]
    if "coef" not in parameters:
        return attributes
    # A parameter that 0.1.0's layer did not have was an attribute that is None. What is not 0.1.0's own stays.
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
