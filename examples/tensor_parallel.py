"""Train two KAN layers and two linear layers, sharded over the ranks of one machine, with the same result as one process.

torchrun --standalone --nproc-per-node 2 examples/tensor_parallel.py
"""

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

import kan_kernels as kk
from kan_kernels.parallel import ColwiseKAN, RowwiseKAN


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    mesh = init_device_mesh(device, (dist.get_world_size(),))
    torch.manual_seed(0)  # gives every rank the same net and data
    net = nn.Sequential(kk.KANLinear(8, 64), kk.KANLinear(64, 8), nn.Linear(8, 64), nn.SiLU(), nn.Linear(64, 1)).to(device)
    plan = {"0": ColwiseKAN(), "1": RowwiseKAN(), "2": ColwiseParallel(), "4": RowwiseParallel()}
    net = parallelize_module(net, mesh, plan)

    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    x = torch.rand(4096, 8, device=device) * 2 - 1
    y = torch.exp(torch.sin(torch.pi * x[:, :1]) + x[:, 1:2] ** 2)
    for step in range(100):
        optimizer.zero_grad()
        loss = (net(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        if step % 20 == 19 and dist.get_rank() == 0:
            weight = net[0].spline_weight
            part, shape = tuple(weight.to_local().shape), tuple(weight.shape)
            print(f"step {step + 1}: loss {loss.item():.4f}; this rank has {part} of spline_weight {shape}")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
