"""Checks of computations on several processes. test_parallel.py runs this file, and every rank calls every check.

Every rank creates the whole model from the same seed and compares the parallel model with the same model in one process.
"""

import sys
import traceback
from pathlib import Path

import pytest
import ranks_layers
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from parallel_models import PAIRS, PLANS, assert_same, assert_same_parameters, data, mixed, own_part, train
from torch import nn
from torch.distributed.checkpoint.state_dict import get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import parallelize_module
from torch.nn.parallel import DistributedDataParallel

import kan_kernels as kk
from kan_kernels.parallel import ColwiseKAN, RowwiseKAN


def tensor_parallel(plan):
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    x, _ = data()
    alone, net = mixed(), parallelize_module(mixed(), mesh, PLANS[plan])
    results = []
    for model in (alone, net):
        points = x.clone().requires_grad_()
        y = model(points)
        y.sin().sum().backward()
        results.append((y.detach(), points.grad))
    for value, expected in zip(results[1], results[0], strict=True):
        assert_same(value, expected)
    assert_same_parameters(net, alone)
    with pytest.raises(ValueError, match=r"x: expected 3 features in the last dimension, got shape \(5, 2\)"):
        parallelize_module(kk.KANLinear(3, 4), mesh, RowwiseKAN(input_layouts=Replicate()))(torch.zeros(5, 2))


def tensor_parallel_autocast():
    """The output under autocast equals that of one process, also if a rank has an empty part of the weights."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for sizes, style in (((5, 1), ColwiseKAN(output_layouts=Replicate())), ((1, 5), RowwiseKAN(input_layouts=Replicate()))):
        torch.manual_seed(0)
        layer, x = kk.KANLinear(*sizes), torch.randn(6, 3, sizes[0])
        with torch.autocast("cpu", torch.bfloat16):
            expected = layer(x)
            y = parallelize_module(layer, mesh, style)(x)
        assert y.dtype is torch.bfloat16
        torch.testing.assert_close(y, expected)


def compiled():
    torch.manual_seed(0)
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    layer, x = kk.KANLinear(4, 8), torch.randn(6, 4)
    expected = layer(x)
    layer = parallelize_module(layer, mesh, ColwiseKAN(output_layouts=Replicate()))
    torch.testing.assert_close(torch.compile(layer, backend="aot_eager")(x), expected)


def mixed_precision():
    layer = kk.KANLinear(4, 4)
    layer.edge_mask = torch.eye(4)
    fully_shard(layer, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16))
    assert layer(torch.randn(3, 4)).dtype is torch.bfloat16


def pruned_checkpoint():
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    pruned = kk.KANLinear(4, 8)
    pruned.edge_mask = (torch.rand(8, 4, generator=torch.Generator().manual_seed(0)) < 0.5).float()
    style = ColwiseKAN(output_layouts=Replicate())
    source = parallelize_module(pruned, mesh, style)
    other = parallelize_module(kk.KANLinear(4, 8), mesh, style)
    other.load_state_dict(source.state_dict())
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(other(x), source(x))


def data_parallel():
    x, labels = data()
    alone, net = mixed(), DistributedDataParallel(mixed())
    train(alone, x, labels)
    train(net, own_part(x), own_part(labels))
    assert_same_parameters(net.module, alone, gradients=False)


def fully_sharded():
    x, labels = data()
    alone, net = mixed(), mixed()
    for layer in net:
        fully_shard(layer)
    fully_shard(net)
    train(alone, x, labels)
    train(net, own_part(x), own_part(labels))
    assert_same_parameters(net, alone, gradients=False)


def tensor_parallel_training():
    x, labels = data()
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    alone = mixed()
    net = parallelize_module(mixed(), mesh, PAIRS)
    train(alone, x, labels)
    train(net, x, labels)
    assert_same_parameters(net, alone, gradients=False)


def checkpoint(folder):
    """All ranks save a checkpoint and load it into a sharded net. test_parallel.py loads it in one process."""
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    sharded = mixed(seed=3)
    for layer in sharded:
        fully_shard(layer)
    tensor_parallel = parallelize_module(mixed(seed=3), mesh, PAIRS)
    for name, net in (("fsdp", sharded), ("tp", tensor_parallel)):
        dcp.save(get_model_state_dict(net), checkpoint_id=str(Path(folder) / name))
        other = mixed(seed=4)
        if name == "fsdp":
            for layer in other:
                fully_shard(layer)
        else:
            other = parallelize_module(other, mesh, PAIRS)
        state = get_model_state_dict(other)
        dcp.load(state, checkpoint_id=str(Path(folder) / name))
        other.load_state_dict(state)
        assert_same_parameters(other, net, gradients=False)


def wrong_module():
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for style in (ColwiseKAN(), RowwiseKAN()):
        with pytest.raises(TypeError, match=f"module: expected a KANLinear for {type(style).__name__}, got Linear"):
            parallelize_module(nn.Linear(2, 2), mesh, style)


CHECKS = {f"tensor parallel, {plan}": lambda folder, plan=plan: tensor_parallel(plan) for plan in PLANS} | {
    "tensor parallel, training": lambda folder: tensor_parallel_training(),
    "DDP": lambda folder: data_parallel(),
    "FSDP2": lambda folder: fully_sharded(),
    "checkpoint": checkpoint,
    "wrong module": lambda folder: wrong_module(),
    "tensor parallel, autocast": lambda folder: tensor_parallel_autocast(),
    "tensor parallel, compiled": lambda folder: compiled(),
    "FSDP2, mixed precision": lambda folder: mixed_precision(),
    "tensor parallel, pruned checkpoint": lambda folder: pruned_checkpoint(),
}
CHECKS |= {name: lambda folder, check=check: check() for name, check in ranks_layers.CHECKS.items()}


def main(folder):
    """Run all checks. Write a file per check, which is empty if the check passes on this rank."""
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    for name, check in CHECKS.items():
        try:
            check(folder)
            told = ""
        except (Exception, pytest.fail.Exception):
            told = traceback.format_exc()
        (Path(folder) / f"{name}.{dist.get_rank()}").write_text(told)
        dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])
