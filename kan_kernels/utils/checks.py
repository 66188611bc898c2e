"""Argument checks. They raise a TypeError or ValueError that names the argument, the expected value and the actual one."""

import math
from numbers import Integral, Real
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..reference import FUSED_ACTIVATIONS, infer_spline_order
from .torch_private import FakeTensor

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_CASTS = {torch.float64: "double()", torch.float32: "float()", torch.bfloat16: "bfloat16()", torch.float16: "half()"}
_SIZE_NAMES = {"x": "(..., I)", "spline_weight": "(O, I, M)", "grid": "(I, G+2K+1)"}


def check_kan_linear(
    x: Any, spline_weight: Any, grid: Any, base_weight: Any, spline_scaler: Any, base_activation: Any
) -> None:
    """Check the arguments of `kan_linear`."""
    check_floating("x", x)
    check_floating("spline_weight", spline_weight)
    check_floating("grid", grid)
    if x.dim() < 1:
        raise ValueError(f"x: expected at least one dimension {_SIZE_NAMES['x']}, got a scalar")
    _check_rank("spline_weight", spline_weight, 3)
    _check_rank("grid", grid, 2)
    outputs, features, bases = spline_weight.shape
    _check_like("x", x, spline_weight, f"; use x.{_CASTS[spline_weight.dtype]}")
    _check_device("grid", grid, spline_weight)
    if grid.dtype is not x.dtype and torch.promote_types(grid.dtype, x.dtype) is not grid.dtype:
        raise TypeError(
            f"grid: expected {dtype_name(x)}, the dtype of spline_weight, or a wider dtype, got {dtype_name(grid)}"
        )
    if x.shape[-1] != features:
        raise ValueError(
            f"x: expected {features} features in the last dimension, as in spline_weight, got shape {shape_of(x)}"
        )
    if grid.shape[0] != features:
        raise ValueError(f"grid: expected {features} rows, one per feature of spline_weight, got shape {shape_of(grid)}")
    if features < 1 or outputs < 1:
        raise ValueError(f"spline_weight: expected at least one feature and one output, got shape {shape_of(spline_weight)}")
    order = infer_spline_order(bases, grid.shape[1])
    if order < 0 or bases - order < 1:
        raise ValueError(
            f"grid: expected G+2K+1 knots for the M = G+K = {bases} bases of spline_weight with K >= 0 and G >= 1,"
            f" got {grid.shape[1]} knots, which implies K = {order} and G = {bases - order}"
        )
    for name, value in (("base_weight", base_weight), ("spline_scaler", spline_scaler)):
        if value is not None:
            check_floating(name, value)
            _check_like(name, value, spline_weight)
            if value.shape != (outputs, features):
                raise ValueError(f"{name}: expected shape (O, I) = ({outputs}, {features}), got {shape_of(value)}")
    if isinstance(base_activation, str):
        if base_activation not in FUSED_ACTIVATIONS:
            raise ValueError(f"base_activation: expected one of {FUSED_ACTIVATIONS} or a callable, got {base_activation!r}")
    elif base_activation is not None and not callable(base_activation):
        raise TypeError(
            f"base_activation: expected one of {FUSED_ACTIVATIONS}, a callable or None, got {type(base_activation).__name__}"
        )
    elif base_activation is None and base_weight is not None:
        raise ValueError("base_weight: expected None because base_activation is None, got a tensor")


def check_layer_dtype(x: Any, weight: Tensor, name: str = "x") -> None:
    """Check that an input has the dtype of the layer's parameters."""
    check_floating(name, x)
    if x.dtype is not weight.dtype:
        raise TypeError(
            f"{name}: expected {dtype_name(weight)}, the dtype of the layer's parameters, got {dtype_name(x)};"
            f" use layer.{_CASTS[x.dtype]} or {name}.{_CASTS[weight.dtype]}"
        )


def rows_of(x: Tensor) -> Tensor:
    """Reshape x (..., I) to (N, I). Unlike reshape(-1, I), this also works if N or I is 0."""
    return x if x.dim() == 2 else x.reshape(math.prod(x.shape[:-1]), x.shape[-1])


def shape_of(tensor: Tensor) -> tuple[int, ...]:
    """Return the shape for messages. `len(range(size))` is an int even if torch.compile traces with symbolic sizes."""
    return tuple(len(range(size)) for size in tensor.shape)


def dtype_name(tensor: Tensor) -> str:
    """Return the dtype for messages, e.g. "float32"."""
    return str(tensor.dtype).removeprefix("torch.")


def class_name(value: Any) -> str:
    """Return the module and name of the class of value, for messages that compare classes with equal names."""
    return f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")


def check_tensor(name: str, value: Any) -> None:
    """Check that value is a tensor."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")


def check_floating(name: str, value: Any) -> None:
    """Check that value is a dense tensor with one of `DTYPES`."""
    check_tensor(name, value)
    if value.layout is not torch.strided or value.is_nested:
        raise TypeError(f"{name}: expected a dense tensor, got {'a nested tensor' if value.is_nested else value.layout}")
    if value.dtype not in DTYPES:
        raise TypeError(f"{name}: expected a floating-point dtype of 16, 32 or 64 bits, got {dtype_name(value)}")


def check_has_values(name: str, value: Tensor) -> None:
    """Check that a tensor is not on the meta device."""
    if value.is_meta:
        raise ValueError(f"{name}: expected a tensor with values, got one on the meta device")


def check_grid(grid: Any, features: int, spline_order: int) -> None:
    """Check the knots of a layer: (features, G+2K+1) with G >= 1, finite, strictly increasing in every row."""
    check_floating("grid", grid)
    _check_rank("grid", grid, 2)
    if grid.shape[0] != features:
        raise ValueError(f"grid: expected {features} rows, one per feature, got shape {shape_of(grid)}")
    if grid.shape[1] < 2 * spline_order + 2:
        raise ValueError(
            f"grid: expected at least 2K+2 = {2 * spline_order + 2} knots for degree {spline_order}, got {grid.shape[1]}"
        )
    if grid.is_meta or isinstance(grid, FakeTensor):
        return
    if not bool(grid.isfinite().all()):
        raise ValueError("grid: expected finite knots, got a NaN or an infinity")
    if not bool((grid.diff(dim=1) > 0).all()):
        raise ValueError(
            "grid: expected strictly increasing knots in every row, got equal or decreasing knots"
            f" (knots closer than the resolution of {dtype_name(grid)} are equal)"
        )


def check_rows(x: Any, features: int, smallest: int, finite: bool = True) -> Tensor:
    """Check x (..., features), which has at least `smallest` rows and, if `finite`, finite values; return (N, features)."""
    check_floating("x", x)
    if finite:
        check_has_values("x", x)
    if x.dim() < 1 or x.shape[-1] != features:
        raise ValueError(f"x: expected {features} features in the last dimension, got shape {shape_of(x)}")
    rows = rows_of(x)
    if rows.shape[0] < smallest:
        raise ValueError(f"x: expected at least {smallest} row{'s' * (smallest > 1)}, got shape {shape_of(x)}")
    if finite and not bool(rows.isfinite().all()):
        raise ValueError("x: expected finite inputs, got a NaN or an infinity")
    return rows


def check_parameters(method: str, module: nn.Module, *names: str) -> None:
    """Check that the tensors that a method replaces are parameters or None, not computed by a pruning or parametrization."""
    for name in names:
        if name not in module._parameters:
            raise ValueError(
                f"{method}: expected {name} to be a parameter of the layer, got a tensor that torch.nn.utils computes from"
                " other parameters; call prune.remove or parametrize.remove_parametrizations first"
            )


def check_size(name: str, value: Any, smallest: int) -> None:
    """Check that value is an int, Python's or NumPy's, >= `smallest`."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name}: expected an int, got {type(value).__name__}")
    if value < smallest:
        raise ValueError(f"{name}: expected at least {smallest}, got {value}")


def check_choice(name: str, value: Any, choices: tuple[str, ...]) -> None:
    """Check that value is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{name}: expected one of {choices}, got {value!r}")


def check_number(name: str, value: Any, low: float = -float("inf"), high: float = float("inf")) -> None:
    """Check that value is a finite real number, Python's or NumPy's, in [low, high]."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    number = cast(float, value)
    if not (low <= number <= high and abs(number) < float("inf")):
        bounds = f" in [{low}, {high}]" if math.isfinite(high) else f" >= {low}" if math.isfinite(low) else ""
        raise ValueError(f"{name}: expected a finite number{bounds}, got {value}")


def _check_rank(name: str, value: Tensor, rank: int) -> None:
    if value.dim() != rank:
        raise ValueError(f"{name}: expected {rank} dimensions {_SIZE_NAMES[name]}, got shape {shape_of(value)}")


def _check_like(name: str, value: Tensor, spline_weight: Tensor, advice: str = "") -> None:
    if value.dtype is not spline_weight.dtype:
        raise TypeError(
            f"{name}: expected {dtype_name(spline_weight)}, the dtype of spline_weight, got {dtype_name(value)}{advice}"
        )
    _check_device(name, value, spline_weight)


def _check_device(name: str, value: Tensor, spline_weight: Tensor) -> None:
    if value.device != spline_weight.device:
        raise ValueError(f"{name}: expected {spline_weight.device}, the device of spline_weight, got {value.device}")
