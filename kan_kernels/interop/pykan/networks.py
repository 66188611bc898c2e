"""Acceleration of pykan 0.2.8's `MultKAN` in place: its forward, and the methods that return or change networks."""

import copy
from functools import partial
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from ...backends import log_fallback
from ...functional import is_observed
from ...nn.regularization import bits_loss
from ...utils.checks import check_tensor
from ..class_swap import (
    Exchange,
    Fused,
    Verdict,
    definer,
    exchange_classes,
    forward_mismatch,
    fused_class,
    own_class,
    unfuse,
)
from ..equivalence import Kind, Watched, compare_forwards, extreme_inputs, ignored_reads, on_its_own, probe_inputs
from . import layers as pykan_layers
from .edge_record import EdgeRecord, OnDemand, SymbolicEdges
from .formulas import fix_edge, remembered_fits
from .small import AFFINE, network_inputs, small_network

KIND = "pykan's MultKAN"
# The attributes that a forward stores, with one element per layer if `save_act` is set, else with none.
_RECORDS = (
    "acts_premult",
    "spline_preacts",
    "spline_postsplines",
    "spline_postacts",
    "acts_scale",
    "acts_scale_spline",
    "subnode_actscale",
    "edge_actscale",
)
# The attributes that the fused forward reads
_KNOWN = {
    "act_fun",
    "symbolic_fun",
    "symbolic_enabled",
    "depth",
    "width",
    "mult_arity",
    "mult_homo",
    "input_id",
    "save_act",
    "acts",
    *AFFINE,
    *_RECORDS,
}
# The reg_metric of pykan's `reg` -> the attribute that holds it after a forward or `attribute`.
_METRICS = {
    "edge_forward_spline_n": "acts_scale_spline",
    "edge_forward_sum": "acts_scale",
    "edge_forward_spline_u": "edge_actscale",
    "edge_backward": "edge_scores",
    "node_backward": "node_attribute_scores",
}


class FusedMultKAN(Fused):
    """pykan's `MultKAN` with the fused kernels. All its methods work and return the same results.

    The forward stores only the nodes' values; every edge's values (N, O, I) and norms are computed when they are read.
    Networks returned by its methods are fused too.
    """

    replaced: ClassVar[tuple[str, ...]] = (
        "forward",
        "get_params",
        "reg",
        "fix_symbolic",
        "suggest_symbolic",
        "auto_symbolic",
        "initialize_from_another_model",
        "initialize_grid_from_another_model",
        "refine",
        "prune_node",
        "prune_input",
        "expand_depth",
        "expand_width",
        "copy",
        "rewind",
        "checkout",
        "loadckpt",
    )

    def forward(self, x: Tensor, singularity_avoiding: bool = False, y_th: float = 10.0) -> Tensor:
        """Return y (N, O) for x (N, I); singularity_avoiding and y_th apply to symbolic edges."""
        net = cast(Any, self)
        if net.symbolic_enabled and any(map(is_observed, net.symbolic_fun)):
            pykan_layers.note_own_forward(net, "a symbolic layer has hooks or another forward")
            return net.peer.forward(net, x, singularity_avoiding, y_th)
        x = chosen = _chosen(x, net.input_id)
        acts = [x]
        records, affine, unused = [], [], []
        for l, layer in enumerate(net.act_fun):
            symbolic = None
            if net.symbolic_enabled:
                symbolic = _symbolic_edges(net.symbolic_fun[l], x, singularity_avoiding, y_th)
                if symbolic is None:
                    unused.append(net.symbolic_fun[l].affine)
            record = pykan_layers.recorded(layer, x, net.save_act, symbolic)
            if net.save_act:
                records.append(record)
                affine.append((net.subnode_bias[l].detach().clone(), net.subnode_scale[l].detach().clone()))
            y = record.output()
            bias, scale = net.subnode_bias[l], net.subnode_scale[l]
            if net.width[l + 1][1] == 0:  # combine both affine transforms to process y only once
                bias, scale = net.node_bias[l] + net.node_scale[l] * bias, net.node_scale[l] * scale
                x = torch.addcmul(bias, scale, y)
            else:
                y = torch.addcmul(bias, scale, y)
                y = _multiplied(y, net.width[l + 1], net.mult_arity if net.mult_homo else net.mult_arity[l + 1])
                x = torch.addcmul(net.node_bias[l], net.node_scale[l], y)
            acts.append(x.detach())
        x = pykan_layers.with_zero_gradients(x, unused)
        self._keep(chosen, acts, records, affine)
        return x

    def _keep(self, x: Tensor, acts: list[Tensor], records: list[EdgeRecord], affine: list[tuple[Tensor, Tensor]]) -> None:
        """Store what pykan's methods read after a forward, in pykan's shapes."""
        transformed = zip(records, affine, strict=True)
        kept = {
            "cache_data": x,
            "acts": acts,
            "spline_preacts": [record.inputs() for record in records],
            "spline_postsplines": OnDemand([record.splines for record in records]),
            "spline_postacts": OnDemand([record.values for record in records]),
            "acts_scale": OnDemand([partial(_scale, record) for record in records]),
            "acts_scale_spline": OnDemand([partial(_spline_scale, record) for record in records]),
            "edge_actscale": OnDemand([partial(_std, record) for record in records]),
            "subnode_actscale": OnDemand([partial(_output_std, record) for record in records]),
            "acts_premult": OnDemand([partial(_transformed_output, record, *of_layer) for record, of_layer in transformed]),
        }
        if torch.compiler.is_compiling():
            for name, value in kept.items():
                setattr(self, name, value)
        else:
            vars(self).update(kept)  # nn.Module.__setattr__ would take a quarter of a small network's forward

    def get_params(self) -> list[nn.Parameter]:
        """Return the parameters for `fit`. pykan includes frozen parameters, which its L-BFGS updates by zero, one by one."""
        return [parameter for parameter in cast(nn.Module, self).parameters() if parameter.requires_grad]

    def reg(self, reg_metric: str, lamb_l1: float, lamb_entropy: float, lamb_coef: float, lamb_coefdiff: float) -> Tensor:
        """Return pykan's regularization; skip the sums over coefficients if their factors are 0."""
        norms = getattr(self, _METRICS[reg_metric]) if reg_metric in _METRICS else []
        if lamb_coef != 0 or lamb_coefdiff != 0 or len(norms) == 0:
            return super().reg(reg_metric, lamb_l1, lamb_entropy, lamb_coef, lamb_coefdiff)  # type: ignore[misc]
        return torch.stack([bits_loss(of_layer, lamb_l1, lamb_entropy) for of_layer in norms]).sum()

    def fix_symbolic(
        self,
        l: int,
        i: int,
        j: int,
        fun_name: Any,
        fit_params_bool: bool = True,
        a_range: Any = (-10, 10),
        b_range: Any = (-10, 10),
        verbose: bool = True,
        random: bool = False,
        log_history: bool = True,
    ) -> Any:
        """Fix an edge to a formula, fitted to the last forward by pykan's rule. Return its r2."""
        net = cast(Any, self)
        if not (fit_params_bool and isinstance(fun_name, str)) or _has_own_fit(net.symbolic_fun[l]):
            arguments = (l, i, j, fun_name, fit_params_bool, a_range, b_range, verbose, random, log_history)
            return super().fix_symbolic(*arguments)  # type: ignore[misc]
        r2 = fix_edge(net, l, i, j, fun_name, (a_range, b_range), verbose)
        net.set_mode(l, i, j, mode="s")
        if log_history:
            net.log_history("fix_symbolic")
        return r2

    def suggest_symbolic(self, *arguments: Any, **keywords: Any) -> Any:
        """Call pykan's `suggest_symbolic`; functions that its library has twice are fitted once."""
        with remembered_fits():
            return super().suggest_symbolic(*arguments, **keywords)  # type: ignore[misc]

    def auto_symbolic(self, *arguments: Any, **keywords: Any) -> None:
        """Call pykan's `auto_symbolic`; the best function of an edge is not fitted again."""
        with remembered_fits():
            super().auto_symbolic(*arguments, **keywords)  # type: ignore[misc]

    def initialize_grid_from_another_model(self, model: nn.Module, x: Tensor) -> None:
        """Copy the other network's splines and knots, as `KANLayer.initialize_grid_from_parent` does."""
        model(x)
        for layer, parent, acts in zip(cast(Any, self).act_fun, cast(Any, model).act_fun, cast(Any, model).acts, strict=False):
            layer.initialize_grid_from_parent(parent, acts)

    def initialize_from_another_model(self, another_model: nn.Module, x: Tensor) -> Any:
        """Reproduce the function of another network of the same widths, with grids and splines fitted on x (N, I)."""
        net, other = cast(Any, self), cast(Any, another_model)
        net.initialize_grid_from_another_model(other, x)
        for layer, parent in zip(net.act_fun, other.act_fun, strict=True):
            for name in ("scale_base", "scale_sp", "mask"):
                getattr(layer, name).data = getattr(parent, name).data.clone()
        for name in AFFINE:
            for parameter, parent in zip(getattr(net, name), getattr(other, name), strict=True):
                parameter.data = parent.data.clone()
        for l in range(net.depth):
            net.symbolic_fun[l] = other.symbolic_fun[l]
        return net.to(net.device)

    def refine(self, new_grid: int) -> Any:
        """Return a network with new_grid intervals that approximates the same function on the cached data."""
        net = cast(Any, self)
        new = cast(Any, definer(net.peer, "refine"))(
            width=copy.deepcopy(net.width),
            grid=new_grid,
            k=net.k,
            mult_arity=net.mult_arity,
            base_fun=net.base_fun_name,
            symbolic_enabled=net.symbolic_enabled,
            affine_trainable=net.affine_trainable,
            grid_eps=net.grid_eps,
            grid_range=net.grid_range,
            sp_trainable=net.sp_trainable,
            sb_trainable=net.sb_trainable,
            ckpt_path=net.ckpt_path,
            auto_save=True,
            first_init=False,
            state_id=net.state_id,
            round=net.round,
            device=net.device,
        )
        fuse_network(new)
        new.initialize_from_another_model(net, net.cache_data)
        new.cache_data = net.cache_data
        new.grid = new_grid
        net.log_history("refine")
        new.state_id += 1
        return new.to(net.device)

    def prune_node(self, *arguments: Any, **keywords: Any) -> Any:
        """Call pykan's `prune_node` and fuse the network that it returns."""
        return fuse_network(super().prune_node(*arguments, **keywords))  # type: ignore[misc]

    def prune_input(self, *arguments: Any, **keywords: Any) -> Any:
        """Call pykan's `prune_input` and fuse the network that it returns."""
        return fuse_network(super().prune_input(*arguments, **keywords))  # type: ignore[misc]

    def expand_depth(self, *arguments: Any, **keywords: Any) -> None:
        """Call pykan's `expand_depth` and fuse the layer that it adds."""
        super().expand_depth(*arguments, **keywords)  # type: ignore[misc]
        fuse_network(cast(Any, self))

    def expand_width(self, *arguments: Any, **keywords: Any) -> None:
        """Call pykan's `expand_width` and fuse the layers that it replaces."""
        super().expand_width(*arguments, **keywords)  # type: ignore[misc]
        fuse_network(cast(Any, self))

    def copy(self) -> Any:
        """Call pykan's `copy` and fuse the copy."""
        return fuse_network(super().copy())  # type: ignore[misc]

    def rewind(self, model_id: str) -> Any:
        """Call pykan's `rewind` and fuse the network that it returns."""
        return fuse_network(super().rewind(model_id))  # type: ignore[misc]

    def checkout(self, model_id: str) -> Any:
        """Call pykan's `checkout` and fuse the network that it returns."""
        return fuse_network(super().checkout(model_id))  # type: ignore[misc]

    @classmethod
    def loadckpt(cls, path: str = "model") -> Any:
        """Call pykan's `loadckpt` and fuse the network that it returns."""
        return fuse_network(super().loadckpt(path))  # type: ignore[misc]

    def forget(self) -> None:
        """Restore the layers' classes and replace the lazy sequences with lists, as pykan stores them."""
        for layer in cast(Any, self).act_fun:
            if isinstance(layer, Fused):
                unfuse(cast(nn.Module, layer))
        for name, value in vars(self).items():
            if isinstance(value, OnDemand):
                setattr(self, name, list(value))


def fuse_network(net: Any) -> Any:
    """Fuse a network, and its layers, that pykan derived from a fused one. Return it."""
    verdict = examine_network(net, {})
    exchange_classes(verdict.exchanges)
    if verdict.reason or verdict.left:
        reasons = "; ".join(filter(None, (verdict.reason, *(f"{name}: {why}" for name, why in verdict.left.items()))))
        log_fallback(f"a {type(net).__name__} derived from an accelerated one is not accelerated", reasons)
    return net


def looks_like_network(module: nn.Module) -> bool:
    """Return whether the module has pykan's lists of layers and symbolic layers."""
    return all(isinstance(getattr(module, name, None), nn.ModuleList) for name in ("act_fun", "symbolic_fun"))


def examine_network(net: nn.Module, known: dict[Kind, type[Fused]]) -> Verdict:
    """Check that the module is pykan 0.2.8's network, and which of its layers are pykan's."""
    names = ("width", "mult_arity", "mult_homo", "input_id", "symbolic_enabled", "save_act", "depth", *AFFINE)
    missing = [name for name in names if not hasattr(net, name)]
    if missing:
        return Verdict(f"it has no {', '.join(missing)}, unlike pykan 0.2.8's")
    it = cast(Any, net)
    if not len(it.act_fun) == len(it.symbolic_fun) == it.depth >= 1:
        return Verdict(f"it has {len(it.act_fun)} layers and {len(it.symbolic_fun)} symbolic layers for a depth of {it.depth}")
    with on_its_own(it.input_id.device):
        return _examine_parts(net, known)


def _examine_parts(net: nn.Module, known: dict[Kind, type[Fused]]) -> Verdict:
    it = cast(Any, net)
    exchanges: list[Exchange] = []
    left = {}
    for l, layer in enumerate(it.act_fun):
        verdict = Verdict() if isinstance(layer, Fused) else pykan_layers.examine_layer(layer, known)
        exchanges.extend(verdict.exchanges)
        if verdict.reason:
            left[f"act_fun.{l}"] = f"not {pykan_layers.KIND}: {verdict.reason}"
    if not isinstance(net, Fused):
        reason = _forwards_mismatch(it) or _compare_with_fused(net, [f"act_fun.{l}" not in left for l in range(it.depth)])
        if reason:
            return Verdict(reason)
        exchanges.append((net, FusedMultKAN))
    return Verdict("", tuple(exchanges), left)


def _forwards_mismatch(net: Any) -> str:
    arguments = ("x", "singularity_avoiding", "y_th")
    for l, layer in enumerate(net.symbolic_fun):
        mismatch = forward_mismatch(layer, arguments)
        if mismatch:
            return f"symbolic_fun.{l}: {mismatch}"
    return forward_mismatch(net, arguments)


def _compare_with_fused(net: nn.Module, known: list[bool]) -> str:
    cls, fused = type(net), cast(Any, fused_class(FusedMultKAN, type(net)))
    watched, inputs = Watched(cls), dict[bool, Tensor]()  # for evaluation and training; all copies have the same knots

    def called(as_ours: bool, copied: Any) -> list[Tensor]:
        copied.__class__ = fused if as_ours else cls
        for layer, its in zip(copied.act_fun, known, strict=True):
            if its:
                layer.__class__ = fused_class(pykan_layers.FusedKANLayer, own_class(layer)) if as_ours else own_class(layer)
        if copied.training not in inputs:
            inputs[copied.training] = network_inputs(copied.input_id, _probes(copied.act_fun[0].grid, copied.training))
        with torch.no_grad():
            y = (fused.forward if as_ours else watched)(copied, inputs[copied.training].clone())
            return [y, *copied.acts, *copied.acts_scale_spline, *copied.edge_actscale]

    def twin_of(share: float) -> nn.Module:
        return small_network(net, known, share, with_formulas=share == 1.0)

    theirs, ours = partial(called, False), partial(called, True)
    return compare_forwards(twin_of, theirs, ours) or ignored_reads(net, watched.names, _KNOWN, twin_of, theirs)


def _probes(grid: Tensor, training: bool) -> Tensor:
    """Return inputs; extreme ones only in evaluation mode, where standard deviations are NaN and not compared."""
    return torch.cat([probe_inputs(grid), *([] if training else [extreme_inputs(len(grid), grid.device)])])


# Module-level functions for `OnDemand`, since networks are pickled.


def _has_own_fit(symbolic_layer: nn.Module) -> bool:
    """Return whether a symbolic layer's `fix_symbolic` is not pykan's."""
    defined_by = definer(type(symbolic_layer), "fix_symbolic")
    return defined_by is None or defined_by.__module__ != "kan.Symbolic_KANLayer" or "fix_symbolic" in vars(symbolic_layer)


def _scale(record: EdgeRecord) -> Tensor:
    return (record.std / record.input_range).detach()


def _spline_scale(record: EdgeRecord) -> Tensor:
    return record.spline_scale


def _std(record: EdgeRecord) -> Tensor:
    return record.std


@torch.no_grad()
def _output_std(record: EdgeRecord) -> Tensor:
    return record.output().std(0)


@torch.no_grad()
def _transformed_output(record: EdgeRecord, bias: Tensor, scale: Tensor) -> Tensor:
    return torch.addcmul(bias, scale, record.output())


def as_layers(net: FusedMultKAN) -> tuple[list[int], list[tuple[Any, ...]]]:
    """Return what a network without symbolic edges computes: the columns of its inputs, and for every layer four parts.

    They are the arguments of `kan_linear` after x, the bias and scale of the subnodes and of the nodes, and None or the number
    of sums and the subnodes of every product.

    Raises:
        ValueError: an edge is symbolic, or a layer is not accelerated, has hooks or trains its knots.
    """
    it = cast(Any, net)
    layers = []
    for l, layer in enumerate(it.act_fun):
        if it.symbolic_enabled and bool((it.symbolic_fun[l].mask != 0).any()):
            raise ValueError(f"net: expected a network without symbolic edges, got symbolic edges in layer {l}")
        is_fused = isinstance(layer, pykan_layers.FusedKANLayer)
        if not is_fused or is_observed(layer) or layer.grid.requires_grad:
            raise ValueError(f"net: expected accelerated layers without hooks and trained knots, got another one as layer {l}")
        record = pykan_layers.kernel_record(layer, layer.coef.new_zeros(1, layer.coef.shape[0]), False, None)
        arguments = (record.spline_weight, record.grid, record.base_weight, record.spline_scaler, record.base_activation)
        sums, products = map(int, it.width[l + 1])
        groups = None
        if products:
            arities = [int(it.mult_arity)] * products if it.mult_homo else [int(a) for a in it.mult_arity[l + 1]]
            starts = [sums + sum(arities[:j]) for j in range(products)]
            groups = (sums, [list(range(start, start + arity)) for start, arity in zip(starts, arities, strict=True)])
        affine = ((it.subnode_bias[l], it.subnode_scale[l]), (it.node_bias[l], it.node_scale[l]))
        layers.append((arguments, *affine, groups))
    return [int(k) for k in it.input_id], layers


def _chosen(x: Tensor, ids: Tensor) -> Tensor:
    """Return the columns `ids` of x (N, inputs); negative ids count from the end."""
    check_tensor("x", x)
    if x.dim() != 2:
        raise ValueError(f"x: expected two dimensions (N, I), got shape {tuple(x.shape)}")
    ids = ids.to(x.device, torch.int64)
    try:
        return x.index_select(1, torch.where(ids < 0, ids + x.shape[1], ids))
    except (IndexError, RuntimeError) as error:
        raise ValueError(f"x: expected at least {int(ids.max()) + 1} inputs, got shape {tuple(x.shape)}") from error


def _symbolic_edges(layer: Any, x: Tensor, singularity_avoiding: bool, y_th: float) -> SymbolicEdges | None:
    """Return the edges of a `Symbolic_KANLayer` with a nonzero mask (O, I), or all edges if the mask requires a gradient."""
    mask = torch.ones_like(layer.mask) if layer.mask.requires_grad else layer.mask
    outputs, inputs = mask.nonzero(as_tuple=True)
    if len(outputs) == 0:
        return None
    affine, mask = layer.affine[outputs, inputs], layer.mask[outputs, inputs]
    values = []
    for e, (o, i) in enumerate(zip(outputs.tolist(), inputs.tolist(), strict=True)):
        a, b, c, d = affine[e].unbind()
        inner = a * x[:, i : i + 1] + b
        value = (
            layer.funs_avoid_singularity[o][i](inner, torch.tensor(y_th))[1]
            if singularity_avoiding
            else layer.funs[o][i](inner)
        )
        values.append(mask[e] * (c * value + d))
    return SymbolicEdges(inputs, outputs, torch.cat(values, dim=1))


def _multiplied(y: Tensor, width: Any, arity: Any) -> Tensor:
    """Return nodes (N, width) from subnodes y: the first unchanged, then products of `arity` consecutive ones each."""
    sums, products = width
    ends = [arity] * products if isinstance(arity, int) else list(arity)
    factors = y[:, sums:].split(ends, dim=1)
    if len(set(ends)) == 1:
        columns = torch.stack(factors, dim=1).unbind(2)
        return torch.cat([y[:, :sums], _product(columns)], dim=1)
    return torch.cat([y[:, :sums], *(_product(factor.split(1, dim=1)) for factor in factors)], dim=1)


def _product(factors: Any) -> Tensor:
    result = factors[0]
    for factor in factors[1:]:
        result = result * factor
    return result
