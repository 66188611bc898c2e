"""Checks of sharded layers besides the forward: initial values, full state_dicts, norms and new grids. See ranks.py."""

import pytest
import torch
import torch.distributed as dist
from parallel_models import EVEN, PAIRS, SIZES, assert_same, assert_same_parameters, data, full, mixed, own_part, train
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import parallelize_module
from torch.nn.parallel import DistributedDataParallel

import kan_kernels as kk
from kan_kernels.parallel import ColwiseKAN, RowwiseKAN

FULL = StateDictOptions(full_state_dict=True)
OF_RANK_0 = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)


def mesh():
    return init_device_mesh("cpu", (dist.get_world_size(),))


def two_dimensions():
    return init_device_mesh("cpu", (dist.get_world_size() // 2, 2), mesh_dim_names=("rows", "features"))


def fully_sharded(net, **options):
    for layer in getattr(net, "layers", net):
        fully_shard(layer, **options)
    return fully_shard(net, **options)


def both(net):
    """Shard a net by tensor parallelism over pairs of ranks and by data parallelism over the pairs."""
    by_rows_and_features = two_dimensions()
    return fully_sharded(parallelize_module(net, by_rows_and_features["features"], PAIRS), mesh=by_rows_and_features["rows"])


SHARDED = {
    "fully_shard": fully_sharded,
    "tensor parallel": lambda net: parallelize_module(net, mesh(), PAIRS),
    "both": both,
}


def whole_state_dicts(way):
    """The full state_dict of a net in one process can be loaded into sharded nets and gathered from them.

    This includes nets that were created on the meta device. The sharded nets train like the net in one process.
    """
    sizes = EVEN if way == "both" else SIZES  # torch shards over two mesh dimensions only if the sizes are divisible
    for options in (FULL, OF_RANK_0):
        whole = mixed(3, sizes).state_dict()
        net = SHARDED[way](mixed(4, sizes))
        given = whole if options is FULL or dist.get_rank() == 0 else {}
        set_model_state_dict(net, dict(given), options=options)
        assert_same_parameters(net, mixed(3, sizes), gradients=False)
        gathered = get_model_state_dict(net, options=FULL)
        assert set(gathered) == set(whole)
        for key, value in gathered.items():
            assert_same(value, whole[key])
        if way != "both":
            with torch.device("meta"):
                net = mixed()
            net = SHARDED[way](net)
            set_model_state_dict(net, dict(given), options=options)
            assert_same_parameters(net, mixed(3), gradients=False)
        alone = mixed(3, sizes)
        x, labels = data(sizes=sizes)
        shards = dist.get_world_size() if way == "fully_shard" else 1
        optimizers = [train(alone, x, labels)]
        optimizers.append(train(net, own_part(x, shards), own_part(labels, shards)))
        assert_same_parameters(net, alone, gradients=False)
    if way == "fully_shard":
        other = fully_sharded(mixed(seed=5))
        set_model_state_dict(other, get_model_state_dict(net, options=FULL), options=FULL)
        optimizer = torch.optim.Adam(other.parameters(), lr=0.01)
        state = get_optimizer_state_dict(net, optimizers[1], options=FULL)
        set_optimizer_state_dict(other, optimizer, state, options=FULL)
        train(alone, x, labels, optimizer=optimizers[0])
        train(other, own_part(x), own_part(labels), optimizer=optimizer)
        assert_same_parameters(other, alone, gradients=False)


def whole_state_dicts_of_ddp():
    """torch's helpers load the full state_dict of a DDP net and omit frozen parameters.

    They look up the keys of a state_dict among the names of the parameters.
    """
    whole = mixed(3).state_dict()
    for options in (FULL, OF_RANK_0):
        net = DistributedDataParallel(mixed(4))
        given = whole if options is FULL or dist.get_rank() == 0 else {}
        set_model_state_dict(net, dict(given), options=options)
        assert_same_parameters(net.module, mixed(3), gradients=False)
        assert list(get_model_state_dict(net, options=FULL)) == list(whole)
    net = fully_sharded(mixed(3))
    frozen = [name for name, parameter in net.named_parameters() if "spline_scaler" in name]
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(name not in frozen)
    trained = get_model_state_dict(net, options=StateDictOptions(full_state_dict=True, ignore_frozen_params=True))
    assert frozen
    assert set(trained) == set(whole) - set(frozen)


def a_mask_for_a_layer_without():
    pruned = kk.KANLinear(4, 8)
    pruned.edge_mask = torch.ones(8, 4)
    layer = parallelize_module(kk.KANLinear(4, 8), mesh(), ColwiseKAN())
    with pytest.raises(RuntimeError, match="edge_mask: expected a DTensor for a sharded layer without a mask, got a tensor"):
        set_model_state_dict(layer, pruned.state_dict(), options=FULL)


def initial_values():
    """A net has the initial values that one process draws with the first rank's seed.

    The net is created on the meta device and sharded before its memory is allocated.
    """

    def layers():
        return nn.Sequential(kk.KANLinear(3, 9), kk.KANLinear(9, 5, enable_standalone_scale_spline=False), kk.KANLinear(5, 1))

    torch.manual_seed(0)
    alone = layers().double()
    for layer in alone:
        layer.reset_parameters()
    plan = {"0": ColwiseKAN(), "1": RowwiseKAN(), "2": ColwiseKAN(output_layouts=Replicate())}
    for shard in (fully_sharded, lambda net: parallelize_module(net, mesh(), plan)):
        with torch.device("meta"):
            net = shard(layers().double())
        net = net.to_empty(device="cpu")
        torch.manual_seed(dist.get_rank())
        if dist.get_rank() == 0:
            layers().double()
        for layer in net:
            layer.reset_parameters()
        x, _ = data()
        assert_same_parameters(net, alone, gradients=False)
        for layer, expected in zip(net, alone, strict=True):
            assert_same(layer.grid, expected.grid)
        assert_same(net(x), alone(x))


def net_of(sizes=(3, 9, 5, 6, 1)):
    torch.manual_seed(7)
    net = kk.KAN(sizes).double()
    net.layers[1].edge_mask = (torch.rand(sizes[2], sizes[1]) < 0.8).double()
    return net


KAN_PLANS = {
    "all": {
        "layers.0": ColwiseKAN(),
        "layers.1": RowwiseKAN(),
        "layers.2": ColwiseKAN(use_local_output=False),
        "layers.3": RowwiseKAN(),
    },
    "a layer": {"layers.2": RowwiseKAN(input_layouts=Replicate())},
    "ranks without a part": {"layers.3": ColwiseKAN(output_layouts=Replicate())},
}
LOSSES = {
    "of the weights": lambda net, x: net.regularization_loss(),
    "l1": lambda net, x: net.regularization_loss(x, 1.0, 2.0),
    "n": lambda net, x: net.regularization_loss(x, metric="edge_forward_spline_n"),
    "u": lambda net, x: net.regularization_loss(x, metric="edge_forward_spline_u"),
    "backward": lambda net, x: net.regularization_loss(x, metric="edge_backward"),
}


def norms(plan):
    """Every rank computes the losses, their gradients and the scores of a tensor parallel net like one process."""
    x, _ = data()
    alone, net = net_of(), parallelize_module(net_of(), mesh(), KAN_PLANS[plan])
    for loss in LOSSES.values():
        results = []
        for model in (alone, net):
            model.zero_grad()
            points = x.clone().requires_grad_()
            value = loss(model, points)
            assert type(value) is torch.Tensor
            value.backward()
            results.append((value.detach(), torch.zeros(()) if points.grad is None else points.grad))
        for value, expected in zip(results[1], results[0], strict=True):
            assert_same(value, expected)
        for own, expected in zip(net.parameters(), alone.parameters(), strict=True):
            if expected.grad is not None:
                assert_same(own.grad, expected.grad)
    scores, expected = net.attribute(x), alone.attribute(x)
    for own, theirs in zip(scores.edges + scores.nodes, expected.edges + expected.nodes, strict=True):
        assert_same(own, theirs)


def norms_of_fully_sharded():
    """torch gathers the weights as for a forward. The gradients are the mean over the ranks, as those of the forward are."""
    x, _ = data()
    alone, net = net_of(), net_of()
    for layer in net.layers:
        fully_shard(layer)
        register_fsdp_forward_method(layer, "edge_norms")
    with pytest.raises(ValueError, match=r"edge_norms: .*got one sharded by fully_shard"):
        fully_shard(kk.KANLinear(3, 2)).edge_norms(x)
    fully_shard(net)
    for name in ("of the weights", "l1", "u"):
        for model in (alone, net):
            model.zero_grad()
        value = LOSSES[name](net, x)
        value.backward()
        assert_same(value.detach(), LOSSES[name](alone, x).detach())
        LOSSES[name](alone, x).backward()
        for own, expected in zip(net.parameters(), alone.parameters(), strict=True):
            if expected.grad is not None:
                assert_same(own.grad, expected.grad)


def grids(plan):
    """The net equals the net in one process after update_grid, set_grid and refine."""
    x, _ = data()
    alone, net = net_of(), parallelize_module(net_of(), mesh(), KAN_PLANS[plan])

    def compare():
        assert_same(net(x).detach(), alone(x).detach())
        assert_same_parameters(net, alone, gradients=False)
        for layer, expected in zip(net.layers, alone.layers, strict=True):
            assert_same(layer.grid, expected.grid)
        for share, expected in zip(net.coverage(1.5 * x), alone.coverage(1.5 * x), strict=True):
            assert type(share) is torch.Tensor
            assert_same(share, expected)

    compare()
    net(x, update_grid=True), alone(x, update_grid=True)
    compare()
    for model in (alone, net):
        for layer in model.layers:
            layer.set_grid(full(layer.grid) * 1.25)
    compare()
    alone, net = alone.refine(10), net.refine(10)
    compare()
    train(alone, x, x[:, :1])
    train(net, x, x[:, :1])
    compare()


def refused():
    x, _ = data()
    net = parallelize_module(net_of(), mesh(), KAN_PLANS["all"])
    with pytest.raises(ValueError, match="prune: expected a net that is not sharded"):
        net.prune(x)
    with pytest.raises(ValueError, match="plot: expected a net that is not sharded"):
        kk.plot(net, x)
    sharded = fully_sharded(net_of())
    not_of_fsdp = "expected a module that is not sharded by fully_shard"
    with pytest.raises(ValueError, match=f"update_grid: {not_of_fsdp}"):
        sharded(x, update_grid=True)
    with pytest.raises(ValueError, match=f"refine: {not_of_fsdp}"):
        sharded.refine(10)
    layer = fully_shard(kk.KANLinear(3, 2).double())
    for name, call in (
        ("update_grid", lambda: layer.update_grid(x)),
        ("set_grid", lambda: layer.set_grid(layer.grid)),
        ("refine", lambda: layer.refine(10)),
    ):
        with pytest.raises(ValueError, match=f"{name}: {not_of_fsdp}"):
            call()
    assert "in_features=3" in repr(net)


def both_train():
    x, labels = data()
    alone, net = mixed(), both(mixed())
    train(alone, x, labels)
    rows = two_dimensions()["rows"]
    part = x.chunk(rows.size())[rows.get_local_rank()], labels.chunk(rows.size())[rows.get_local_rank()]
    train(net, *part)
    assert_same_parameters(net, alone, gradients=False)


CHECKS = (
    {f"whole state_dict, {way}": lambda way=way: whole_state_dicts(way) for way in SHARDED}
    | {f"norms, {plan}": lambda plan=plan: norms(plan) for plan in KAN_PLANS}
    | {f"grids, {plan}": lambda plan=plan: grids(plan) for plan in KAN_PLANS}
    | {
        "whole state_dict, DDP": whole_state_dicts_of_ddp,
        "a mask for a layer without": a_mask_for_a_layer_without,
        "initial values": initial_values,
        "norms, fully_shard": norms_of_fully_sharded,
        "refused": refused,
        "tensor and data parallel": both_train,
    }
)
