"""One layer's edges as they were in a forward, from which every edge's values and norms are computed when they are asked for.

pykan's forward stores them all, (N, O, I) three times a layer, for methods that mostly read a norm of each edge or nothing.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import overload

import torch
from torch import Tensor

from ..edge_norms import edge_norms, edge_values
from ..functional import BaseActivation, kan_linear
from ..reference import base_activation


@dataclass(frozen=True)
class SymbolicEdges:
    """The edges of a layer that have a formula: of input inputs[e] and output outputs[e], values (N, E)."""

    inputs: Tensor
    outputs: Tensor
    values: Tensor


@dataclass(frozen=True)
class EdgeRecord(ABC):
    """A layer's input x (N, I), the edges that have formulas, and what a subclass knows of its splines."""

    x: Tensor
    symbolic: SymbolicEdges | None
    with_graph: bool  # whether the forward's numbers can be differentiated, whenever they are computed

    def output(self) -> Tensor:
        """(N, O)."""
        y = self._spline_output()
        return y if self.symbolic is None else y.index_add(1, self.symbolic.outputs, self.symbolic.values)

    @cached_property
    def input_range(self) -> Tensor:
        """(I,): pykan's range of every input, its standard deviation plus 0.1."""
        with torch.set_grad_enabled(self.with_graph):
            return self.x.std(0) + 0.1

    @cached_property
    def spline_scale(self) -> Tensor:
        """(O, I): pykan's `acts_scale_spline`."""
        with torch.set_grad_enabled(self.with_graph):
            return self.spline_std / self.input_range

    @cached_property
    def spline_std(self) -> Tensor:
        """(O, I): the standard deviation of every edge's spline and base."""
        with torch.set_grad_enabled(self.with_graph):
            return self._spline_std()

    @cached_property
    def std(self) -> Tensor:
        """(O, I): the standard deviation of every edge."""
        if self.symbolic is None:
            return self.spline_std
        inputs, outputs = self.symbolic.inputs, self.symbolic.outputs
        with torch.set_grad_enabled(self.with_graph):
            values = self.symbolic.values + self._spline_values_of(inputs, outputs)
            return self.spline_std.index_put((outputs, inputs), values.std(0))

    @torch.no_grad()
    def values(self) -> Tensor:
        """(N, O, I): every edge's function; detached."""
        values = self._spline_values()
        if self.symbolic is not None:
            values = values.clone()
            values[:, self.symbolic.outputs, self.symbolic.inputs] += self.symbolic.values
        return values

    def inputs(self) -> Tensor:
        """(N, O, I): every edge's input, a view; detached."""
        return self.x.detach().unsqueeze(1).expand(-1, self.out_features(), -1)

    @abstractmethod
    def splines(self) -> Tensor:
        """(N, O, I): every edge's spline, before scale and mask; detached."""

    @abstractmethod
    def out_features(self) -> int:
        """O."""

    @abstractmethod
    def _spline_output(self) -> Tensor:
        """(N, O): the sums of every edge's spline and base."""

    @abstractmethod
    def _spline_std(self) -> Tensor:
        """(O, I)."""

    @abstractmethod
    def _spline_values(self) -> Tensor:
        """(N, O, I): every edge's spline and base."""

    @abstractmethod
    def _spline_values_of(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """(N, E): the splines and bases of E edges."""


@dataclass(frozen=True)
class KernelRecord(EdgeRecord):
    """The arguments of `kan_linear`: spline_scaler and base_weight with the mask on them."""

    spline_weight: Tensor
    grid: Tensor
    base_weight: Tensor | None
    spline_scaler: Tensor
    base_activation: BaseActivation

    def splines(self) -> Tensor:
        """(N, O, I): every edge's spline, before scale and mask; detached."""
        with torch.no_grad():
            return self._splines()

    def splines_and_values(self) -> tuple[Tensor, Tensor]:
        """(N, O, I) twice: every edge's spline before scale and mask, and its function, as differentiable as the output."""
        splines = self._splines()
        values = self.spline_scaler * splines
        if self.base_weight is None or self.base_activation is None:
            return splines, values
        name = self.base_activation
        base = base_activation(self.x, name) if isinstance(name, str) else name(self.x)
        return splines, torch.addcmul(values, base.unsqueeze(1), self.base_weight)

    def out_features(self) -> int:
        """O."""
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
        if self.x.shape[0] < 2:  # of no rows but the mean
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
        return edge_values(self.x, self.spline_weight, self.grid, None, None, None)

    def _spline_values(self) -> Tensor:
        edges = (self.spline_weight, self.grid, self.base_weight, self.base_activation, self.spline_scaler)
        return edge_values(self.x, *edges)

    def _spline_values_of(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        base = None if self.base_weight is None else self.base_weight[outputs, inputs].unsqueeze(0)
        scaler = self.spline_scaler[outputs, inputs].unsqueeze(0)
        if not bool(scaler.any() or (base is not None and base.any())):  # they mostly are masked where there is a formula
            return self.x.new_zeros(())
        weight = self.spline_weight[outputs, inputs].unsqueeze(0)
        values = edge_values(self.x[:, inputs], weight, self.grid[inputs], base, self.base_activation, scaler)
        return values.squeeze(1)


@dataclass(frozen=True)
class DenseRecord(EdgeRecord):
    """What pykan's own layer returned: y (N, O); postacts and postspline (N, O, I)."""

    y: Tensor
    postacts: Tensor
    postspline: Tensor

    def splines(self) -> Tensor:
        """(N, O, I): every edge's spline, before scale and mask; detached."""
        return self.postspline.detach()

    def out_features(self) -> int:
        """O."""
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
    """A list of tensors, each computed when it is first read."""

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
