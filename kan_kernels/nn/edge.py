"""`Edge`: the function of a single edge of a layer, with derivatives and conversion to SciPy."""

import operator
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from ..functional import kan_form
from ..ops import MAX_DERIVATIVE
from ..reference import base_activation, scaled
from ..utils.checks import check_layer_dtype, check_size
from ..utils.dtensor import check_whole

if TYPE_CHECKING:
    from scipy.interpolate import BSpline

    from .linear import KANLinear


class Edge:
    """The function of the edge from input i to output o of a `KANLinear`, as returned by `KANLinear.edge(o, i)`.

    phi(t) = base_weight[o,i] b(t) + spline_scaler[o,i] sum_m spline_weight[o,i,m] beta_{i,m}(t)

    Every call reads the layer's current parameters. Gradients flow to t and to the layer's parameters. The function of a
    pruned edge is zero.

    Attributes:
        out_feature, in_feature: o and i, non-negative.
        base_weight: the factor of b, a scalar tensor; 0 for a pruned edge, None in a layer without a base activation.

    Equivalent to, for t of shape (N,):
        x = torch.zeros(N, layer.in_features); x[:, i] = t
        phi = reference.edge_values(
            x, layer.spline_weight, layer.spline_scaler, layer.grid, layer.base_weight, "silu")[:, o, i]
    """

    out_feature: int
    in_feature: int

    def __init__(self, layer: "KANLinear", out_feature: int, in_feature: int) -> None:
        """See `KANLinear.edge`."""
        check_whole("edge", layer)
        self._layer = layer
        self.out_feature = _index("out_feature", out_feature, layer.out_features)
        self.in_feature = _index("in_feature", in_feature, layer.in_features)

    def __call__(self, t: Tensor) -> Tensor:
        """Return phi(t) with the shape of t. t may have any shape; it needs the layer's dtype and device.

        Outside the knots the spline part is zero; the base part is defined everywhere.

        Raises:
            TypeError, ValueError: t is not a tensor with the layer's dtype and device.
        """
        return self.derivative(t, 0)

    def derivative(self, t: Tensor, order: int = 1) -> Tensor:
        """Return the derivative of phi at t with the shape of t, for orders from 0 to 30.

        The K-th derivative of the spline part is discontinuous at a knot; there the right derivative is returned. A base
        activation that is not fused is differentiated by nested calls of `torch.func.jvp`.

        Raises:
            TypeError, ValueError: t is not a tensor with the layer's dtype and device, or order is not an int from 0 to 30.
        """
        self._check(t)
        check_size("order", order, 0)
        if order > MAX_DERIVATIVE:
            raise ValueError(f"order: expected at most {MAX_DERIVATIVE}, got {order}")
        base = self.base_weight
        if base is None or callable(self._layer._activation()):
            spline = self._form(t, None, order)
            return spline if base is None else spline + base * self._activation(t, order)
        return self._form(t, base.view(1, 1), order)

    def base(self, t: Tensor) -> Tensor:
        """Return the base part, base_weight b(t), with the shape of t; zeros in a layer without a base activation.

        Raises:
            TypeError, ValueError: t is not a tensor with the layer's dtype and device.
        """
        self._check(t)
        base = self.base_weight
        return torch.zeros_like(t) if base is None else base * self._activation(t, 0)

    def spline(self, t: Tensor) -> Tensor:
        """Return the spline part, including spline_scaler, with the shape of t. It is zero outside the knots.

        Raises:
            TypeError, ValueError: t is not a tensor with the layer's dtype and device.
        """
        self._check(t)
        return self._form(t, None, 0)

    def to_scipy(self) -> "BSpline":
        """Return the spline part as a `scipy.interpolate.BSpline`, a copy in float64. `base` returns the base part.

        The result equals `spline` for every finite t. SciPy extrapolates beyond its base interval, so `t` has K+1 more knots
        and `c` K+1 zero coefficients on either side: the base interval contains all of the layer's knots and one interval on
        either side where the spline is zero, as is its extrapolation.

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
        """The factor of b, a scalar tensor, or None in a layer without a base activation."""
        weight = self._layer._edge_factors()[1]
        return None if weight is None else weight[self.out_feature, self.in_feature]

    def __repr__(self) -> str:
        return f"Edge(out_feature={self.out_feature}, in_feature={self.in_feature})"

    def _spline_parts(self) -> tuple[Tensor, Tensor | None]:
        """Return this edge's spline_weight (1, 1, M) and its masked spline_scaler (1, 1)."""
        outputs, inputs = slice(self.out_feature, self.out_feature + 1), slice(self.in_feature, self.in_feature + 1)
        scaler = self._layer._edge_factors()[0]
        return self._layer.spline_weight[outputs, inputs], None if scaler is None else scaler[outputs, inputs]

    def _form(self, t: Tensor, base_weight: Tensor | None, derivative: int) -> Tensor:
        layer = self._layer
        grid = layer.grid[self.in_feature : self.in_feature + 1]
        activation = layer._activation()
        fused = activation if isinstance(activation, str) else "silu"  # base_weight is None for any other activation
        return kan_form(t.reshape(-1, 1), *self._spline_parts(), grid, base_weight, fused, derivative).view(t.shape)

    def _activation(self, t: Tensor, derivative: int) -> Tensor:
        """Return the n-th derivative of b at t with the shape of t."""
        activation = self._layer._activation()
        if isinstance(activation, str):
            return base_activation(t, activation, derivative)
        module = cast(nn.Module, activation)  # None only if the layer has no base_weight

        def value(t: Tensor) -> Tensor:
            # Evaluated on all features, because `nn.PReLU(in_features)` has a slope per feature.
            features = t.reshape(-1, 1).expand(-1, self._layer.in_features)
            return module(features)[:, self.in_feature].view(t.shape)

        return _derivative(value, t, derivative)

    def _check(self, t: Any) -> None:
        weight = self._layer.spline_weight
        check_layer_dtype(t, weight, "t")
        if t.device != weight.device:
            raise ValueError(f"t: expected {weight.device}, the device of the layer's parameters, got {t.device}")


def _derivative(function: Callable[[Tensor], Tensor], t: Tensor, order: int) -> Tensor:
    """Return the n-th derivative of an elementwise function at t."""
    if order == 0:
        return function(t)
    return torch.func.jvp(lambda t: _derivative(function, t, order - 1), (t,), (torch.ones_like(t),))[1]


def _index(name: str, value: Any, size: int) -> int:
    """Normalise an index, which may be negative as in Python, to a non-negative int."""
    try:
        index = operator.index(value)
    except TypeError:
        index = None
    if index is None or isinstance(value, bool):
        raise TypeError(f"{name}: expected an int, got {type(value).__name__}")
    if not -size <= index < size:
        raise IndexError(f"{name}: expected an index from {-size} to {size - 1}, got {index}")
    return index % size
