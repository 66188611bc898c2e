"""One layer's edges as they were in a forward, from which every edge's values and norms are computed when they are asked for.

pykan's forward stores them all, (N, O, I) three times a layer, for methods that mostly read a norm of each edge or nothing.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import overload

import torch
from torch import Tensor

from ..edge_norms import edge_norms, edge_values
from ..functional import BaseActivation, kan_linear


@dataclass(frozen=True)
class SymbolicEdges:
    """The edges of a layer that have a formula: of input inputs[e] and output outputs[e], values (N, E)."""

    inputs: Tensor
    outputs: Tensor
    values: Tensor

    def added_to(self, y: Tensor) -> Tensor:
        """y (N, O) with every output's formulas."""
        return y.index_add(1, self.outputs, self.values)


@dataclass(frozen=True)
class EdgeRecord:
    """The arguments of `kan_linear`, grid, scaler and base_weight with the mask on them; and the edges that have formulas."""

    x: Tensor
    coef: Tensor
    grid: Tensor
    base_weight: Tensor | None
    scaler: Tensor
    base_activation: BaseActivation
    with_graph: bool  # whether the forward's numbers can be differentiated, whenever they are computed
    symbolic: SymbolicEdges | None = None

    def output(self) -> Tensor:
        """(N, O)."""
        y = kan_linear(
            self.x, self.coef, self.grid, self.base_weight, base_activation=self.base_activation, scaler=self.scaler
        )
        return y if self.symbolic is None else self.symbolic.added_to(y)

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
        if self.x.shape[0] < 2:  # of no rows but the mean
            return self.x.new_full((self.coef.shape[2], self.coef.shape[0]), float("nan"))
        with torch.set_grad_enabled(self.with_graph):
            return edge_norms(
                self.x,
                self.coef,
                self.grid,
                self.base_weight,
                "std",
                base_activation=self.base_activation,
                scaler=self.scaler,
            )

    @cached_property
    def std(self) -> Tensor:
        """(O, I): the standard deviation of every edge."""
        if self.symbolic is None:
            return self.spline_std
        inputs, outputs = self.symbolic.inputs, self.symbolic.outputs
        with torch.set_grad_enabled(self.with_graph):
            values = self.symbolic.values + self._spline_values_of(inputs, outputs)
            return self.spline_std.index_put((outputs, inputs), values.std(0))

    def _spline_values_of(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """(N, E) of E edges, which mostly have none: they are masked where there is a formula."""
        base = None if self.base_weight is None else self.base_weight[inputs, outputs].unsqueeze(1)
        scaler = self.scaler[inputs, outputs].unsqueeze(1)
        if not bool(scaler.any() or (base is not None and base.any())):
            return self.x.new_zeros(())
        coef = self.coef[inputs, :, outputs].unsqueeze(-1)
        values = edge_values(self.x[:, inputs], coef, self.grid[inputs], base, self.base_activation, scaler)
        return values.squeeze(-1)

    def splines(self) -> Tensor:
        """(N, O, I): every edge's spline, before scale and mask; detached."""
        with torch.no_grad():
            return edge_values(self.x, self.coef, self.grid, None, None, None).transpose(1, 2)

    def values(self) -> Tensor:
        """(N, O, I): every edge's function; detached."""
        with torch.no_grad():
            values = edge_values(self.x, self.coef, self.grid, self.base_weight, self.base_activation, self.scaler)
            if self.symbolic is not None:
                values[:, self.symbolic.inputs, self.symbolic.outputs] += self.symbolic.values
            return values.transpose(1, 2)

    def inputs(self) -> Tensor:
        """(N, O, I): every edge's input, a view; detached."""
        N, I = self.x.shape
        return self.x.detach().unsqueeze(1).expand(N, self.coef.shape[2], I)


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
