"""pykan 0.2.8's `MultKAN` made fast in place: its forward, and the methods that make another network of it."""

import copy
from functools import partial
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from .. import fallbacks
from ..checks import check_tensor
from ..regularization import bits_loss
from . import pykan_layers
from .edge_record import EdgeRecord, OnDemand, SymbolicEdges
from .fused import (
    Exchange,
    Fused,
    Verdict,
    definer,
    exchange_classes,
    fused_class,
    objection_to_forward,
    own_class,
    unfuse,
)
from .probe import Kind, disagreement, extreme_inputs, on_its_own, probe_inputs
from .pykan_small import AFFINE, network_inputs, small_network

KIND = "pykan's MultKAN"
# What a forward leaves behind: of every layer with `save_act`, else of none.
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
# pykan's names for what its `reg` sums up -> where a forward or `attribute` leaves it.
_METRICS = {
    "edge_forward_spline_n": "acts_scale_spline",
    "edge_forward_sum": "acts_scale",
    "edge_forward_spline_u": "edge_actscale",
    "edge_backward": "edge_scores",
    "node_backward": "node_attribute_scores",
}


class FusedMultKAN(Fused):
    """Everything of pykan's works, on the same object, and gives the same numbers.

    The forward needs the memory of the nodes' values; every edge's values, (N, O, I), and norms are computed when they are
    read. Networks that its methods return are fused too.
    """

    replaced: ClassVar[tuple[str, ...]] = (
        "forward",
        "get_params",
        "reg",
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
        """x (N, I) -> (N, O); singularity_avoiding, y_th: of the formulas, where edges have them."""
        net = cast(Any, self)
        x = chosen = _chosen(x, net.input_id)
        acts = [x]
        records, affine = [], []
        for l, layer in enumerate(net.act_fun):
            symbolic = None
            if net.symbolic_enabled:
                symbolic = _symbolic_edges(net.symbolic_fun[l], x, singularity_avoiding, y_th)
            record = pykan_layers.recorded(layer, x, net.save_act, symbolic)
            if net.save_act:
                records.append(record)
                affine.append((net.subnode_bias[l].detach().clone(), net.subnode_scale[l].detach().clone()))
            y = record.output()
            bias, scale = net.subnode_bias[l], net.subnode_scale[l]
            if net.width[l + 1][1] == 0:  # both transforms at once: they are of the size of the data
                bias, scale = net.node_bias[l] + net.node_scale[l] * bias, net.node_scale[l] * scale
                x = torch.addcmul(bias, scale, y)
            else:
                y = torch.addcmul(bias, scale, y)
                y = _multiplied(y, net.width[l + 1], net.mult_arity if net.mult_homo else net.mult_arity[l + 1])
                x = torch.addcmul(net.node_bias[l], net.node_scale[l], y)
            acts.append(x.detach())
        self._keep(chosen, acts, records, affine)
        return x

    def _keep(self, x: Tensor, acts: list[Tensor], records: list[EdgeRecord], affine: list[tuple[Tensor, Tensor]]) -> None:
        """What pykan's methods read of a forward, in its shapes."""
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
            vars(self).update(kept)  # a module's setattr takes a quarter of a small network's forward

    def get_params(self) -> list[nn.Parameter]:
        """What `fit` trains. pykan's has the frozen parameters too, to which its L-BFGS adds zeros, one by one."""
        return [parameter for parameter in cast(nn.Module, self).parameters() if parameter.requires_grad]

    def reg(self, reg_metric: str, lamb_l1: float, lamb_entropy: float, lamb_coef: float, lamb_coefdiff: float) -> Tensor:
        """pykan's, without the sums over the coefficients where they count nothing."""
        norms = getattr(self, _METRICS[reg_metric]) if reg_metric in _METRICS else []
        if lamb_coef != 0 or lamb_coefdiff != 0 or len(norms) == 0:
            return super().reg(reg_metric, lamb_l1, lamb_entropy, lamb_coef, lamb_coefdiff)  # type: ignore[misc]
        return torch.stack([bits_loss(of_layer, lamb_l1, lamb_entropy) for of_layer in norms]).sum()

    def initialize_grid_from_another_model(self, model: nn.Module, x: Tensor) -> None:
        """Take the other network's splines and their knots, as `KANLayer.initialize_grid_from_parent` does."""
        model(x)
        for layer, parent, acts in zip(cast(Any, self).act_fun, cast(Any, model).act_fun, cast(Any, model).acts, strict=False):
            layer.initialize_grid_from_parent(parent, acts)

    def initialize_from_another_model(self, another_model: nn.Module, x: Tensor) -> Any:
        """Compute the function of another network of the same widths; x (N, I) is where grids and splines are fitted."""
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
        """A network of new_grid intervals that computes the same function, as nearly as they can, on the cached data."""
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
        """pykan's, and the network it returns is fused."""
        return fuse_network(super().prune_node(*arguments, **keywords))  # type: ignore[misc]

    def prune_input(self, *arguments: Any, **keywords: Any) -> Any:
        """pykan's, and the network it returns is fused."""
        return fuse_network(super().prune_input(*arguments, **keywords))  # type: ignore[misc]

    def expand_depth(self, *arguments: Any, **keywords: Any) -> None:
        """pykan's, and the layer it adds is fused."""
        super().expand_depth(*arguments, **keywords)  # type: ignore[misc]
        fuse_network(cast(Any, self))

    def expand_width(self, *arguments: Any, **keywords: Any) -> None:
        """pykan's, and the layers it exchanges are fused."""
        super().expand_width(*arguments, **keywords)  # type: ignore[misc]
        fuse_network(cast(Any, self))

    def copy(self) -> Any:
        """pykan's, and the copy is fused."""
        return fuse_network(super().copy())  # type: ignore[misc]

    def rewind(self, model_id: str) -> Any:
        """pykan's, and the network it returns is fused."""
        return fuse_network(super().rewind(model_id))  # type: ignore[misc]

    def checkout(self, model_id: str) -> Any:
        """pykan's, and the network it returns is fused."""
        return fuse_network(super().checkout(model_id))  # type: ignore[misc]

    @classmethod
    def loadckpt(cls, path: str = "model") -> Any:
        """pykan's, and the network it returns is fused."""
        return fuse_network(super().loadckpt(path))  # type: ignore[misc]

    def forget(self) -> None:
        """What was to be computed when it is read is computed, as pykan has it."""
        for layer in cast(Any, self).act_fun:
            if isinstance(layer, Fused):
                unfuse(cast(nn.Module, layer))
        for name, value in vars(self).items():
            if isinstance(value, OnDemand):
                setattr(self, name, list(value))


def fuse_network(net: Any) -> Any:
    """Fuse a network that pykan made of a fused one, and its layers; what is fused stays."""
    verdict = examine_network(net, {})
    exchange_classes(verdict.exchanges)
    if verdict.reason or verdict.left:
        reasons = "; ".join(filter(None, (verdict.reason, *(f"{name}: {why}" for name, why in verdict.left.items()))))
        fallbacks.note(f"a {type(net).__name__} made of an accelerated one stays as it is", reasons)
    return net


def looks_like_network(module: nn.Module) -> bool:
    """It has pykan's layers and their formulas."""
    return all(isinstance(getattr(module, name, None), nn.ModuleList) for name in ("act_fun", "symbolic_fun"))


def examine_network(net: nn.Module, known: dict[Kind, type[Fused]]) -> Verdict:
    """Whether it is pykan 0.2.8's network after all, and which of its layers are pykan's."""
    names = ("width", "mult_arity", "mult_homo", "input_id", "symbolic_enabled", "save_act", "depth", *AFFINE)
    missing = [name for name in names if not hasattr(net, name)]
    if missing:
        return Verdict(f"it has no {', '.join(missing)}, which pykan 0.2.8's has")
    it = cast(Any, net)
    if not len(it.act_fun) == len(it.symbolic_fun) == it.depth >= 1:
        return Verdict(f"it has {len(it.act_fun)} layers and {len(it.symbolic_fun)} of formulas for a depth of {it.depth}")
    exchanges: list[Exchange] = []
    left = {}
    for l, layer in enumerate(it.act_fun):
        verdict = Verdict() if isinstance(layer, Fused) else pykan_layers.examine_layer(layer, known)
        exchanges.extend(verdict.exchanges)
        if verdict.reason:
            left[f"act_fun.{l}"] = f"not {pykan_layers.KIND}: {verdict.reason}"
    if not isinstance(net, Fused):
        reason = _objection_to_forwards(it) or _disagreement(net, [f"act_fun.{l}" not in left for l in range(it.depth)])
        if reason:
            return Verdict(reason)
        exchanges.append((net, FusedMultKAN))
    return Verdict("", tuple(exchanges), left)


def _objection_to_forwards(net: Any) -> str:
    arguments = ("x", "singularity_avoiding", "y_th")
    for l, layer in enumerate(net.symbolic_fun):
        objection = objection_to_forward(layer, arguments)
        if objection:
            return f"symbolic_fun.{l}: {objection}"
    return objection_to_forward(net, arguments)


def _disagreement(net: nn.Module, known: list[bool]) -> str:
    cls, fused = type(net), fused_class(FusedMultKAN, type(net))

    def called(as_ours: bool, copied: Any) -> list[Tensor]:
        copied.__class__ = by = cast(Any, fused if as_ours else cls)
        for layer, its in zip(copied.act_fun, known, strict=True):
            if its:
                layer.__class__ = fused_class(pykan_layers.FusedKANLayer, own_class(layer)) if as_ours else own_class(layer)
        grid = copied.act_fun[0].grid
        x = probe_inputs(grid)
        if not copied.training:  # with extreme inputs, among which no standard deviation is compared
            x = torch.cat([x, extreme_inputs(len(grid), grid.device)])
        with torch.no_grad():
            y = by.forward(copied, network_inputs(copied.input_id, x))
            return [y, *copied.acts, *copied.acts_scale_spline, *copied.edge_actscale]

    with on_its_own(cast(Any, net).act_fun[0].grid.device):
        return disagreement(
            lambda share: small_network(net, known, share, with_formulas=share == 1.0),
            partial(called, False),
            partial(called, True),
        )


# What a record tells when it is asked, by functions with a name, since networks are pickled.


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


def _chosen(x: Tensor, ids: Tensor) -> Tensor:
    """Columns `ids` of x (N, inputs), counted from the end where they are negative."""
    check_tensor("x", x)
    if x.dim() != 2:
        raise ValueError(f"x: expected two dimensions (N, I), got shape {tuple(x.shape)}")
    ids = ids.to(x.device, torch.int64)
    try:
        return x.index_select(1, torch.where(ids < 0, ids + x.shape[1], ids))
    except (IndexError, RuntimeError) as error:
        raise ValueError(f"x: expected at least {int(ids.max()) + 1} inputs, got shape {tuple(x.shape)}") from error


def _symbolic_edges(layer: Any, x: Tensor, singularity_avoiding: bool, y_th: float) -> SymbolicEdges | None:
    """The edges of a `Symbolic_KANLayer` that a mask (O, I) other than 0 lets count, or all if the mask has a gradient."""
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
    """(N, width) from subnodes y: the first as they are, then products of `arity` consecutive ones; width counts both."""
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
