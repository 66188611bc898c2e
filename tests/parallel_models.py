"""Nets, plans and comparisons for ranks.py and ranks_layers.py, which compare several processes with one process."""

from itertools import pairwise

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel

import kan_kernels as kk
from kan_kernels.parallel import ColwiseKAN, RowwiseKAN

ROWS = 12


SIZES = (3, 9, 8, 8, 8, 5, 2)
EVEN = (4, 8, 8, 8, 8, 8, 4)


def mixed(seed=0, sizes=SIZES):
    """Return KAN and linear layers with edge masks. The ranks divide the sizes EVEN evenly, but not the default sizes."""
    torch.manual_seed(seed)
    kinds = [kk.KANLinear, kk.KANLinear, nn.Linear, nn.Linear, kk.KANLinear, kk.KANLinear]
    net = nn.Sequential(*(kind(*pair) for kind, pair in zip(kinds, pairwise(sizes), strict=True))).double()
    for layer in net[:2]:
        layer.edge_mask = (torch.rand(layer.out_features, layer.in_features) < 0.8).double()
    return net


def data(seed=1, sizes=SIZES):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(ROWS, size, generator=generator, dtype=torch.float64) for size in (sizes[0], sizes[-1]))


def full(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def assert_same(ours, theirs):
    torch.testing.assert_close(full(ours), full(theirs), rtol=1e-10, atol=1e-10)


def assert_same_parameters(ours, theirs, gradients=True):
    for (name, value), expected in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert_same(value.detach(), expected.detach())
        if gradients:
            assert value.grad is not None, name
            assert_same(value.grad, expected.grad)


PLANS = {
    "colwise": {"0": ColwiseKAN(output_layouts=Replicate())},
    "rowwise": {"1": RowwiseKAN(input_layouts=Replicate())},
    "pairs, mixed with linear layers": {
        "0": ColwiseKAN(),
        "1": RowwiseKAN(),
        "2": ColwiseParallel(),
        "3": RowwiseParallel(),
        "4": ColwiseKAN(),
        "5": RowwiseKAN(),
    },
    "KAN before linear": {"1": ColwiseKAN(), "2": RowwiseParallel(), "3": ColwiseParallel(), "4": RowwiseKAN()},
    "DTensors between": {
        "0": ColwiseKAN(use_local_output=False),
        "1": RowwiseKAN(use_local_output=False, output_layouts=Shard(0)),
        "2": ColwiseParallel(input_layouts=Shard(0), output_layouts=Replicate()),
    },
}
PAIRS = PLANS["pairs, mixed with linear layers"]


def train(model, x, labels, steps=4, optimizer=None):
    optimizer = optimizer or torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        (model(x) - labels).square().mean().backward()
        optimizer.step()
    return optimizer


def own_part(tensor, ranks=None):
    ranks = dist.get_world_size() if ranks is None else ranks
    return tensor.chunk(ranks)[dist.get_rank() % ranks]
