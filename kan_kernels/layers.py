"""`KANLinear`: efficient-kan's module, argument for argument, on the fused kernels."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .autocast import autocast
from .checks import DTYPES, check_choice, check_grid, check_number, check_rows, check_size, rows_of
from .edge_norms import edge_norms
from .functional import BaseActivation, base_activation_of, kan_linear
from .grid import QUANTILES, data_knots, refined_knots
from .initial import draw
from .peer_names import PeerNames
from .projection import transfer_matrix
from .regularization import coefficient_loss, loss_arguments, norm_loss
from .sharding import Whole, check_not_fully_sharded, is_sharded, local, own_part, parts_as, whole

torch.fx.wrap("kan_linear")  # a leaf to torch.fx.symbolic_trace, as functions of torch are


class KANLinear(PeerNames):
    """A KAN layer: y[..., o] = sum_i ( base_weight[o,i] b(x[..., i]) + spline_{o,i}(x[..., i]) ), (..., I) -> (..., O).

    Arguments, defaults, initial distribution and `state_dict` are efficient-kan's: `base_weight (O, I)`,
    `spline_weight (O, I, G+K)`, `spline_scaler (O, I)` if standalone, `grid (I, G+2K+1)`. Checkpoints pass both ways. The
    parameters themselves are laid out for the kernels, as `base_coef (I, O)`, `coef (I, G+K, O)` and `scaler (I, O)`;
    `layer.base_weight`, `layer.spline_weight` and `layer.spline_scaler` are views of them in efficient-kan's shapes. Pruning
    adds a buffer `mask (I, O)` of ones and zeros, `edge_mask (O, I)` in a `state_dict`: an edge it masks stays exactly zero.

    Args:
        in_features, out_features: I, O >= 1.
        grid_size: G >= 1, intervals over `grid_range`.
        spline_order: K >= 0, the degree of the splines.
        scale_noise: width of the uniform noise that the initial splines pass through, over grid_size.
        scale_base, scale_spline: the `a / sqrt(5)` of the initial `kaiming_uniform_` of base_weight and spline_scaler: 1 gives
            +-1/sqrt(I), a larger scale smaller weights. Without the scaler, scale_spline multiplies spline_weight.
        enable_standalone_scale_spline: give every edge's spline a trainable factor, `spline_scaler`.
        base_activation: b, a module or its class. SiLU and Identity are fused, None leaves the base out, any other module
            runs in plain torch.
        grid_eps: in [0, 1]; how far a grid update blends the data's quantiles (0) with equidistant knots (1).
        grid_range: (low, high) with low < high.
        device, dtype: of the parameters; float64, float32, bfloat16 or float16.

    Raises:
        TypeError, ValueError: naming the argument.

    Equivalent to:
        bases = reference.basis(x, layer.grid, layer.spline_order).flatten(1)
        weight = layer.spline_weight * layer.spline_scaler.unsqueeze(-1)
        y = linear(silu(x), layer.base_weight) + linear(bases, weight.flatten(1))
    """

    sharding: Any = Whole()  # or the `parallel.LayerSharding` of one that a parallel style shards

    def __init__(
        self,
        in_features: int,
        out_features: int,
        grid_size: int = 5,
        spline_order: int = 3,
        scale_noise: float = 0.1,
        scale_base: float = 1.0,
        scale_spline: float = 1.0,
        enable_standalone_scale_spline: bool = True,
        base_activation: type[nn.Module] | nn.Module | None = nn.SiLU,
        grid_eps: float = 0.02,
        grid_range: Sequence[float] = (-1, 1),
        device: Any = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_size("in_features", in_features, 1)
        check_size("out_features", out_features, 1)
        check_size("grid_size", grid_size, 1)
        check_size("spline_order", spline_order, 0)
        for name, scale in (("scale_noise", scale_noise), ("scale_base", scale_base), ("scale_spline", scale_spline)):
            check_number(name, scale)
        check_number("grid_eps", grid_eps, 0.0, 1.0)
        low, high = _checked_range(grid_range)
        dtype = dtype or torch.get_default_dtype()
        if dtype not in DTYPES:
            raise TypeError(f"dtype: expected one of {DTYPES}, got {dtype}")

        self.in_features = in_features
        self.out_features = out_features
        self.grid_size = grid_size
        self.spline_order = spline_order
        self.scale_noise = scale_noise
        self.scale_base = scale_base
        self.scale_spline = scale_spline
        self.enable_standalone_scale_spline = bool(enable_standalone_scale_spline)
        self.base_activation = activation_module(base_activation)
        self.grid_eps = grid_eps
        self.grid_range = (low, high)

        def empty(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape, device=device, dtype=dtype))

        bases = grid_size + spline_order
        self.base_coef = None if base_activation is None else empty(in_features, out_features)
        self.coef = empty(in_features, bases, out_features)
        self.scaler = empty(in_features, out_features) if self.enable_standalone_scale_spline else None
        self.register_buffer("grid", torch.empty(in_features, bases + spline_order + 1, device=device, dtype=dtype))
        self.register_buffer("mask", None)
        self.reset_parameters()
        check_grid(self.grid, in_features, spline_order)

    def reset_parameters(self) -> None:
        """Draw the parameters as efficient-kan does, in its order: base_weight, the splines' noise, spline_scaler.

        The knots are equidistant over `grid_range` again, which `to_empty` after building on the meta device needs.
        """
        draw(self)

    def forward(self, x: Tensor) -> Tensor:
        """x (..., I) -> (..., O)."""
        coef, grid = self.coef, self.grid
        scaler, base_coef = self.edge_factors()
        if is_sharded(coef):
            coef, grid = local(coef), local(grid)
            if coef.numel() == 0:
                return _without_a_part((*x.shape[:-1], coef.shape[2]), x, coef, scaler, base_coef)
        return kan_linear(x, coef, grid, base_coef, base_activation=self.activation(), scaler=scaler)

    def edge_factors(self) -> tuple[Tensor | None, Tensor | None]:
        """The scaler and base_coef with the mask on them; of a sharded layer, this rank's."""
        scaler, base_coef, mask = self.scaler, self.base_coef, self.mask
        if is_sharded(scaler) or is_sharded(base_coef) or is_sharded(mask):
            scaler, base_coef, mask = local(scaler), local(base_coef), local(mask)
        if mask is None:
            return scaler, base_coef
        mask = mask.to(self.coef.dtype)  # a buffer, which mixed precision leaves in its type
        return mask if scaler is None else scaler * mask, None if base_coef is None else base_coef * mask

    def activation(self) -> BaseActivation:
        """The base activation as `kan_linear` takes it: the name of one that is fused, the module, or None."""
        return base_activation_of(self.base_activation)

    @torch.no_grad()
    def update_grid(self, x: Tensor, margin: float | None = None, quantiles: str = "efficient-kan") -> None:
        """Move the knots to where the data are; every spline stays the same function as nearly as its new knots allow.

        The splines agree best on x, by least squares, and off it as well as that leaves open (see `projection`).

        Args:
            x: (..., I), finite, at least one row; of any floating dtype.
            margin: >= 0, of the range beyond the data on either side, in x's units; None for 0.01, or pykan's 0.
            quantiles: which of the sorted data become knots: "efficient-kan" or "pykan". They are blended with equidistant
                knots by `grid_eps`, and extended by K knots.

        Raises:
            TypeError, ValueError: naming the argument; the layer is then unchanged.
        """
        self._check_keeps_changes("update_grid")
        rows = check_rows(self.sharding.whole_input(x), self.in_features, 1)
        if margin is not None:
            check_number("margin", margin, 0.0)
        check_choice("quantiles", quantiles, QUANTILES)
        rows = self.sharding.own_features(rows.detach().to(self.grid.dtype))
        self._move_to(data_knots(rows, self.grid_size, self.spline_order, self.grid_eps, margin, quantiles), rows)

    @torch.no_grad()
    def set_grid(self, grid: Tensor) -> None:
        """Take other knots, (I, G+2K+1), strictly increasing; every spline stays the same function as nearly as they allow.

        Raises:
            TypeError, ValueError: naming what is wrong with grid; the layer is then unchanged.
        """
        self._check_keeps_changes("set_grid")
        check_grid(grid, self.in_features, self.spline_order)
        if grid.shape != self.grid.shape:
            raise ValueError(
                f"grid: expected shape {tuple(self.grid.shape)}, got {tuple(grid.shape)}; `refine` changes the grid size"
            )
        self._move_to(own_part(grid.to(self.grid.device, self.grid.dtype), self.grid))

    def _move_to(self, knots: Tensor, rows: Tensor | None = None) -> None:
        """Refit to knots of this layer's shape, which are rounded to its dtype; of a sharded one, this rank's."""
        coef, grid = local(self.coef), local(self.grid)
        knots = knots.to(grid.dtype)
        check_grid(knots, len(grid), self.spline_order)
        if len(grid) > 0:
            coef.copy_(transfer_matrix(grid, knots, self.spline_order, rows) @ coef.double())
            grid.copy_(knots)

    def refine(self, grid_size: int) -> "KANLinear":
        """The paper's grid extension: a new layer of grid_size intervals that computes the same function.

        The new inner knots divide the old range as the old ones do, the K knots on either side stay. Exact to rounding,
        everywhere, if grid_size is a multiple of the old one: the new knots then contain the old. Otherwise the best
        approximation over the knots' length. dtype, device and training flags are this layer's.

        Raises:
            TypeError, ValueError: grid_size is no int of at least 1, or its knots would be equal in this dtype.
        """
        check_not_fully_sharded("refine", self)
        new = copy.deepcopy(self)
        new.refine_(grid_size)
        return new

    @torch.no_grad()
    def refine_(self, grid_size: int) -> None:
        """`refine` of this layer in place: its `coef` and `grid` are new tensors."""
        self._check_keeps_changes("refine")
        check_size("grid_size", grid_size, 1)
        old, bases = local(self.grid), grid_size + self.spline_order
        finer = refined_knots(old.double(), self.spline_order, grid_size).to(old.dtype)
        check_grid(finer, len(old), self.spline_order)
        coef = local(self.coef).double()
        coef = (
            transfer_matrix(old, finer, self.spline_order) @ coef if len(old) > 0 else coef.new_empty(0, bases, coef.shape[2])
        )
        self.grid_size = grid_size
        self.grid = parts_as(finer, self.grid, 1, bases + self.spline_order + 1)
        coef = parts_as(coef.to(self.coef.dtype), self.coef, 1, bases)
        self.coef = nn.Parameter(coef, requires_grad=self.coef.requires_grad)

    def edge_norms(self, x: Tensor, ord: str = "l1") -> Tensor:
        """(O, I): how much every edge does on x (..., I), as `kan_kernels.edge_norms`: "l1" or "std". Differentiable."""
        self._check_has_its_part("edge_norms")
        scaler, base_coef = self.edge_factors()
        coef, grid = local(self.coef), local(self.grid)
        own = self.sharding.own_input(x)
        if coef.numel() == 0:
            norms = _without_a_part((coef.shape[2], coef.shape[0]), own, coef, scaler, base_coef)
        else:
            norms = edge_norms(own, coef, grid, base_coef, ord, base_activation=self.activation(), scaler=scaler)
        return self.sharding.whole_norms(norms)

    def edge_scores(self, x: Tensor, out_scores: Tensor | None = None) -> Tensor:
        """(..., O, I): what every edge contributes on x to scores (..., O) of the outputs, by default ones.

        As pykan's `attribute`: an edge's standard deviation over its output's, plus 1e-4, times the output's score.
        """
        rows = rows_of(x)
        share = self.edge_norms(rows, "std") / (self.sharding.whole_output(self(rows)).std(0) + 1e-4).unsqueeze(-1)
        return share if out_scores is None else out_scores.unsqueeze(-1) * share

    def regularization_loss(
        self,
        x: Tensor | float | None = None,
        regularize_activation: float = 1.0,
        regularize_entropy: float | None = None,
        metric: str = "l1",
    ) -> Tensor:
        """A loss that makes edges few: a scalar; see `KAN.regularization_loss`, here of one layer and its own inputs x."""
        x, activation, entropy = loss_arguments(x, regularize_activation, regularize_entropy)
        if x is None:
            edges = whole(self.coef.abs().mean(1))
            return coefficient_loss(edges if self.mask is None else edges * whole(self.mask), activation, entropy)
        return norm_loss(self.metric_norms(x, metric), metric, activation, entropy)

    def metric_norms(self, x: Tensor, metric: str) -> Tensor:
        """(O, I): the edge norms that a metric of `KAN.regularization_loss` sums up; not "edge_backward", which is a net's."""
        check_choice("metric", metric, ("l1", "edge_forward_spline_n", "edge_forward_spline_u"))
        norms = self.edge_norms(x, "l1" if metric == "l1" else "std")
        if metric == "edge_forward_spline_n":
            norms = norms / (rows_of(self.sharding.whole_input(x)).std(0) + 0.1)
        return norms

    def _check_has_its_part(self, method: str) -> None:
        """That this rank has a part of the layer which its `sharding`, if any, explains: `fully_shard` leaves others."""
        if self.sharding.mesh != getattr(self.coef, "device_mesh", None):
            raise ValueError(
                f"{method}: expected a whole layer, or one sharded by ColwiseKAN or RowwiseKAN, got one that fully_shard"
                f" sharded; after register_fsdp_forward_method(layer, {method!r}) torch gathers it"
            )

    def _check_keeps_changes(self, method: str) -> None:
        check_not_fully_sharded(method, self)
        self._check_has_its_part(method)

    def extra_repr(self) -> str:
        activation = self.activation()
        fused = "none" if activation is None else "fused" if isinstance(activation, str) else "plain torch"
        mask = local(self.mask)
        pruned = "" if mask is None else f", pruned={int((mask == 0).sum())} of {mask.numel()} edges"
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, grid_size={self.grid_size}, "
            f"spline_order={self.spline_order}, standalone_scale_spline={self.scaler is not None}, base={fused}{pruned}"
        )


def _without_a_part(shape: Sequence[int], x: Tensor, *parameters: Tensor | None) -> Tensor:
    """Zeros, on a rank that has no part of a sharded layer, that depend on all, as every rank's gradients are waited for."""
    x, *rest = autocast(x, *parameters)
    return x.new_zeros(shape) + torch.stack([t.sum() for t in (x[..., :0], *rest) if t is not None]).sum()


def activation_module(activation: type[nn.Module] | nn.Module | None) -> nn.Module | None:
    """A module from a module or its class. Raises TypeError for anything else but None."""
    if isinstance(activation, type) and issubclass(activation, nn.Module):
        activation = activation()
    if activation is not None and not isinstance(activation, nn.Module):
        raise TypeError(f"base_activation: expected an nn.Module, its class or None, got {activation!r}")
    return activation


def _checked_range(grid_range: Any) -> tuple[float, float]:
    if isinstance(grid_range, str) or not isinstance(grid_range, Sequence):
        raise TypeError(f"grid_range: expected a pair of numbers, got {type(grid_range).__name__}")
    if len(grid_range) != 2:
        raise ValueError(f"grid_range: expected two numbers, got {list(grid_range)}")
    low, high = grid_range
    check_number("grid_range[0]", low)
    check_number("grid_range[1]", high)
    if not low < high:
        raise ValueError(f"grid_range: expected low < high, got {list(grid_range)}")
    return float(low), float(high)
