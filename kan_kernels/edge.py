"""`Edge`: the function of one edge of a layer, to be evaluated, differentiated and handed to SciPy."""

import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from .checks import check_layer_dtype, check_size
from .functional import kan_form
from .ops import MAX_DERIVATIVE
from .reference import base_activation, scaled
from .sharding import check_whole

if TYPE_CHECKING:
    from scipy.interpolate import BSpline

    from .layers import KANLinear


class Edge:
    """The function of one edge of a `KANLinear`: what input i adds to output o, as `KANLinear.edge(o, i)` returns it.

    phi(t) = base_weight[o,i] b(t) + spline_scaler[o,i] sum_m spline_weight[o,i,m] beta_{i,m}(t)

    It reads the layer's parameters whenever it is called, so it is always the function of the layer as it is now, and
    gradients reach t and the layer's parameters. The function of an edge that was pruned is zero.

    Attributes:
        out_feature, in_feature: o and i, not negative.
        base_weight: the factor of b, a scalar tensor; 0 if the edge was pruned, None in a layer without a base activation.

    Equivalent to, for t of shape (N,):
        x = torch.zeros(N, layer.in_features); x[:, i] = t
        phi = reference_norms.edge_values(
            x, layer.spline_weight, layer.spline_scaler, layer.grid, layer.base_weight, "silu")[:, o, i]
    """

    out_feature: int
    in_feature: int

    def __init__(self, layer: "KANLinear", out: int, in_: int) -> None:
        """See `KANLinear.edge`."""
        check_whole("edge", layer)
        self._layer = layer
        self.out_feature = _index("out", out, layer.out_features)
        self.in_feature = _index("in_", in_, layer.in_features)

    def __call__(self, t: Tensor) -> Tensor:
        """phi(t), of the shape of t. t may have any shape; its dtype and device are the layer's.

        Outside of the knots the spline part is zero; the base part goes on.

        Raises:
            TypeError, ValueError: t is no tensor of the layer's dtype and device.
        """
        return self.derivative(t, 0)

    def derivative(self, t: Tensor, order: int = 1) -> Tensor:
        """The derivative of phi at t of an order from 0 to 30, of the shape of t.

        At a knot, where the K-th derivative of the spline part jumps, it is the one from the right. A base activation that is
        not fused is differentiated by `torch.func.jvp`, order times.

        Raises:
            TypeError, ValueError: t is no tensor of the layer's dtype and device, or order is no int from 0 to 30.
        """
        self._check(t)
        check_size("order", order, 0)
        if order > MAX_DERIVATIVE:
            raise ValueError(f"order: expected at most {MAX_DERIVATIVE}, got {order}")
        base = self.base_weight
        if base is None or callable(self._layer.activation()):
            spline = self._form(t, None, order)
            return spline if base is None else spline + base * self._activation(t, order)
        return self._form(t, base.view(1, 1), order)

    def base(self, t: Tensor) -> Tensor:
        """The base part, base_weight b(t), of the shape of t; zeros in a layer without a base activation.

        Raises:
            TypeError, ValueError: t is no tensor of the layer's dtype and device.
        """
        self._check(t)
        base = self.base_weight
        return torch.zeros_like(t) if base is None else base * self._activation(t, 0)

    def spline(self, t: Tensor) -> Tensor:
        """The spline part, with its scaler, of the shape of t: zero outside of the knots, which are half-open intervals.

        Raises:
            TypeError, ValueError: t is no tensor of the layer's dtype and device.
        """
        self._check(t)
        return self._form(t, None, 0)

    def to_scipy(self) -> "BSpline":
        """The spline part as a `scipy.interpolate.BSpline`, a copy in float64; `base_weight` and `base` give the other part.

        It has the values of `spline` for every finite t: all of the layer's knots are inside of its base interval, with one
        interval beyond them on either side on which it is zero, and so is its extrapolation. Its `t` and `c` have K+1 more
        knots and zero coefficients on either side for this.

        Raises:
            ImportError: SciPy is not installed.
        """
        try:
            from scipy.interpolate import BSpline
        except ImportError as error:
            raise ImportError("Edge.to_scipy needs SciPy: pip install scipy") from error

        degree = self._layer.spline_order
        knots = self._layer.grid[self.in_feature].detach().double().cpu()
        weight, scaler = self._spline_parts()
        weight, scaler = weight.detach().double(), None if scaler is None else scaler.detach().double()
        beyond = torch.arange(1, degree + 2, device="cpu") * (knots[-1] - knots[0]) / (len(knots) - 1)
        padded = torch.cat([knots[0] - beyond.flip(0), knots, knots[-1] + beyond])
        zeros = knots.new_zeros(degree + 1)
        coefficients = torch.cat([zeros, scaled(weight, scaler).flatten().cpu(), zeros])
        return BSpline(padded.numpy(), coefficients.numpy(), degree)

    @property
    def base_weight(self) -> Tensor | None:
        """The factor of b, a scalar tensor; None in a layer without a base activation."""
        weight = self._layer.edge_factors()[1]
        return None if weight is None else weight[self.out_feature, self.in_feature]

    def __repr__(self) -> str:
        return f"Edge(out_feature={self.out_feature}, in_feature={self.in_feature})"

    def _spline_parts(self) -> tuple[Tensor, Tensor | None]:
        """spline_weight (1, 1, M) and its scaler (1, 1), with the mask on it, of a layer of this edge alone."""
        outputs, inputs = slice(self.out_feature, self.out_feature + 1), slice(self.in_feature, self.in_feature + 1)
        scaler = self._layer.edge_factors()[0]
        return self._layer.spline_weight[outputs, inputs], None if scaler is None else scaler[outputs, inputs]

    def _form(self, t: Tensor, base_weight: Tensor | None, derivative: int) -> Tensor:
        layer = self._layer
        grid = layer.grid[self.in_feature : self.in_feature + 1]
        activation = layer.activation()
        fused = activation if isinstance(activation, str) else "silu"  # base_weight is None for any other activation
        return kan_form(t.reshape(-1, 1), *self._spline_parts(), grid, base_weight, fused, derivative).view(t.shape)

    def _activation(self, t: Tensor, derivative: int) -> Tensor:
        """The n-th derivative of b at t, of the shape of t."""
        activation = self._layer.activation()
        if isinstance(activation, str):
            return base_activation(t, activation, derivative)
        module = cast(nn.Module, activation)  # a layer without one has no base_weight

        def value(t: Tensor) -> Tensor:
            # Among all features, as a layer evaluates it: `nn.PReLU(in_features)` has a slope for each.
            features = t.reshape(-1, 1).expand(-1, self._layer.in_features)
            return module(features)[:, self.in_feature].view(t.shape)

        return _derivative(value, t, derivative)

    def _check(self, t: Any) -> None:
        weight = self._layer.spline_weight
        check_layer_dtype(t, weight, "t")
        if t.device != weight.device:
            raise ValueError(f"t: expected {weight.device}, the device of the layer's parameters, got {t.device}")


def _derivative(function: Callable[[Tensor], Tensor], t: Tensor, order: int) -> Tensor:
    """The n-th derivative of an elementwise function."""
    if order == 0:
        return function(t)
    return torch.func.jvp(lambda t: _derivative(function, t, order - 1), (t,), (torch.ones_like(t),))[1]


def _index(name: str, value: Any, size: int) -> int:
    """An index as Python's, negative from the end, as a number that is not negative."""
    try:
        index = operator.index(value)
    except TypeError:
        index = None
    if index is None or isinstance(value, bool):
        raise TypeError(f"{name}: expected an int, got {type(value).__name__}")
    if not -size <= index < size:
        raise IndexError(f"{name}: expected an index from {-size} to {size - 1}, got {index}")
    return index % size
