"""`KAN`: a stack of layers, efficient-kan's module, with what the KAN paper does to nets."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any, cast, overload

import torch
from torch import Tensor, nn

from . import pruning
from .checks import check_choice, check_number, check_parameters, check_rows, check_size
from .interop import efficient_kan, pykan_weights
from .layers import KANLinear, activation_module, checked_range
from .regularization import METRICS, Metric, loss_arguments, norm_loss
from .sharding import check_not_fully_sharded, check_whole

if TYPE_CHECKING:
    from kan import MultKAN
    from typing_extensions import Self

    class KANLayers(nn.ModuleList):
        """What type checkers know of `KAN.layers`."""

        @overload
        def __getitem__(self, idx: slice) -> "KANLayers": ...

        @overload
        def __getitem__(self, idx: int) -> KANLinear: ...

        def __getitem__(self, idx: int | slice) -> "KANLinear | KANLayers": ...

        def __iter__(self) -> Iterator[KANLinear]: ...


class KAN(nn.Module):
    """A stack of `KANLinear`: `KAN([784, 64, 10])`. efficient-kan's arguments; its `state_dict` keys, `layers.{l}.*`.

    Args:
        layers_hidden: L + 1 sizes >= 1 of L >= 1 layers.
        grid_range: (low, high) for all layers, or a sequence of L pairs, one for each layer.

    The other arguments go to every layer, see `KANLinear`.

    Raises:
        TypeError, ValueError: naming the argument.
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
        self.grid_size = grid_size
        self.spline_order = spline_order
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

    if TYPE_CHECKING:
        layers: KANLayers

        def __call__(self, x: Tensor, update_grid: bool = False) -> Tensor: ...

    def forward(self, x: Tensor, update_grid: bool = False) -> Tensor:
        """x (..., layers_hidden[0]) -> (..., layers_hidden[-1]); update_grid: every layer's `KANLinear.update_grid` first."""
        if update_grid:
            check_not_fully_sharded("update_grid", self)
        for layer in self.layers:
            if update_grid and isinstance(layer, KANLinear):
                layer.update_grid(x)
            x = layer(x)
        return x

    @torch.no_grad()
    def coverage(self, x: Tensor) -> list[Tensor]:
        """`KANLinear.coverage` of every layer, on what it gets when the net is called on x (..., layers_hidden[0]).

        Raises:
            TypeError, ValueError: naming the argument.
        """
        shares = []
        for layer in self.layers:
            if isinstance(layer, KANLinear):
                shares.append(layer.coverage(x))
            x = layer(x)
        return shares

    def refine(self, grid_size: int) -> "Self":
        """A new net of finer grids that computes the same function: every layer's `KANLinear.refine`."""
        check_not_fully_sharded("refine", self)
        for layer in self.kan_layers():
            check_parameters("refine", layer, "spline_weight")
        new = copy.deepcopy(self)
        for layer in new.kan_layers():
            layer.refine_(grid_size)
        new.grid_size = grid_size
        return new

    def regularization_loss(
        self,
        x: Tensor | float | None = None,
        regularize_activation: float = 1.0,
        regularize_entropy: float | None = None,
        metric: Metric = "l1",
    ) -> Tensor:
        """A loss that makes edges few: a scalar, the layers' summed. Differentiable, in the memory of the layers' outputs.

        Args:
            x: None for efficient-kan's stand-in, of the weights alone: the mean `|spline_weight|` of every edge, summed, and
                the entropy of these means' shares; an edge that is exactly zero adds nothing, where efficient-kan gives NaN.
                Or the net's inputs (..., I), for norms of the edges' functions on them. A number is taken for
                efficient-kan's first argument, and what follows for its second.
            regularize_activation, regularize_entropy: factors of the sum and of the entropy, 1 unless given.
            metric: of the norms on x. "l1": the paper's, eq. 2.17 to 2.20: the sum of the mean `|phi|` and the entropy of
                their shares. pykan's, with its entropy in bits over rows and columns, by its names: "edge_forward_spline_n",
                std of phi over that of its input plus 0.1; "edge_forward_spline_u", std of phi; "edge_backward", scores of
                `attribute`.

        Raises:
            TypeError, ValueError: naming the argument.
        """
        x, activation, entropy = loss_arguments(x, regularize_activation, regularize_entropy)
        check_choice("metric", metric, METRICS)
        if x is None:
            losses = [layer.regularization_loss(None, activation, entropy) for layer in self.kan_layers()]
        elif metric == "edge_backward":
            scores = pruning.attribute(self.kan_layers(), x).edges
            losses = [norm_loss(edges, metric, activation, entropy) for edges in scores]
        else:
            losses = []
            for layer in self.kan_layers():
                losses.append(layer.regularization_loss(x, activation, entropy, metric))
                x = layer(x)
        return torch.stack(losses).sum()

    def attribute(self, x: Tensor) -> pruning.Scores:
        """pykan's attribution: scores of every node and edge, passed back from the outputs, each of score 1.

        x: (..., layers_hidden[0]), at least two rows. An edge's share of its output's standard deviation, times that output's
        score, is its score; a node's is the sum over its outgoing edges; both the mean over the net's outputs.

        Raises:
            TypeError, ValueError: naming the argument.
        """
        return pruning.attribute(self.kan_layers(), check_rows(x, self.kan_layers()[0].in_features, 2))

    def prune(self, x: Tensor, node_th: float = 1e-2, edge_th: float = 3e-2) -> tuple["Self", pruning.Cut]:
        """A smaller new net without the hidden nodes and edges that score no more than the thresholds, and what was cut.

        As pykan's `prune`: nodes first, then the edges of the net that is left, by `attribute` on x (..., I). Edges are
        masked: they stay exactly zero through further training. The net computes what this one would with them masked.

        Raises:
            TypeError, ValueError: naming the argument; or node_th leaves a layer without nodes.
        """
        check_whole("prune", self)
        for layer in self.kan_layers():
            check_parameters("prune", layer, "base_weight", "spline_weight", "spline_scaler")
        rows = check_rows(x, self.kan_layers()[0].in_features, 2)
        check_number("node_th", node_th, 0.0)
        check_number("edge_th", edge_th, 0.0)
        new = copy.deepcopy(self)
        cut = pruning.prune(new.kan_layers(), rows, node_th, edge_th)
        return new, cut

    @classmethod
    def from_efficient_kan(
        cls, source: Mapping[str, Tensor] | nn.Module, base_activation: type[nn.Module] | nn.Module | None = nn.SiLU
    ) -> "Self":
        """efficient-kan's `KAN`, or its `state_dict`, as a net of ours: the same function, parameters copied.

        base_activation: where source is a state_dict, which does not tell it.

        Raises:
            TypeError: source is neither.
            ValueError: source has other keys or shapes, naming them.
        """
        return cls._of(efficient_kan.kan_layers(source, activation_module(base_activation)))

    @classmethod
    def from_pykan(
        cls, source: Mapping[str, Tensor] | nn.Module, base_activation: type[nn.Module] | nn.Module | None = nn.SiLU
    ) -> "Self":
        """pykan 0.2.8's `MultKAN`, or its `state_dict`, as a net of ours: the same function, parameters copied.

        Masks and frozen parameters are carried. `scale_base` under the base function "zero", where it has no effect, is not.

        base_activation: where source is a state_dict, which does not tell it.

        Raises:
            TypeError: source is neither.
            ValueError: source has what a stack of layers cannot hold, naming it: symbolic edges, multiplication nodes, node
                or subnode biases other than 0 and scales other than 1, a choice of inputs, a base function that is no module;
                or other keys or shapes.
        """
        return cls._of(pykan_weights.kan_layers(source, activation_module(base_activation)))

    def to_pykan(self) -> "MultKAN":
        """pykan's `MultKAN` with this net's weights, copied, for its plots, pruning and formulas. `from_pykan` undoes it.

        Without `auto_save`; the global random states, which pykan seeds, are as before.

        Raises:
            ImportError: pykan is not installed.
            ValueError: a layer is no `KANLinear`, their base activations differ or have parameters, or spline_order is 0.
        """
        return pykan_weights.multkan(list(self.layers))

    @classmethod
    def _of(cls, layers: Sequence[KANLinear]) -> "Self":
        net = cls.__new__(cls)
        nn.Module.__init__(net)
        net.grid_size, net.spline_order = layers[0].grid_size, layers[0].spline_order
        net.layers = cast("KANLayers", nn.ModuleList(layers))
        return net

    def kan_layers(self) -> list[KANLinear]:
        """The layers that are `KANLinear`, in order."""
        return [layer for layer in self.layers if isinstance(layer, KANLinear)]


def _ranges_of_layers(grid_range: Any, layers: int) -> list[tuple[float, float]]:
    """One pair for all layers, or a pair for each, as a list of pairs."""
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
