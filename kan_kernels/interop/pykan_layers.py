"""pykan 0.2.8's `KANLayer` made fast in place: what its network needs of it, and its grids."""

from functools import partial
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from ..checks import check_rows
from ..functional import BaseActivation, base_activation_of
from ..grid import data_knots, extended, refined_knots
from ..projection import transfer_matrix
from .edge_record import EdgeRecord
from .fused import Fused, fuse, objection_to_forward
from .probe import disagreement, extreme_inputs, probe_inputs

PARAMETERS = {"grid", "coef", "mask", "scale_base", "scale_sp"}


class FusedKANLayer(Fused):
    """`grid (I, G+2K+1)`, `coef (I, O, G+K)`, `mask`, `scale_base` and `scale_sp (I, O)`.

    Called by itself it is pykan's, with every edge's values; a `FusedMultKAN` calls `record` instead.
    """

    replaced: ClassVar[tuple[str, ...]] = ("update_grid_from_samples", "initialize_grid_from_parent", "get_subset")

    def record(self, x: Tensor, keep: bool) -> EdgeRecord:
        """The layer on x (N, I), to be computed at once, or also when its parameters are others (`keep`)."""
        layer = cast(Any, self)
        coef, grid = layer.coef.transpose(1, 2), layer.grid.detach()
        activation = base_activation(layer.base_fun)
        if keep:
            coef, grid = coef.clone(memory_format=torch.contiguous_format), grid.clone()
            activation = _kept(activation)
        if torch.promote_types(x.dtype, coef.dtype) is coef.dtype:
            x = x.to(coef.dtype)  # as in pykan's products
        base_weight = None if activation is None else layer.mask * layer.scale_base
        return EdgeRecord(x, coef, grid, base_weight, layer.mask * layer.scale_sp, activation, torch.is_grad_enabled())

    def get_subset(self, in_id: Any, out_id: Any) -> nn.Module:
        """pykan's, and the layer it returns is fused."""
        subset = super().get_subset(in_id, out_id)  # type: ignore[misc]
        if not isinstance(subset, Fused):
            fuse(subset, FusedKANLayer)
        return subset

    @torch.no_grad()
    def update_grid_from_samples(self, x: Tensor, mode: str = "sample") -> None:
        """pykan's knots and refit on x (N, I), for mode "grid" on its quantiles.

        A constant feature, for which pykan's knots are all equal and its spline ends, keeps its spline.
        """
        layer = cast(Any, self)
        rows = check_rows(x, layer.in_dim, 1).to(layer.grid.dtype)
        K = layer.k
        G = layer.grid.shape[1] - 2 * K - 1
        knots = data_knots(rows, G, K, layer.grid_eps, None, "pykan")
        if mode == "grid":
            rows = data_knots(rows, 2 * G, K, layer.grid_eps, None, "pykan")[:, K : K + 2 * G + 1].t()
        self._refit(layer, knots, rows)

    @torch.no_grad()
    def initialize_grid_from_parent(self, parent: nn.Module, x: Tensor, mode: str = "sample") -> None:
        """The parent's knots interpolated, and its splines refitted on x (N, I), or for mode "grid" on the knots of 2G."""
        layer, old = cast(Any, self), cast(Any, parent)
        if layer.k != old.k:
            super().initialize_grid_from_parent(parent, x, mode)  # type: ignore[misc]
            return
        K, G = layer.k, layer.num
        inner = refined_knots(old.grid.double(), K, G)[:, K : K + G + 1]
        knots = extended(inner, K, (inner[:, -1] - inner[:, 0]) / G, layer.grid.dtype)
        rows = x if mode != "grid" else refined_knots(old.grid.double(), K, 2 * G)[:, K : K + 2 * G + 1].t()
        self._refit(old, knots, rows)

    def _refit(self, old: Any, knots: Tensor, rows: Tensor) -> None:
        # As pykan does, into new storage: what autograd has saved of the old values stays good.
        layer = cast(Any, self)
        knots = knots.to(layer.grid.dtype)
        coef = transfer_matrix(old.grid, knots, layer.k, rows) @ old.coef.double().transpose(1, 2)
        layer.coef.data = coef.transpose(1, 2).to(layer.coef.dtype).contiguous()
        layer.grid.data = knots


def base_activation(base_fun: Any) -> BaseActivation:
    """pykan's base function as `kan_linear` takes it; None for its "zero", a lambda that nothing but its values tells."""
    if isinstance(base_fun, nn.Module):
        return base_activation_of(base_fun)
    probe = torch.tensor([-2.5, -0.3, 0.0, 0.7, 3.1])
    return None if not bool(base_fun(probe).any()) else base_fun


def _kept(activation: BaseActivation) -> BaseActivation:
    """An activation that stays what it is when its parameters are trained further."""
    if not isinstance(activation, nn.Module):
        return activation
    kept = {name: parameter.clone() for name, parameter in activation.named_parameters()}
    return partial(_called, activation, kept) if kept else activation


def _called(module: nn.Module, parameters: dict[str, Tensor], x: Tensor) -> Tensor:
    return torch.func.functional_call(module, parameters, (x,))


def objection_to_layer(layer: nn.Module) -> str:
    """Why it is not pykan 0.2.8's layer after all, "" if it is."""
    own = {name for name, _ in (*layer.named_parameters(recurse=False), *layer.named_buffers(recurse=False))}
    if own != PARAMETERS:
        return f"it holds {sorted(own)}, pykan 0.2.8's holds {sorted(PARAMETERS)}"
    it = cast(Any, layer)
    missing = [name for name in ("base_fun", "k", "num", "in_dim", "out_dim", "grid_eps") if not hasattr(it, name)]
    if missing:
        return f"it has no {', '.join(missing)}"
    I, O, M = it.coef.shape if it.coef.dim() == 3 else (0, 0, 0)
    if I == 0 or it.grid.shape != (I, M + it.k + 1) or any(p.shape != (I, O) for p in (it.mask, it.scale_base, it.scale_sp)):
        return f"the shapes do not fit: coef {tuple(it.coef.shape)}, grid {tuple(it.grid.shape)}, k = {it.k}"
    if it.grid.requires_grad:
        return "its grid is trained"
    objection = objection_to_forward(layer, ("x",))
    if objection:
        return objection
    x = torch.cat([probe_inputs(it.grid), extreme_inputs(I, it.grid)])
    return disagreement(
        layer,
        (),
        lambda twin: [type(layer).forward(twin, x)[0]],
        lambda twin: [FusedKANLayer.record(cast(Any, twin), x, False).output()],
    )
