"""`KANLinear`: a KAN layer with efficient-kan's interface and fused kernels."""

import copy
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor, nn

from ..functional import BaseActivation, Norm, base_activation_of, edge_norms, kan_linear, refused_dtype
from ..grid.knots import QUANTILES, Quantiles, data_knots, refined_knots
from ..grid.refit import fitted, transfer_matrix, transferred
from ..reference import basis, scaled
from ..utils.autocast import autocast
from ..utils.checks import (
    DTYPES,
    check_choice,
    check_floating,
    check_grid,
    check_has_values,
    check_number,
    check_parameters,
    check_rows,
    check_size,
    dtype_name,
    rows_of,
    shape_of,
)
from ..utils.dtensor import Unsharded, check_not_fully_sharded, check_whole, is_sharded, local, own_part, parts_as, whole
from .edge import Edge
from .init import draw
from .legacy import converted_attributes, converted_state_dict
from .regularization import Metric, coefficient_loss, loss_arguments, norm_loss

if TYPE_CHECKING:
    from typing_extensions import Self

torch.fx.wrap("kan_linear")  # torch.fx.symbolic_trace records it as a leaf, like torch's own functions


class KANLinear(nn.Module):
    """A KAN layer: y[..., o] = sum_i ( base_weight[o,i] b(x[..., i]) + spline_{o,i}(x[..., i]) ), (..., I) -> (..., O).

    Arguments, defaults, initialisation, parameters and `state_dict` match efficient-kan, and checkpoints load in both
    directions. The parameters are `base_weight (O, I)`, `spline_weight (O, I, G+K)` and `spline_scaler (O, I)`; the first and
    last are None if disabled. The buffers are the knots `grid (I, G+2K+1)` and, after pruning, `edge_mask (O, I)` of ones and
    zeros, which keeps masked edges exactly zero. Checkpoints and pickles of version 0.1.0 can be loaded.

    Args:
        in_features, out_features: I, O >= 1.
        grid_size: G >= 1, the number of intervals in `grid_range`.
        spline_order: K >= 0, the degree of the splines.
        scale_noise: the initial splines interpolate uniform noise of width scale_noise / grid_size.
        scale_base, scale_spline: base_weight and spline_scaler are initialised by `kaiming_uniform_` with a = sqrt(5) * scale.
            A scale of 1 gives +-1/sqrt(I), a larger scale gives smaller weights. Without spline_scaler, scale_spline
            multiplies spline_weight.
        enable_standalone_scale_spline: whether every edge's spline has a trainable factor, `spline_scaler`.
        base_activation: the function b, a module or its class. SiLU and Identity are fused, other modules run in plain torch,
            and None disables the base term.
        grid_eps: in [0, 1]; grid updates interpolate between the quantiles of the data (0) and equidistant knots (1).
        grid_range: (low, high) with low < high.
        device, dtype: of the parameters; float64, float32, bfloat16 or float16.

    Raises:
        TypeError, ValueError: an argument is invalid; the message names it.

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
    sharding: Any = Unsharded()  # a `parallel.LayerSharding` in a layer sharded by `ColwiseKAN` or `RowwiseKAN`

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

        in_features, out_features = int(in_features), int(out_features)
        grid_size, spline_order = int(grid_size), int(spline_order)
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
        """Initialise the parameters as efficient-kan does, in the same order: base_weight, spline noise, spline_scaler.

        The knots are also reset to be equidistant over `grid_range`. Call this after `to_empty` on a meta-device layer.
        """
        draw(self)

    if TYPE_CHECKING:
        # base_weight and spline_scaler can be None. `Any` lets type checkers accept code that does not check for it.
        base_activation: nn.Module | None
        base_weight: nn.Parameter | Any
        spline_scaler: nn.Parameter | Any

        def __call__(self, x: Tensor) -> Tensor: ...

    def forward(self, x: Tensor) -> Tensor:
        """Apply the layer: x (..., I) -> (..., O)."""
        spline_weight, grid = self.spline_weight, self.grid
        spline_scaler, base_weight = self._edge_factors()
        if is_sharded(spline_weight):
            spline_weight, grid = local(spline_weight), local(grid)
            if spline_weight.numel() == 0:
                return _without_a_part((*x.shape[:-1], len(spline_weight)), x, spline_weight, spline_scaler, base_weight)
        refusal = refused_dtype(x, spline_weight)
        if refusal is not None:
            return refusal
        activation = self._activation()
        return kan_linear(x, spline_weight, grid, base_weight, spline_scaler=spline_scaler, base_activation=activation)

    def _edge_factors(self) -> tuple[Tensor | None, Tensor | None]:
        """Return spline_scaler and base_weight multiplied by edge_mask; local shards in a sharded layer."""
        spline_scaler, base_weight, edge_mask = self.spline_scaler, self.base_weight, self.edge_mask
        if is_sharded(spline_scaler) or is_sharded(base_weight) or is_sharded(edge_mask):
            spline_scaler, base_weight, edge_mask = local(spline_scaler), local(base_weight), local(edge_mask)
        if edge_mask is None:
            return spline_scaler, base_weight
        edge_mask = edge_mask.to(self.spline_weight.dtype)  # mixed precision does not cast buffers
        masked_scaler = edge_mask if spline_scaler is None else spline_scaler * edge_mask
        return masked_scaler, None if base_weight is None else base_weight * edge_mask

    def _activation(self) -> BaseActivation:
        """Return the `base_activation` argument of `kan_linear`."""
        return base_activation_of(self.base_activation)

    def edge(self, out_feature: int, in_feature: int) -> Edge:
        """Return the function of the edge from input `in_feature` to output `out_feature` as an `Edge`.

        `layer.edge(o, i)(t)` evaluates it at t, a tensor of any shape; see `kan_kernels.Edge`. Negative indices count from the
        end.

        Raises:
            TypeError: an index is not an int.
            IndexError: an index is out of range.
            ValueError: the layer is sharded.
        """
        return Edge(self, out_feature, in_feature)

    def b_splines(self, x: Tensor) -> Tensor:
        """Evaluate the bases of every feature: x (N, I) -> (N, I, G+K). Differentiable; same as efficient-kan's method.

        The dtype is the promoted dtype of x and the grid; half types are evaluated in float32.

        Raises:
            TypeError, ValueError: x is not a floating-point tensor of shape (N, I) on the layer's device, or the layer is
                sharded.
        """
        check_whole("b_splines", self)
        self._check_points(x)
        dtype = torch.promote_types(x.dtype, self.grid.dtype)
        wide = torch.promote_types(dtype, torch.float32)
        return basis(x.to(wide), self.grid.to(wide), self.spline_order).to(dtype)

    @property
    def scaled_spline_weight(self) -> Tensor:
        """spline_weight (O, I, G+K) multiplied by spline_scaler and edge_mask, if the layer has them."""
        return scaled(self.spline_weight, self._edge_factors()[0])

    def curve2coeff(self, x: Tensor, y: Tensor) -> Tensor:
        """Fit a spline_weight to points by least squares, like efficient-kan's method.

        The spline of edge (o, i), without spline_scaler, approximates y[:, i, o] at x[:, i]. If the points do not determine
        all coefficients, e.g. outside the range of the data, the solution has minimum norm.

        Args:
            x: (N, I), finite, N >= 1.
            y: (N, I, O), finite, dtype and device of x.

        Returns:
            (O, I, G+K), contiguous, with the dtype of `b_splines`.

        Raises:
            TypeError, ValueError: an argument is invalid (the message names it), or the layer is sharded.
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
        """Return the fraction of inputs inside the grid for every feature: (I,), float32, between 0 and 1.

        The grid of feature i is the closed interval from grid[i, K] to grid[i, -K-1]. It excludes the K knots beyond either
        end, where the splines decay to zero. For degree 0 the upper end is excluded. NaN counts as outside.

        Args:
            x: (..., I), at least one row, any floating-point dtype, on the layer's device.

        Raises:
            TypeError, ValueError: an argument is invalid; the message names it.

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
        """Adapt the knots to the distribution of x and refit the splines to the new knots.

        The new splines are the least-squares fit of the old splines on x. Where x does not determine them, they approximate
        the old splines over the whole grid.

        Args:
            x: (..., I), finite, at least one row, any floating-point dtype.
            margin: >= 0, how far the grid extends beyond the data on either side, in units of x. None selects the default of
                `quantiles`: 0.01 for "efficient-kan", 0 for "pykan".
            quantiles: "efficient-kan" or "pykan", the rule that selects knots from the sorted data. They are blended with
                equidistant knots according to `grid_eps` and extended by K knots on either side.

        Raises:
            TypeError, ValueError: an argument is invalid; the message names it. The layer is unchanged.
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
        """Replace the knots by grid (I, G+2K+1), strictly increasing in every row, and refit the splines to them.

        Raises:
            TypeError, ValueError: grid is invalid. The layer is unchanged.
        """
        self._check_keeps_changes("set_grid")
        check_grid(grid, self.in_features, self.spline_order)
        if not self.grid.is_meta:
            check_has_values("grid", grid)
        if grid.shape != self.grid.shape:
            raise ValueError(
                f"grid: expected shape {tuple(self.grid.shape)}, got {tuple(grid.shape)}; `refine` changes the grid size"
            )
        self._move_to(own_part(grid.to(self.grid.device, self.grid.dtype), self.grid))

    def _move_to(self, knots: Tensor, rows: Tensor | None = None) -> None:
        """Refit the splines to new knots, rounded to the layer's dtype. In a sharded layer, knots are this rank's shard."""
        spline_weight, grid = local(self.spline_weight), local(self.grid)
        knots = knots.to(grid.dtype)
        check_grid(knots, len(grid), self.spline_order)
        if not bool(grid.isfinite().all()):
            raise ValueError("grid: expected finite knots to refit the splines from, got a NaN or an infinity")
        if len(grid) > 0:
            spline_weight.copy_(transferred(spline_weight, transfer_matrix(grid, knots, self.spline_order, rows)))
            grid.copy_(knots)

    def refine(self, grid_size: int) -> "Self":
        """Return a new layer with grid_size intervals that computes the same function (grid extension in the KAN paper).

        The new inner knots interpolate the old ones; the K knots on either side are kept. If grid_size is a multiple of the
        old one, the new knots include the old ones and the result is exact up to rounding. Otherwise it is the least-squares
        approximation over the whole grid. dtype, device, requires_grad and training mode are preserved.

        Raises:
            TypeError, ValueError: grid_size is not an int >= 1, or knots would coincide in the layer's dtype.
        """
        self._check_keeps_changes("refine")
        new = copy.deepcopy(self)
        new.refine_(grid_size)
        return new

    @torch.no_grad()
    def refine_(self, grid_size: int) -> None:
        """In-place version of `refine`. It replaces `spline_weight` and `grid` by new tensors."""
        self._check_keeps_changes("refine_")
        check_size("grid_size", grid_size, 1)
        grid_size = int(grid_size)
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
        """Return the norm of every edge's function on x (..., I) as a tensor (O, I); see `kan_kernels.edge_norms`."""
        self._check_has_its_part("edge_norms")
        spline_scaler, base_weight = self._edge_factors()
        spline_weight, grid = local(self.spline_weight), local(self.grid)
        own = self.sharding.own_input(x)
        refusal = refused_dtype(own, spline_weight)
        if refusal is not None:
            return refusal
        if spline_weight.numel() == 0:
            norms = _without_a_part(spline_weight.shape[:2], own, spline_weight, spline_scaler, base_weight)
        else:
            activation = self._activation()
            norms = edge_norms(
                own, spline_weight, grid, base_weight, ord, spline_scaler=spline_scaler, base_activation=activation
            )
        return self.sharding.whole_norms(norms)

    def edge_scores(self, x: Tensor, out_scores: Tensor | None = None) -> Tensor:
        """Return every edge's contribution (..., O, I) on x to the output scores (..., O), which default to ones.

        The score of an edge is std(edge) / (std(output) + 1e-4) times the score of its output, as in pykan's `attribute`.

        Raises:
            TypeError, ValueError: x (..., I) has fewer than two rows, or an argument has another dtype or shape.
        """
        check_floating("x", x)
        if out_scores is not None:
            check_floating("out_scores", out_scores)
            if out_scores.dim() < 1 or out_scores.shape[-1] != self.out_features:
                raise ValueError(
                    f"out_scores: expected {self.out_features} scores in the last dimension, got shape {shape_of(out_scores)}"
                )
            if out_scores.device != x.device:
                raise ValueError(f"out_scores: expected a tensor on {x.device}, as x, got one on {out_scores.device}")
        rows = rows_of(x)
        share = self.edge_norms(rows, "std") / (self.sharding.whole_output(self(rows)).std(0) + 1e-4).unsqueeze(-1)
        return share if out_scores is None else out_scores.unsqueeze(-1) * share

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
        """Return the scalar sparsity loss of this layer; x are the layer's inputs. See `KAN.regularization_loss`."""
        x, activation, entropy = loss_arguments(x, regularize_activation, regularize_entropy)
        if x is None:
            edges = whole(self.spline_weight.abs().mean(-1))
            return coefficient_loss(edges if self.edge_mask is None else edges * whole(self.edge_mask), activation, entropy)
        return norm_loss(self._metric_norms(x, metric), metric, activation, entropy)

    def _metric_norms(self, x: Tensor, metric: Metric) -> Tensor:
        """Return the edge norms (O, I) for a metric of `KAN.regularization_loss` other than "edge_backward"."""
        check_choice("metric", metric, ("l1", "edge_forward_spline_n", "edge_forward_spline_u"))
        norms = self.edge_norms(x, "l1" if metric == "l1" else "std")
        if metric == "edge_forward_spline_n":
            norms = norms / (rows_of(self.sharding.whole_input(x)).std(0) + 0.1)
        return norms

    def _check_has_its_part(self, method: str) -> None:
        """Raise ValueError if the parameters are sharded by anything but `sharding`, e.g. by `fully_shard`."""
        if self.sharding.mesh != getattr(self.spline_weight, "device_mesh", None):
            raise ValueError(
                f"{method}: expected an unsharded layer or one sharded by ColwiseKAN or RowwiseKAN, got one sharded by"
                f" fully_shard; call register_fsdp_forward_method(layer, {method!r}) so that torch gathers the parameters"
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
            self.edge_mask = torch.ones_like(self.spline_weight.detach()[..., 0])  # sharded like spline_weight
        if isinstance(grid, Tensor) and grid.shape == self.grid.shape:  # torch reports anything else
            grid = local(grid).to(self.grid.dtype)
            try:
                check_grid(grid, len(grid), self.spline_order)
            except ValueError as error:
                error_msgs.append(f"{prefix}{error}")  # torch raises them all, as it does for wrong shapes
                return
        super()._load_from_state_dict(state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(converted_attributes(state))

    def extra_repr(self) -> str:
        activation = self._activation()
        fused = "none" if activation is None else "fused" if isinstance(activation, str) else "plain torch"
        mask = local(self.edge_mask)
        pruned = "" if mask is None else f", pruned={int((mask == 0).sum())} of {mask.numel()} edges"
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, grid_size={self.grid_size}, "
            f"spline_order={self.spline_order}, standalone_scale_spline={self.spline_scaler is not None}, base={fused}{pruned}"
        )


def _without_a_part(shape: Sequence[int], x: Tensor, *parameters: Tensor | None) -> Tensor:
    """Return zeros that depend on all arguments, for a rank with an empty shard: every rank must take part in the backward."""
    x, *rest = autocast(x, *parameters)
    return x.new_zeros(shape) + torch.stack([t.sum() for t in (x[..., :0], *rest) if t is not None]).sum()


def activation_module(activation: type[nn.Module] | nn.Module | None) -> nn.Module | None:
    """Return a module given a module, a module class or None. Raises TypeError for anything else."""
    if isinstance(activation, type) and issubclass(activation, nn.Module):
        try:
            return activation()
        except TypeError as error:
            raise TypeError(
                f"base_activation: expected a class that is constructed without arguments, or a module; {error}"
            ) from error
    if activation is not None and not isinstance(activation, nn.Module):
        raise TypeError(f"base_activation: expected an nn.Module, its class or None, got {activation!r}")
    return activation


def checked_range(name: str, grid_range: Any) -> tuple[float, float]:
    """Return a pair of numbers with low < high as floats. Raises TypeError or ValueError with `name` in the message."""
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
