"""Find the two inputs of eight that a function depends on: train a KAN [8, 5, 1] with the paper's regularisation, prune it.

`python examples/sparsify.py [--plot sparsify.png]`. The function is exp(sin(pi x0) + x1^2); x2 to x7 are noise. `--wide` does
the same at width 64 on 65 536 rows, in a few steps. The values of the functions of its 576 edges would take 151 MB. The
printed peak memory is lower, because the regularisation computes their norms without storing them.
"""

import argparse
from dataclasses import dataclass

import torch
from memory import memory_kilobytes, release_freed_memory, restart_peak_memory
from torch import Tensor
from tqdm import trange

import kan_kernels as kk


@dataclass
class Setting:
    """Sizes, the number of steps of the regularised training and of the tuning, and the thresholds of `KAN.prune`."""

    hidden: int
    N: int
    steps: int
    refit: int  # during the first half, the grid is updated every `refit` steps
    node_th: float
    edge_th: float


NARROW = Setting(hidden=5, N=2000, steps=1500, refit=50, node_th=1e-2, edge_th=3e-2)
# The thresholds are lower, because each of 64 nodes contributes less to the output, and 80 steps do not concentrate it.
WIDE = Setting(hidden=64, N=65536, steps=80, refit=10, node_th=3e-3, edge_th=3e-3)
FACTOR = 0.1  # of the regularisation, which is the paper's: the sum of every edge's mean |phi| plus the entropy of the shares


def points(N: int) -> tuple[Tensor, Tensor]:
    x = torch.rand(N, 8) * 2 - 1
    return x, torch.exp(torch.sin(torch.pi * x[:, :1]) + x[:, 1:2] ** 2)


def fit(net: kk.KAN, x: Tensor, y: Tensor, setting: Setting, factor: float) -> None:
    """Train with Adam on the squared error plus `factor` times the regularisation."""
    optimizer = torch.optim.Adam(net.parameters(), lr=0.02)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, setting.steps)
    for step in trange(setting.steps, desc="regularised" if factor else "tuning", unit="step"):
        if step % setting.refit == 0 and step < setting.steps / 2:
            net(x[:4096], update_grid=True)  # 4096 rows are enough to locate the values of the hidden nodes
        optimizer.zero_grad()
        loss = (net(x) - y).square().mean()
        if factor:
            loss = loss + factor * net.regularization_loss(x)
        loss.backward()
        optimizer.step()
        schedule.step()


def rmse(net: kk.KAN, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return (net(x) - y).square().mean().sqrt().item()


def warm_up() -> None:
    """Run a step of a small net, so that memory that torch allocates in the first step is not attributed to the large net."""
    net = kk.KAN([8, 2, 1])
    optimizer = torch.optim.Adam(net.parameters())
    x, _ = points(10)
    (net(x, update_grid=True).mean() + net.regularization_loss(x)).backward()
    optimizer.step()


def sparsify(setting: Setting, path: str | None) -> None:
    """Train, prune and tune, then print the errors and the remaining inputs."""
    x, y = points(setting.N)
    test = points(setting.N)
    net = kk.KAN([8, setting.hidden, 1], grid_size=10)
    warm_up()
    memory = restart_peak_memory()
    rows = []

    def note(name: str, net: kk.KAN) -> None:
        rows.append(f"{name:<12}{rmse(net, x, y):>12.2e}{rmse(net, *test):>11.2e}")

    fit(net, x, y, setting, FACTOR)
    note("regularised", net)
    pruned, cut = net.prune(x, setting.node_th, setting.edge_th)
    note("pruned", pruned)
    fit(pruned, x, y, setting, 0.0)
    note("tuned", pruned)
    print(f"\n{'':<12}{'train RMSE':>12}{'test RMSE':>11}", *rows, "", cut, sep="\n")
    left = pruned.layers[0].edge_mask.any(0).nonzero().flatten().tolist()
    print("inputs left: " + ", ".join(f"x{i}" for i in left))
    if memory is not None:
        peak = (memory_kilobytes("VmHWM") or memory) - memory
        print(f"peak memory over the start: {peak / 1024:.0f} MB")
    if path:
        title = f"KAN [8, {setting.hidden}, 1] after pruning"
        kk.plot(pruned, x, title=title).savefig(path, dpi=200)
        print(f"Drawn to {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--wide", action="store_true", help="width 64, 65 536 rows, few steps")
    parser.add_argument("--plot", metavar="FILE", help="draw the net that is left")
    arguments = parser.parse_args()
    release_freed_memory()
    torch.manual_seed(arguments.seed)
    sparsify(WIDE if arguments.wide else NARROW, arguments.plot)


if __name__ == "__main__":
    main()
