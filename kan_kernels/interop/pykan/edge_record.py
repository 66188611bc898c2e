"""Records of a layer's forward, which compute every edge's values and norms on demand.

pykan's forward stores three tensors of shape (N, O, I) per layer, although most methods read only a norm of each edge, or
nothing.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import overload

import torch
from torch import Tensor

from ...functional import BaseActivation, edge_norms, edge_values, kan_linear
from ...reference import base_activation


@dataclass(frozen=True)
class SymbolicEdges:
    """The symbolic edges of a layer: edge e connects inputs[e] to outputs[e] and has the values values[:, e] of (N, E)."""

    inputs: Tensor
    outputs: Tensor
    values: Tensor


@dataclass(frozen=True)
class EdgeRecord(ABC):
    """A layer's input x (N, I) and its symbolic edges; a subclass adds the splines."""

    x: Tensor
    symbolic: SymbolicEdges | None
    with_graph: bool  # whether autograd was enabled in the forward, and so applies to results computed later

    def output(self) -> Tensor:
        """Return the layer's output (N, O)."""
        y = self._spline_output()
        return y if self.symbolic is None else y.index_add(1, self.symbolic.outputs, self.symbolic.values)

    @cached_property
    def input_range(self) -> Tensor:
        """pykan's range of every input (I,): its standard deviation plus 0.1."""
        with torch.set_grad_enabled(self.with_graph):
            return self.x.std(0) + 0.1

    @cached_property
    def spline_scale(self) -> Tensor:
        """pykan's `acts_scale_spline` (O, I)."""
        with torch.set_grad_enabled(self.with_graph):
            return self.spline_std / self.input_range

    @cached_property
    def spline_std(self) -> Tensor:
        """Standard deviation (O, I) of every edge's spline plus base activation."""
        with torch.set_grad_enabled(self.with_graph):
            return self._spline_std()

    @cached_property
    def std(self) -> Tensor:
        """Standard deviation (O, I) of every edge's function."""
        if self.symbolic is None:
            return self.spline_std
        inputs, outputs = self.symbolic.inputs, self.symbolic.outputs
        with torch.set_grad_enabled(self.with_graph):
            values = self.symbolic.values + self._spline_values_of(inputs, outputs)
            return self.spline_std.index_put((outputs, inputs), values.std(0))

    @torch.no_grad()
    def values(self) -> Tensor:
        """Return the detached values (N, O, I) of every edge's function."""
        values = self._spline_values()
        if self.symbolic is not None:
            values = values.clone()
            values[:, self.symbolic.outputs, self.symbolic.inputs] += self.symbolic.values
        return values

    def inputs(self) -> Tensor:
        """Return every edge's input as a detached view (N, O, I)."""
        return self.x.detach().unsqueeze(1).expand(-1, self.out_features(), -1)

    @abstractmethod
    def splines(self) -> Tensor:
        """Return every edge's detached spline (N, O, I), before scale and mask."""

    @abstractmethod
    def out_features(self) -> int:
        """Return O."""

    @abstractmethod
    def _spline_output(self) -> Tensor:
        """Return the sum (N, O) of the edges' splines and base activations."""

    @abstractmethod
    def _spline_std(self) -> Tensor:
        """Return the standard deviations (O, I) for `spline_std`."""

    @abstractmethod
    def _spline_values(self) -> Tensor:
        """Return every edge's spline plus base activation (N, O, I)."""

    @abstractmethod
    def _spline_values_of(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """Return the splines plus base activations (N, E) of E edges."""


@dataclass(frozen=True)
class KernelRecord(EdgeRecord):
    """A record of `kan_linear`'s arguments, with the mask multiplied into spline_scaler and base_weight."""

    spline_weight: Tensor
    grid: Tensor
    base_weight: Tensor | None
    spline_scaler: Tensor
    base_activation: BaseActivation

    def splines(self) -> Tensor:
        """Return every edge's detached spline (N, O, I), before scale and mask."""
        with torch.no_grad():
            return self._splines()

    def splines_and_values(self) -> tuple[Tensor, Tensor]:
        """Return two differentiable tensors (N, O, I): every edge's spline before scale and mask, and its function."""
        splines = self._splines()
        values = self.spline_scaler * splines
        if self.base_weight is None or self.base_activation is None:
            return splines, values
        name = self.base_activation
        base = base_activation(self.x, name) if isinstance(name, str) else name(self.x)
        return splines, torch.addcmul(values, base.unsqueeze(1), self.base_weight)

    def out_features(self) -> int:
        """Return O."""
        return self.spline_weight.shape[0]

    def _spline_output(self) -> Tensor:
        return kan_linear(
            self.x,
            self.spline_weight,
            self.grid,
            self.base_weight,
            spline_scaler=self.spline_scaler,
            base_activation=self.base_activation,
        )

    def _spline_std(self) -> Tensor:
        if self.x.shape[0] < 2:  # the standard deviation of fewer than two rows is NaN
            return self.x.new_full(self.spline_weight.shape[:2], float("nan"))
        return edge_norms(
            self.x,
            self.spline_weight,
            self.grid,
            self.base_weight,
            "std",
            spline_scaler=self.spline_scaler,
            base_activation=self.base_activation,
        )

    def _splines(self) -> Tensor:
        return torch.einsum("nim,oim->noi", _bases(self.x, self.grid, self.spline_weight.shape[2]), self.spline_weight)

    def _spline_values(self) -> Tensor:
        edges = (self.spline_weight, self.grid, self.base_weight, self.base_activation, self.spline_scaler)
        return edge_values(self.x, *edges)

    def _spline_values_of(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        base = None if self.base_weight is None else self.base_weight[outputs, inputs].unsqueeze(0)
        scaler = self.spline_scaler[outputs, inputs].unsqueeze(0)
        if not bool(scaler.any() or (base is not None and base.any())):  # usual: pykan masks the spline of a symbolic edge
            return self.x.new_zeros(())
        weight = self.spline_weight[outputs, inputs].unsqueeze(0)
        values = edge_values(self.x[:, inputs], weight, self.grid[inputs], base, self.base_activation, scaler)
        return values.squeeze(1)


def _bases(x: Tensor, grid: Tensor, count: int) -> Tensor:
    """Return the bases (N, I, count) of the knots `grid` (I, T) at x (N, I), in half the operations of `reference.basis`.

    For NaN and infinite x they are 0, as pykan's are.
    """
    knots = grid.to(x.dtype)
    distance = x.unsqueeze(-1) - knots
    reached = (distance >= 0).to(x.dtype)
    bases = reached[..., :-1] - reached[..., 1:]
    for degree in range(1, knots.shape[1] - count):
        span = knots[:, degree:] - knots[:, :-degree]
        bases = bases / torch.where(span > 0, span, 1.0)  # the basis on an empty span is 0
        rising = distance[..., : -degree - 1] * bases[..., :-1]
        bases = torch.addcmul(rising, distance[..., degree + 1 :], bases[..., 1:], value=-1)
    return bases.nan_to_num()


@dataclass(frozen=True)
class DenseRecord(EdgeRecord):
    """A record of the tensors that pykan's own layer returned: y (N, O); postacts and postspline (N, O, I)."""

    y: Tensor
    postacts: Tensor
    postspline: Tensor

    def splines(self) -> Tensor:
        """Return every edge's detached spline (N, O, I), before scale and mask."""
        return self.postspline.detach()

    def out_features(self) -> int:
        """Return O."""
        return self.y.shape[1]

    def _spline_output(self) -> Tensor:
        return self.y

    def _spline_std(self) -> Tensor:
        return self.postacts.std(0)

    def _spline_values(self) -> Tensor:
        return self.postacts.detach()

    def _spline_values_of(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        return self.postacts[:, outputs, inputs]


class OnDemand(Sequence[Tensor]):
    """A sequence of tensors, each computed on first access."""

    def __init__(self, makers: Sequence[Callable[[], Tensor]]) -> None:
        self._makers = makers
        self._made: dict[int, Tensor] = {}

    @overload
    def __getitem__(self, index: int) -> Tensor: ...

    @overload
    def __getitem__(self, index: slice) -> list[Tensor]: ...

    def __getitem__(self, index: int | slice) -> Tensor | list[Tensor]:
        places = range(len(self._makers))[index]
        if isinstance(places, range):
            return [self[place] for place in places]
        if places not in self._made:
            self._made[places] = self._makers[places]()
        return self._made[places]

    def __len__(self) -> int:
        return len(self._makers)
