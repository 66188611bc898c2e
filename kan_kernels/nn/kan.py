"""`KAN`: a stack of KAN layers with efficient-kan's interface, grid extension, regularisation, pruning and conversion."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast, overload

import torch
from torch import Tensor, nn

from ..grid.knots import Quantiles
from ..symbolic import SymbolicKAN
from ..symbolic.suggest import Lib, checked_search
from ..utils.checks import check_choice, check_layer_dtype, check_number, check_parameters, check_rows, check_size
from ..utils.dtensor import check_not_fully_sharded, check_whole
from . import pruning
from .formulas import symbolic_network
from .linear import KANLinear, activation_module, checked_range
from .regularization import METRICS, Metric, loss_arguments, norm_loss

if TYPE_CHECKING:
    from kan import MultKAN
    from typing_extensions import Self

    class KANLayers(nn.ModuleList):
        """The static type of `KAN.layers`."""

        @overload
        def __getitem__(self, idx: slice) -> "KANLayers": ...

        @overload
        def __getitem__(self, idx: int) -> KANLinear: ...

        def __getitem__(self, idx: int | slice) -> "KANLinear | KANLayers": ...

        def __iter__(self) -> Iterator[KANLinear]: ...


class KAN(nn.Module):
    """A stack of `KANLinear` layers, e.g. `KAN([784, 64, 10])`.

    The arguments and the `state_dict` keys, `layers.{l}.*`, are those of efficient-kan.

    Args:
        layers_hidden: the L + 1 sizes of L >= 1 layers, each >= 1.
        grid_range: (low, high) for all layers, or a sequence of L pairs, one per layer.

    The other arguments are passed to every layer; see `KANLinear`.

    Raises:
        TypeError, ValueError: an argument is invalid; the message names it.
    """

    grid_size: int
    spline_order: int

    def __init__(
        self,
        layers_hidden: Sequence[int],
        grid_size: int = 5,
        spline_order: int = 3,
        scale_noise: float = 0.1,
        scale_base: float = 1.0,
        scale_spline: float = 1.0,
        base_activation: type[nn.Module] | nn.Module | None = nn.SiLU,
        grid_eps: float = 0.02,
        grid_range: Sequence[float] | Sequence[Sequence[float]] = (-1, 1),
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        enable_standalone_scale_spline: bool = True,
    ) -> None:
        super().__init__()
        if isinstance(layers_hidden, str) or not isinstance(layers_hidden, Sequence):
            raise TypeError(f"layers_hidden: expected a sequence of ints, got {type(layers_hidden).__name__}")
        if len(layers_hidden) < 2:
            raise ValueError(f"layers_hidden: expected at least an input and an output size, got {list(layers_hidden)}")
        for position, size in enumerate(layers_hidden):
            check_size(f"layers_hidden[{position}]", size, 1)
        ranges = _ranges_of_layers(grid_range, len(layers_hidden) - 1)
        layers = nn.ModuleList(
            KANLinear(
                in_features,
                out_features,
                grid_size=grid_size,
                spline_order=spline_order,
                scale_noise=scale_noise,
                scale_base=scale_base,
                scale_spline=scale_spline,
                enable_standalone_scale_spline=enable_standalone_scale_spline,
                base_activation=base_activation,
                grid_eps=grid_eps,
                grid_range=range_of_layer,
                device=device,
                dtype=dtype,
            )
            for (in_features, out_features), range_of_layer in zip(pairwise(layers_hidden), ranges, strict=True)
        )
        self.layers = cast("KANLayers", layers)
        self.grid_size, self.spline_order = self.layers[0].grid_size, self.layers[0].spline_order

    if TYPE_CHECKING:
        layers: KANLayers

        def __call__(self, x: Tensor, update_grid: bool = False) -> Tensor: ...

    def forward(self, x: Tensor, update_grid: bool = False) -> Tensor:
        """Apply the network: x (..., layers_hidden[0]) -> (..., layers_hidden[-1]).

        If update_grid is True, it first calls `update_grid` on x.
        """
        if update_grid:
            self.update_grid(x)
        for layer in self.layers:
            x = layer(x)
        return x

    @torch.no_grad()
    def update_grid(self, x: Tensor, margin: float | None = None, quantiles: Quantiles = "efficient-kan") -> None:
        """Adapt the knots of every layer to its inputs when the network is applied to x (..., layers_hidden[0]).

        The inputs of a layer are those after the updates of the layers before it. See `KANLinear.update_grid`.

        Raises:
            TypeError, ValueError: an argument is invalid, or a layer's inputs are not finite. The network is unchanged.
        """
        check_not_fully_sharded("update_grid", self)
        before: list[tuple[Tensor, Tensor]] = []
        try:
            for layer in self.layers:
                if isinstance(layer, KANLinear):
                    before += [(tensor, tensor.detach().clone()) for tensor in (layer.grid, layer.spline_weight)]
                    layer.update_grid(x, margin, quantiles)
                x = layer(x)
        except BaseException:
            for tensor, value in before:
                tensor.copy_(value)
            raise

    @torch.no_grad()
    def coverage(self, x: Tensor) -> list[Tensor]:
        """Return `KANLinear.coverage` of every layer on its inputs when the network is applied to x (..., layers_hidden[0]).

        Raises:
            TypeError, ValueError: x is invalid.
        """
        shares = []
        for layer in self.layers:
            if isinstance(layer, KANLinear):
                shares.append(layer.coverage(x))
            x = layer(x)
        return shares

    def refine(self, grid_size: int) -> "Self":
        """Return a new network with grid_size intervals in every layer; see `KANLinear.refine`."""
        check_not_fully_sharded("refine", self)
        for layer in self._kan_layers():
            check_parameters("refine", layer, "spline_weight")
        new = copy.deepcopy(self)
        for layer in new._kan_layers():
            layer.refine_(grid_size)
        new.grid_size = grid_size
        return new

    @overload
    def regularization_loss(
        self,
        x: Tensor | None = None,
        *,
        regularize_activation: float = 1.0,
        regularize_entropy: float = 1.0,
        metric: Metric = "l1",
    ) -> Tensor: ...

    @overload
    def regularization_loss(self, regularize_activation: float, regularize_entropy: float = 1.0, /) -> Tensor: ...

    def regularization_loss(
        self,
        x: Tensor | float | None = None,
        regularize_activation: float = 1.0,
        regularize_entropy: float | None = None,
        metric: Metric = "l1",
    ) -> Tensor:
        """Return a scalar sparsity loss, summed over the layers.

        The loss is differentiable and needs no more memory than the layers' outputs. efficient-kan's call
        `regularization_loss(regularize_activation, regularize_entropy)` is supported.

        Args:
            x: inputs (..., I) for a loss on the edges' functions, or None for efficient-kan's loss on the weights: the sum
                over edges of the mean `|spline_weight|`, and the entropy of the normalised means. An edge that is exactly
                zero contributes 0, whereas efficient-kan returns NaN.
            regularize_activation, regularize_entropy: factors of the sum and of the entropy, default 1.
            metric: the edge norm on x. "l1" is the KAN paper's (eq. 2.17 to 2.20): the sum of the mean `|phi|` and the entropy
                of the normalised means. The others are pykan's, with entropies in bits over rows and columns:
                "edge_forward_spline_n", std(phi) / (std(input) + 0.1); "edge_forward_spline_u", std(phi); "edge_backward",
                the edge scores of `attribute`.

        Raises:
            TypeError, ValueError: an argument is invalid; the message names it.
        """
        x, activation, entropy = loss_arguments(x, regularize_activation, regularize_entropy)
        check_choice("metric", metric, METRICS)
        if x is None:
            losses = [layer.regularization_loss(activation, entropy) for layer in self._kan_layers()]
        elif metric == "edge_backward":
            scores = pruning.attribute(self._kan_layers(), x).edges
            losses = [norm_loss(edges, metric, activation, entropy) for edges in scores]
        else:
            losses = []
            for layer in self._kan_layers():
                losses.append(
                    layer.regularization_loss(x, regularize_activation=activation, regularize_entropy=entropy, metric=metric)
                )
                x = layer(x)
        return torch.stack(losses).sum()

    def attribute(self, x: Tensor) -> pruning.AttributionScores:
        """Return pykan's attribution scores of every node and edge on x (..., layers_hidden[0]), at least two rows.

        Scores propagate backwards from the network's outputs, which have score 1. An edge scores its fraction of the standard
        deviation of its output, times the output's score. A node scores the sum of its outgoing edges. Scores are averaged
        over the network's outputs.

        Raises:
            TypeError, ValueError: x is invalid.
        """
        return pruning.attribute(self._kan_layers(), check_rows(x, self._kan_layers()[0].in_features, 2))

    def prune(self, x: Tensor, node_th: float = 1e-2, edge_th: float = 3e-2) -> tuple["Self", pruning.PruneResult]:
        """Return a new network without hidden nodes and edges whose scores do not exceed the thresholds, and what was removed.

        Like pykan's `prune`, it removes nodes and then edges of the remaining network, by the scores of `attribute` on
        x (..., I). Edges are masked and stay exactly zero in further training. The new network equals this network with the
        removed nodes and edges masked.

        Raises:
            TypeError, ValueError: an argument is invalid (the message names it), or node_th removes all nodes of a layer.
        """
        check_whole("prune", self)
        for layer in self._kan_layers():
            check_parameters("prune", layer, "base_weight", "spline_weight", "spline_scaler")
        rows = check_rows(x, self._kan_layers()[0].in_features, 2)
        check_number("node_th", node_th, 0.0)
        check_number("edge_th", edge_th, 0.0)
        new = copy.deepcopy(self)
        cut = pruning.prune(new._kan_layers(), rows, node_th, edge_th)
        return new, cut

    def symbolic(
        self,
        x: Tensor,
        lib: Lib = None,
        *,
        a_range: Sequence[float] = (-10, 10),
        b_range: Sequence[float] = (-10, 10),
        weight_simple: float = 0.8,
        r2_threshold: float = 0.0,
        progress: bool = True,
    ) -> SymbolicKAN:
        """Return a new network in which every edge is a function c f(a x + b) + d, where f fits it best on x (..., I).

        The rule is that of pykan's `auto_symbolic`: the first of `symbolic.suggest` for the inputs that each layer gets when
        this network is applied to x. The parameters of the result are a, b, c and d; train it to refine them. Masked edges
        are omitted. This network does not change.

        Args:
            x: finite, at least two rows.
            lib, a_range, b_range, weight_simple: see `symbolic.suggest`.
            r2_threshold: at most 1; edges whose r2 is smaller stay splines, and `SymbolicKAN.formula` then refuses.
            progress: whether a search of more than two seconds shows a progress bar on a terminal, if tqdm is installed.

        Raises:
            TypeError, ValueError: an argument is invalid (the message names it), a layer is not a `KANLinear` or is sharded,
                or an edge that is not masked is constant on x.
        """
        check_whole("symbolic", self)
        for position, layer in enumerate(self.layers):
            if not isinstance(layer, KANLinear):
                raise ValueError(f"layers[{position}]: expected a KANLinear, got {type(layer).__name__}")
        rows = check_rows(x, self.layers[0].in_features, 2)
        check_layer_dtype(x, self.layers[0].spline_weight)
        search = checked_search(lib, a_range, b_range, weight_simple)
        check_number("r2_threshold", r2_threshold, high=1.0)
        return symbolic_network(list(self.layers), rows, search, r2_threshold, progress)

    @classmethod
    def from_efficient_kan(
        cls, source: Mapping[str, Tensor] | nn.Module, base_activation: type[nn.Module] | nn.Module | None = nn.SiLU
    ) -> "Self":
        """Convert efficient-kan's `KAN`, or its `state_dict`. The parameters are copied, and the function is the same.

        Args:
            base_activation: used if source is a state_dict, which does not contain it.

        Raises:
            TypeError: source is neither a module nor a state_dict.
            ValueError: source has unexpected keys or shapes; the message names them.
        """
        from ..interop import efficient_kan

        return cls._of(efficient_kan.kan_layers(source, activation_module(base_activation)))

    @classmethod
    def from_pykan(
        cls, source: Mapping[str, Tensor] | nn.Module, base_activation: type[nn.Module] | nn.Module | None = nn.SiLU
    ) -> "Self":
        """Convert pykan 0.2.8's `MultKAN`, or its `state_dict`. The parameters are copied, and the function is the same.

        Masks and requires_grad are preserved. `scale_base` is dropped if the base function is "zero", where it has no effect.

        Args:
            base_activation: used if source is a state_dict, which does not contain it.

        Raises:
            TypeError: source is neither a module nor a state_dict.
            ValueError: source has unexpected keys or shapes, or a feature that `KAN` does not support (the message names it):
                symbolic edges, multiplication nodes, node or subnode biases other than 0 or scales other than 1, a choice of
                inputs, or a base function that is not a module.
        """
        from ..interop.pykan import weights

        return cls._of(weights.kan_layers(source, activation_module(base_activation)))

    def to_pykan(self) -> "MultKAN":
        """Convert to pykan's `MultKAN`, e.g. for its plots, pruning and symbolic formulas. `from_pykan` is the inverse.

        The weights are copied. `auto_save` is off, and the global random states that pykan seeds are restored.

        Raises:
            ImportError: pykan is not installed.
            ValueError: a layer is not a `KANLinear`, base activations differ or have parameters, or spline_order is 0.
        """
        from ..interop.pykan import weights

        return weights.multkan(list(self.layers))

    @classmethod
    def _of(cls, layers: Sequence[KANLinear]) -> "Self":
        net = cls.__new__(cls)
        nn.Module.__init__(net)
        net.grid_size, net.spline_order = layers[0].grid_size, layers[0].spline_order
        net.layers = cast("KANLayers", nn.ModuleList(layers))
        return net

    def _kan_layers(self) -> list[KANLinear]:
        """Return the layers that are `KANLinear`, in order. Raises ValueError if there are none."""
        found = [layer for layer in self.layers if isinstance(layer, KANLinear)]
        if not found:
            raise ValueError("layers: expected at least one KANLinear, got a network without any")
        return found


def _ranges_of_layers(grid_range: Any, layers: int) -> list[tuple[float, float]]:
    """Expand grid_range, one pair for all layers or one per layer, to a list of pairs."""
    if not _holds_pairs(grid_range):
        return [checked_range("grid_range", grid_range)] * layers
    if len(grid_range) != layers:
        got = f"{len(grid_range)} pairs"
        raise ValueError(f"grid_range: expected one pair of numbers, or one for each of {layers} layers, got {got}")
    return [checked_range(f"grid_range[{layer}]", pair) for layer, pair in enumerate(grid_range)]


def _holds_pairs(grid_range: Any) -> bool:
    return isinstance(grid_range, Sequence) and any(
        isinstance(item, Sequence) and not isinstance(item, str) for item in grid_range
    )
