"""Acceleration of pykan 0.2.8's `KANLayer` in place: its forward, its use in a network, and its grid updates."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from ...backends import log_fallback
from ...functional import BaseActivation, base_activation_of, is_observed, refused_dtype
from ...grid.knots import data_knots, extended, refined_knots
from ...grid.refit import PYKANS_SHARE, transfer_matrix, transferred
from ...utils.checks import check_rows, check_tensor
from ..class_swap import Fused, Verdict, forward_mismatch, fuse, fused_class, held_tensors, own_class, tensors_mismatch
from ..equivalence import (
    POINTS,
    Call,
    Kind,
    Watched,
    changed,
    chosen,
    compare_forwards,
    compare_whole,
    compared_edges,
    ignored_reads,
    kind_of,
    layer_values,
    on_its_own,
    probe_inputs,
    twin,
    whole_values,
)
from .edge_record import DenseRecord, EdgeRecord, KernelRecord, SymbolicEdges

KIND = "pykan's KANLayer"
_RANKS = {"grid": 2, "coef": 3, "mask": 2, "scale_base": 2, "scale_sp": 2}
PARAMETERS = set(_RANKS)
# The attributes that the fused forward reads, and sizes, which are compared with the shapes of the tensors
_KNOWN = {"in_dim", "out_dim", "k", "base_fun"}


class FusedKANLayer(Fused):
    """pykan's `KANLayer` with the fused kernels.

    Its tensors are `grid (I, G+2K+1)`, `coef (I, O, G+K)`, and `mask`, `scale_base` and `scale_sp (I, O)`. The forward returns
    the same four tensors as pykan's. `FusedMultKAN` calls `recorded` instead, which computes only the output.
    """

    replaced: ClassVar[tuple[str, ...]] = (
        "forward",
        "update_grid_from_samples",
        "initialize_grid_from_parent",
        "get_subset",
    )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return y (N, O) for x (N, I), and three tensors (N, O, I): every edge's input, function, and unscaled spline.

        The splines are before scale and mask. The three tensors take as much memory as in pykan.
        """
        layer = cast(Any, self)
        check_tensor("x", x)
        if x.dim() != 2:
            raise ValueError(f"x: expected two dimensions (N, I), got shape {tuple(x.shape)}")
        if layer.grid.requires_grad:
            note_own_forward(self, "its grid is trained")
            return layer.peer.forward(layer, x)
        record = kernel_record(layer, x, False, None)
        splines, values = record.splines_and_values()
        preacts = x.clone().unsqueeze(1).expand(-1, values.shape[1], -1)
        # Without gradients, pykan's own sum is quicker than the kernel, since the values are there. With autocast it is wider.
        summed = not torch.is_grad_enabled() or torch.is_autocast_enabled(x.device.type)
        y = values.sum(2) if summed else record.output()
        return y, preacts, values, splines

    def get_subset(self, in_id: Any, out_id: Any) -> nn.Module:
        """Call pykan's `get_subset` and fuse the layer that it returns."""
        subset = super().get_subset(in_id, out_id)  # type: ignore[misc]
        if type(subset) is self.peer:
            fuse(subset, FusedKANLayer)
        return subset

    @torch.no_grad()
    def update_grid_from_samples(self, x: Tensor, mode: str = "sample") -> None:
        """Update the knots as pykan does and refit the splines on x (N, I), or on its quantiles for mode "grid".

        A constant feature keeps its spline. pykan makes all its knots equal, so that the spline vanishes.
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
        """Interpolate the parent's knots and refit its splines on x (N, I), or on 2G + 1 knots for mode "grid"."""
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
        # As in pykan, new storage keeps the old values valid that autograd has saved.
        layer = cast(Any, self)
        knots = knots.to(layer.grid.dtype)
        refitted = transferred(old.coef.transpose(0, 1), transfer_matrix(old.grid, knots, layer.k, rows, PYKANS_SHARE))
        layer.coef.data = refitted.transpose(0, 1).to(layer.coef.dtype).contiguous()
        layer.grid.data = knots


def recorded(layer: nn.Module, x: Tensor, keep: bool, symbolic: SymbolicEdges | None) -> EdgeRecord:
    """Return the record of a network's layer for x (N, I) and its symbolic edges.

    `keep` copies the parameters, so that the record stays valid after the parameters change.
    """
    fused, observed = isinstance(layer, FusedKANLayer), is_observed(layer)
    if fused and not observed and not cast(Any, layer).grid.requires_grad:
        return kernel_record(layer, x, keep, symbolic)
    if fused and observed:
        note_own_forward(layer, "its hooks or its own forward may read every edge's values")
    y, _, values, splines = layer(x)
    return DenseRecord(x, symbolic, torch.is_grad_enabled(), y, values, splines)


def kernel_record(module: nn.Module, x: Tensor, keep: bool, symbolic: SymbolicEdges | None) -> KernelRecord:
    """Return a record with the arguments of `kan_linear` for a layer and x (N, I), or with copies of them (`keep`)."""
    layer = cast(Any, module)
    weight, grid = layer.coef.transpose(0, 1), layer.grid.detach()
    activation = base_activation(layer.base_fun)
    if keep:
        weight, grid, activation = weight.clone(), grid.clone(), _kept(activation)
    if torch.promote_types(x.dtype, weight.dtype) is weight.dtype:
        x = x.to(weight.dtype)  # type promotion, as in pykan
    refusal = refused_dtype(x, weight)
    x = x if refusal is None else refusal  # in compiled code, raises at run time
    mask = layer.mask
    base_weight = None if activation is None else (mask * layer.scale_base).t()
    scaler = (mask * layer.scale_sp).t()
    if activation is None:
        scaler = with_zero_gradients(scaler, [layer.scale_base])
    return KernelRecord(x, symbolic, torch.is_grad_enabled(), weight, grid, base_weight, scaler, activation)


def base_activation(base_fun: Any) -> BaseActivation:
    """Return pykan's base function as an argument of `kan_linear`; None for "zero", a lambda recognised by its values."""
    if isinstance(base_fun, nn.Module):
        return base_activation_of(base_fun)
    probe = torch.tensor([-2.5, -0.3, 0.0, 0.7, 3.1])
    return None if not bool(base_fun(probe).any()) else base_fun


def with_zero_gradients(tensor: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """Return the tensor with gradients of zero with respect to parameters on which it does not depend.

    pykan multiplies such parameters by zero. Without this, their gradients would be None: `autograd.grad` would raise, and
    optimizers and DistributedDataParallel would treat them differently.
    """
    trained = [parameter.reshape(-1)[:0] for parameter in parameters if parameter.requires_grad]
    return tensor + torch.cat(trained).sum() if trained and torch.is_grad_enabled() else tensor


def note_own_forward(layer: Any, reason: str) -> None:
    """Log that a fused layer computes every edge's values."""
    if not torch.compiler.is_compiling():
        log_fallback(f"a {layer.peer.__name__} computes every edge's values", reason)


def _kept(activation: BaseActivation) -> BaseActivation:
    """Return the activation with copies of its current parameters."""
    if not isinstance(activation, nn.Module):
        return activation
    kept = {name: parameter.clone() for name, parameter in activation.named_parameters()}
    return partial(_called, activation, kept) if kept else activation


def _called(module: nn.Module, parameters: dict[str, Tensor], x: Tensor) -> Tensor:
    return torch.func.functional_call(module, parameters, (x,))


def looks_like_layer(module: nn.Module) -> bool:
    """Return whether the module has pykan's grid, coefficients and at least one of its scales."""
    held = held_tensors(module).keys()
    return held >= {"grid", "coef"} and not held.isdisjoint({"scale_base", "scale_sp"})


def examine_layer(module: nn.Module, known: dict[Kind, type[Fused]]) -> Verdict:
    """Check that the module is pykan 0.2.8's layer. `known` caches the kinds of layers whose comparison succeeded."""
    reason = _holdings_mismatch(module) or forward_mismatch(module, ("x",))
    if reason:
        return Verdict(reason)
    kind = kind_of(module)
    if kind not in known:
        reason = _compare_with_fused(module)
        if reason:
            return Verdict(reason)
        known[kind] = FusedKANLayer
    return Verdict(exchanges=((module, FusedKANLayer),))


def _holdings_mismatch(module: nn.Module) -> str:
    held = held_tensors(module)
    if held.keys() != PARAMETERS:
        return f"its parameters and buffers are {sorted(held)}, pykan 0.2.8's are {sorted(PARAMETERS)}"
    it = cast(Any, module)
    missing = [name for name in ("base_fun", "k", "num", "in_dim", "out_dim", "grid_eps") if not hasattr(it, name)]
    if missing:
        return f"it has no {', '.join(missing)}"
    reason = tensors_mismatch(held, _RANKS)
    if reason:
        return reason
    I, O, M = it.coef.shape
    sizes = {"k": it.grid.shape[1] - M - 1, "in_dim": I, "out_dim": O}
    given = {name: getattr(it, name) for name in sizes}
    if given != sizes or sizes["k"] < 0 or any(p.shape != (I, O) for p in (it.mask, it.scale_base, it.scale_sp)):
        found = ", ".join(f"{name} {tuple(tensor.shape)}" for name, tensor in held.items())
        return f"the shapes do not fit: {found}, " + ", ".join(f"{name} = {value!r}" for name, value in given.items())
    return ""


def small_copy(layer: nn.Module, inputs: Sequence[int], outputs: Sequence[int], share: float) -> nn.Module:
    """Return a copy of pykan's own class with the edges between these inputs and outputs, and a fraction changed."""
    held = cast(Any, layer)
    tensors = {"grid": chosen(held.grid, inputs).to(torch.float64, copy=True)}
    for name in PARAMETERS - {"grid"}:
        tensors[name] = changed(chosen(getattr(held, name), inputs, outputs), share)
    return twin(own_class(layer), layer, tensors, {"in_dim": len(inputs), "out_dim": len(outputs)})


def _compare_with_fused(layer: nn.Module) -> str:
    held = cast(Any, layer)
    I, O, M = held.coef.shape
    inputs, outputs = compared_edges(held.grid, torch.Size((O, I, M)))
    twin_of = partial(small_copy, layer, inputs, outputs)
    with on_its_own(held.grid.device):
        points, watched = probe_inputs(chosen(held.grid, inputs)), Watched(type(layer))
        theirs, ours = (layer_values(call, points) for call in _calls(layer, watched))
        reason = compare_forwards(twin_of, theirs, ours) or ignored_reads(layer, watched.names, _KNOWN, twin_of, theirs)
        if reason or (len(inputs), len(outputs)) == (I, O):
            return reason
        return compare_whole(layer, *(whole_values(call, held.grid) for call in _calls(layer, watched)))


def _calls(layer: nn.Module, own: Watched) -> list[Call]:
    """Return the layer's own forward and the fused one."""
    fused = fused_class(FusedKANLayer, type(layer))

    def ours(copied: nn.Module, x: Tensor) -> Any:
        copied.__class__ = fused
        return cast(Any, fused).forward(copied, x)

    return [partial(_returned, own), partial(_returned, ours)]


def _returned(forward: Callable[[nn.Module, Tensor], Any], copied: nn.Module, x: Tensor) -> list[Tensor]:
    """Call a forward; of the splines, return the values at the probe's points, since pykan's are 0 for NaN."""
    y, preacts, values, splines = forward(copied, x)
    return [y, preacts, values, splines[:POINTS]]
