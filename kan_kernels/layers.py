"""`KANLinear`: efficient-kan's module, argument for argument, on the fused kernels."""

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .autocast import autocast
from .checks import (
    DTYPES,
    check_choice,
    check_floating,
    check_grid,
    check_number,
    check_parameters,
    check_rows,
    check_size,
    dtype_name,
    rows_of,
    shape_of,
)
from .edge import Edge
from .edge_norms import Norm, edge_norms
from .functional import BaseActivation, base_activation_of, kan_linear, refused_dtype
from .grid import QUANTILES, Quantiles, data_knots, refined_knots
from .initial import draw
from .legacy import converted_attributes, converted_state_dict
from .projection import fitted, transfer_matrix, transferred
from .reference import basis, scaled
from .regularization import Metric, coefficient_loss, loss_arguments, norm_loss
from .sharding import Whole, check_not_fully_sharded, check_whole, is_sharded, local, own_part, parts_as, whole

if TYPE_CHECKING:
    from typing_extensions import Self

torch.fx.wrap("kan_linear")  # a leaf to torch.fx.symbolic_trace, as functions of torch are


class KANLinear(nn.Module):
    """A KAN layer: y[..., o] = sum_i ( base_weight[o,i] b(x[..., i]) + spline_{o,i}(x[..., i]) ), (..., I) -> (..., O).

    Arguments, defaults, initial distribution, parameters and `state_dict` are efficient-kan's, and checkpoints pass both ways:
    the parameters are `base_weight (O, I)`, `spline_weight (O, I, G+K)` and, if standalone, `spline_scaler (O, I)`; None where
    a layer has no such one. The buffers are the knots `grid (I, G+2K+1)` and, once the layer was pruned, `edge_mask (O, I)` of
    ones and zeros: an edge that it masks stays exactly zero. Checkpoints and pickles of version 0.1.0 can be loaded.

    Args:
        in_features, out_features: I, O >= 1.
        grid_size: G >= 1, intervals over `grid_range`.
        spline_order: K >= 0, the degree of the splines.
        scale_noise: width of the uniform noise that the initial splines pass through, over grid_size.
        scale_base, scale_spline: the `a / sqrt(5)` of the initial `kaiming_uniform_` of base_weight and spline_scaler: 1 gives
            +-1/sqrt(I), a larger scale smaller weights. Without the scaler, scale_spline multiplies spline_weight.
        enable_standalone_scale_spline: give every edge's spline a trainable factor, `spline_scaler`.
        base_activation: the function b, a module or its class. SiLU and Identity are fused, None leaves the base out, and any
            other module runs in plain torch.
        grid_eps: in [0, 1]; how far a grid update blends the data's quantiles (0) with equidistant knots (1).
        grid_range: (low, high) with low < high.
        device, dtype: of the parameters; float64, float32, bfloat16 or float16.

    Raises:
        TypeError, ValueError: naming the argument.

    Equivalent to:
        bases = reference.basis(x, layer.grid, layer.spline_order).flatten(1)
        weight = layer.spline_weight * layer.spline_scaler.unsqueeze(-1)
        y = F.linear(F.silu(x), layer.base_weight) + F.linear(bases, weight.flatten(1))
    """

    in_features: int
    out_features: int
    grid_size: int
    spline_order: int
    enable_standalone_scale_spline: bool
    grid_range: tuple[float, float]
    spline_weight: nn.Parameter
    grid: Tensor
    edge_mask: Tensor | None
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
        device: torch.device | str | int | None = None,
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
        low, high = checked_range("grid_range", grid_range)
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

        edges, bases = (out_features, in_features), grid_size + spline_order
        self.register_parameter("base_weight", None if base_activation is None else empty(*edges))
        self.register_parameter("spline_weight", empty(*edges, bases))
        self.register_parameter("spline_scaler", empty(*edges) if self.enable_standalone_scale_spline else None)
        self.register_buffer("grid", torch.empty(in_features, bases + spline_order + 1, device=device, dtype=dtype))
        self.register_buffer("edge_mask", None)
        self.reset_parameters()
        check_grid(self.grid, in_features, spline_order)

    def reset_parameters(self) -> None:
        """Draw the parameters as efficient-kan does, in its order: base_weight, the splines' noise, spline_scaler.

        The knots are equidistant over `grid_range` again, which `to_empty` after building on the meta device needs.
        """
        draw(self)

    if TYPE_CHECKING:
        # base_weight and spline_scaler are None in a layer without them. `Any` lets type checkers accept code that does not
        # check for None, as code for layers that have both need not.
        base_activation: nn.Module | None
        base_weight: nn.Parameter | Any
        spline_scaler: nn.Parameter | Any

        def __call__(self, x: Tensor) -> Tensor: ...

    def forward(self, x: Tensor) -> Tensor:
        """x (..., I) -> (..., O)."""
        spline_weight, grid = self.spline_weight, self.grid
        spline_scaler, base_weight = self.edge_factors()
        if is_sharded(spline_weight):
            spline_weight, grid = local(spline_weight), local(grid)
            if spline_weight.numel() == 0:
                return _without_a_part((*x.shape[:-1], len(spline_weight)), x, spline_weight, spline_scaler, base_weight)
        refusal = refused_dtype(x, spline_weight)
        if refusal is not None:
            return refusal
        activation = self.activation()
        return kan_linear(x, spline_weight, grid, base_weight, spline_scaler=spline_scaler, base_activation=activation)

    def edge_factors(self) -> tuple[Tensor | None, Tensor | None]:
        """spline_scaler and base_weight with edge_mask on them; of a sharded layer, this rank's."""
        spline_scaler, base_weight, edge_mask = self.spline_scaler, self.base_weight, self.edge_mask
        if is_sharded(spline_scaler) or is_sharded(base_weight) or is_sharded(edge_mask):
            spline_scaler, base_weight, edge_mask = local(spline_scaler), local(base_weight), local(edge_mask)
        if edge_mask is None:
            return spline_scaler, base_weight
        edge_mask = edge_mask.to(self.spline_weight.dtype)  # a buffer, which mixed precision leaves in its type
        masked_scaler = edge_mask if spline_scaler is None else spline_scaler * edge_mask
        return masked_scaler, None if base_weight is None else base_weight * edge_mask

    def activation(self) -> BaseActivation:
        """The base activation as `kan_linear` takes it: the name of one that is fused, the module, or None."""
        return base_activation_of(self.base_activation)

    def edge(self, out: int, in_: int) -> Edge:
        """The function of the edge from input `in_` to output `out`: to be called, differentiated, plotted, handed to SciPy.

        `layer.edge(o, i)(t)` is the edge's function at t, of any shape; see `kan_kernels.edge.Edge`. Negative indices count
        from the end.

        Raises:
            TypeError: an index is no int.
            IndexError: an index is out of range.
            ValueError: the layer is sharded.
        """
        return Edge(self, out, in_)

    def b_splines(self, x: Tensor) -> Tensor:
        """The bases of every feature, as efficient-kan's method: x (N, I) -> (N, I, G+K). Differentiable.

        The dtype is that to which torch promotes those of x and the grid; half types are evaluated in float32.

        Raises:
            TypeError, ValueError: x is no floating-point tensor of shape (N, I) on the layer's device; the layer is sharded.
        """
        check_whole("b_splines", self)
        self._check_points(x)
        dtype = torch.promote_types(x.dtype, self.grid.dtype)
        wide = torch.promote_types(dtype, torch.float32)
        return basis(x.to(wide), self.grid.to(wide), self.spline_order).to(dtype)

    @property
    def scaled_spline_weight(self) -> Tensor:
        """(O, I, G+K): spline_weight times spline_scaler, where there is one, and edge_mask, where there is one."""
        return scaled(self.spline_weight, self.edge_factors()[0])

    def curve2coeff(self, x: Tensor, y: Tensor) -> Tensor:
        """The spline_weight (O, I, G+K) of splines through points, as efficient-kan's method: by least squares.

        Every edge's spline, without its scaler, comes as close as it can to y[:, i, o] at x[:, i]. Where the points leave
        coefficients open, as outside of the data's range, these are the ones of least norm.

        Args:
            x: (N, I), finite, N >= 1.
            y: (N, I, O), finite, dtype and device of x.

        Returns:
            (O, I, G+K), contiguous, of the dtype of `b_splines`.

        Raises:
            TypeError, ValueError: naming the argument; or the layer is sharded.
        """
        check_whole("curve2coeff", self)
        self._check_points(x)
        check_rows(x, self.in_features, 1)
        check_floating("y", y)
        if y.dtype is not x.dtype:
            raise TypeError(f"y: expected {dtype_name(x)}, the dtype of x, got {dtype_name(y)}")
        if y.device != x.device:
            raise ValueError(f"y: expected {x.device}, the device of x, got {y.device}")
        expected = (x.shape[0], self.in_features, self.out_features)
        if y.shape != expected:
            raise ValueError(f"y: expected shape (N, I, O) = {expected}, got {shape_of(y)}")
        if not bool(y.isfinite().all()):
            raise ValueError("y: expected finite values, got a NaN or an infinity")
        return fitted(self.b_splines(x), y)

    def _check_points(self, x: Any) -> None:
        check_floating("x", x)
        if x.dim() != 2 or x.shape[1] != self.in_features:
            raise ValueError(f"x: expected shape (N, I) with I = {self.in_features}, got {shape_of(x)}")
        if x.device != self.grid.device:
            raise ValueError(f"x: expected {self.grid.device}, the device of the layer's parameters, got {x.device}")

    @torch.no_grad()
    def coverage(self, x: Tensor) -> Tensor:
        """The share of inputs inside the layer's grid, per feature: (I,), float32, from 0 to 1.

        The grid of feature i is the interval from grid[i, K] to grid[i, -K-1], both included; without the K knots beyond
        either end, over which the splines fade to zero. At degree 0 the upper end is outside. NaN is outside.

        Args:
            x: (..., I), at least one row; of any floating dtype, on the layer's device.

        Raises:
            TypeError, ValueError: naming the argument.

        Equivalent to, for K >= 1:
            low, high = layer.grid[:, K], layer.grid[:, -K - 1]
            share = ((x >= low) & (x <= high)).float().flatten(0, -2).mean(0)
        """
        rows = check_rows(self.sharding.whole_input(x), self.in_features, 1, finite=False)
        grid = whole(self.grid)
        if rows.device != grid.device:
            raise ValueError(f"x: expected {grid.device}, the device of the layer's parameters, got {rows.device}")
        low, high = grid[:, self.spline_order], grid[:, -self.spline_order - 1]
        below = rows < high if self.spline_order == 0 else rows <= high
        return ((rows >= low) & below).mean(0, dtype=torch.float32)

    @torch.no_grad()
    def update_grid(self, x: Tensor, margin: float | None = None, quantiles: Quantiles = "efficient-kan") -> None:
        """Move the knots to where the data are; every spline stays the same function as nearly as its new knots allow.

        On x the new splines are the least-squares fit of the old ones; away from x they follow the old ones as closely as that
        fit leaves open.

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
        spline_weight, grid = local(self.spline_weight), local(self.grid)
        knots = knots.to(grid.dtype)
        check_grid(knots, len(grid), self.spline_order)
        if len(grid) > 0:
            spline_weight.copy_(transferred(spline_weight, transfer_matrix(grid, knots, self.spline_order, rows)))
            grid.copy_(knots)

    def refine(self, grid_size: int) -> "Self":
        """The paper's grid extension: a new layer of grid_size intervals that computes the same function.

        The new inner knots divide the old range as the old ones do, the K knots on either side stay. Exact to rounding,
        everywhere, if grid_size is a multiple of the old one: the new knots then contain the old. Otherwise the best
        approximation over the knots' length. dtype, device and training flags are this layer's.

        Raises:
            TypeError, ValueError: grid_size is no int of at least 1, or its knots would be equal in this dtype.
        """
        self._check_keeps_changes("refine")
        new = copy.deepcopy(self)
        new.refine_(grid_size)
        return new

    @torch.no_grad()
    def refine_(self, grid_size: int) -> None:
        """`refine` of this layer in place: its `spline_weight` and `grid` are new tensors."""
        self._check_keeps_changes("refine_")
        check_size("grid_size", grid_size, 1)
        old, bases = local(self.grid), grid_size + self.spline_order
        finer = refined_knots(old.double(), self.spline_order, grid_size).to(old.dtype)
        check_grid(finer, len(old), self.spline_order)
        before = self.spline_weight
        part = local(before)
        after = part.new_empty(len(part), 0, bases)
        if len(old) > 0:
            after = transferred(part, transfer_matrix(old, finer, self.spline_order)).to(part.dtype).contiguous()
        self.grid_size = grid_size
        self.grid = parts_as(finer, self.grid, 1, bases + self.spline_order + 1)
        self.spline_weight = nn.Parameter(parts_as(after, before, 2, bases), requires_grad=before.requires_grad)

    def edge_norms(self, x: Tensor, ord: Norm = "l1") -> Tensor:
        """(O, I): how much every edge does on x (..., I), as `kan_kernels.edge_norms`: "l1" or "std". Differentiable."""
        self._check_has_its_part("edge_norms")
        spline_scaler, base_weight = self.edge_factors()
        spline_weight, grid = local(self.spline_weight), local(self.grid)
        own = self.sharding.own_input(x)
        refusal = refused_dtype(own, spline_weight)
        if refusal is not None:
            return refusal
        if spline_weight.numel() == 0:
            norms = _without_a_part(spline_weight.shape[:2], own, spline_weight, spline_scaler, base_weight)
        else:
            activation = self.activation()
            norms = edge_norms(
                own, spline_weight, grid, base_weight, ord, spline_scaler=spline_scaler, base_activation=activation
            )
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
        metric: Metric = "l1",
    ) -> Tensor:
        """A loss that makes edges few: a scalar; see `KAN.regularization_loss`, here of one layer and its own inputs x."""
        x, activation, entropy = loss_arguments(x, regularize_activation, regularize_entropy)
        if x is None:
            edges = whole(self.spline_weight.abs().mean(-1))
            return coefficient_loss(edges if self.edge_mask is None else edges * whole(self.edge_mask), activation, entropy)
        return norm_loss(self.metric_norms(x, metric), metric, activation, entropy)

    def metric_norms(self, x: Tensor, metric: Metric) -> Tensor:
        """(O, I): the edge norms that a metric of `KAN.regularization_loss` sums up; not "edge_backward", which is a net's."""
        check_choice("metric", metric, ("l1", "edge_forward_spline_n", "edge_forward_spline_u"))
        norms = self.edge_norms(x, "l1" if metric == "l1" else "std")
        if metric == "edge_forward_spline_n":
            norms = norms / (rows_of(self.sharding.whole_input(x)).std(0) + 0.1)
        return norms

    def _check_has_its_part(self, method: str) -> None:
        """That this rank has a part of the layer which its `sharding`, if any, explains: `fully_shard` leaves others."""
        if self.sharding.mesh != getattr(self.spline_weight, "device_mesh", None):
            raise ValueError(
                f"{method}: expected a whole layer, or one sharded by ColwiseKAN or RowwiseKAN, got one that fully_shard"
                f" sharded; after register_fsdp_forward_method(layer, {method!r}) torch gathers it"
            )

    def _check_keeps_changes(self, method: str) -> None:
        check_not_fully_sharded(method, self)
        self._check_has_its_part(method)
        check_parameters(method, self, "spline_weight")

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        state_dict = converted_state_dict(state_dict, prefix)
        edge_mask, grid = state_dict.get(prefix + "edge_mask"), state_dict.get(prefix + "grid")
        if edge_mask is not None and self.edge_mask is None:
            if is_sharded(self.spline_weight) and not is_sharded(edge_mask):
                error_msgs.append(f"{prefix}edge_mask: expected a DTensor for a sharded layer without a mask, got a tensor")
            self.edge_mask = torch.ones_like(self.spline_weight.detach()[..., 0])  # sharded as spline_weight is
        if isinstance(grid, Tensor) and grid.shape == self.grid.shape:  # torch reports what is none
            grid = local(grid).to(self.grid.dtype)
            check_grid(grid, len(grid), self.spline_order)
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(converted_attributes(state))

    def extra_repr(self) -> str:
        activation = self.activation()
        fused = "none" if activation is None else "fused" if isinstance(activation, str) else "plain torch"
        mask = local(self.edge_mask)
        pruned = "" if mask is None else f", pruned={int((mask == 0).sum())} of {mask.numel()} edges"
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, grid_size={self.grid_size}, "
            f"spline_order={self.spline_order}, standalone_scale_spline={self.spline_scaler is not None}, base={fused}{pruned}"
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


def checked_range(name: str, grid_range: Any) -> tuple[float, float]:
    """A pair of numbers, low < high, as floats. Raises TypeError or ValueError that says what came under this name."""
    if isinstance(grid_range, str) or not isinstance(grid_range, Sequence):
        raise TypeError(f"{name}: expected a pair of numbers, got {type(grid_range).__name__}")
    if len(grid_range) != 2:
        raise ValueError(f"{name}: expected two numbers, got {list(grid_range)}")
    low, high = grid_range
    check_number(f"{name}[0]", low)
    check_number(f"{name}[1]", high)
    if not low < high:
        raise ValueError(f"{name}: expected low < high, got {list(grid_range)}")
    return float(low), float(high)
