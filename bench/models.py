"""Time whole models against their peers: a training step with loss, backward and optimizer, and the latency of one row.

`make bench`, or `python bench/models.py [--threads 1,2] [--rounds 15] [--out FILE]`. Measurements are appended to
bench/results/<date>-cpu-models.jsonl, which table.py reads.
"""

import argparse
import itertools
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from machine import describe
from records import RESULTS, Record, append
from timing import alternate
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

import kan_kernels as kk

Call = Callable[[], object]


def on_reference(call: Call) -> Call:
    """Return a function that runs the call in plain torch with dense bases, like efficient-kan."""

    def run() -> object:
        with kk.use_backend("reference"):
            return call()

    return run


def pykan(widths: list[int]) -> nn.Module | None:
    """Return pykan's network after `speed()`, which removes its symbolic branch and its records."""
    try:
        import kan
    except ImportError:
        return None
    return kan.KAN(width=list(widths), grid=5, k=3, auto_save=False, seed=0).speed()


def mlp(inputs: int, outputs: int, parameters: int) -> nn.Module:
    """Return an MLP with one hidden layer and about `parameters` parameters."""
    hidden = (parameters - outputs) // (inputs + 1 + outputs)
    return nn.Sequential(nn.Linear(inputs, hidden), nn.SiLU(), nn.Linear(hidden, outputs))


def networks(widths: list[int], step: Callable[[nn.Module], Call]) -> dict[str, Call]:
    """Return the steps of a KAN of these widths and of its peers."""
    net = kk.KAN(widths)
    parameters = sum(p.numel() for p in net.parameters())
    nets = {"kan_kernels": net, "MLP, equal parameters": mlp(widths[0], widths[-1], parameters), "pykan": pykan(widths)}
    steps = {name: step(other) for name, other in nets.items() if other is not None}
    return steps | {"reference": on_reference(step(kk.KAN(widths)))}


def tiny_layer() -> dict[str, Call]:
    """Return the forward and all gradients of KANLinear(2, 5) at 64 rows, and of a linear layer with an activation."""
    x, g = (torch.rand(64, 2) * 2 - 1).requires_grad_(), torch.randn(64, 5)

    def step(net: nn.Module) -> Call:
        leaves = [x, *net.parameters()]
        return lambda: torch.autograd.grad(net(x), leaves, g)

    layer = kk.KANLinear(2, 5)
    linear = nn.Sequential(nn.Linear(2, 5), nn.SiLU())
    return {"kan_kernels": step(layer), "Linear + SiLU": step(linear), "reference": on_reference(step(layer))}


def one_row() -> dict[str, Call]:
    """Return a 256 -> 256 layer for one row, and a linear layer with as many parameters as the row uses."""
    layer, x = kk.KANLinear(256, 256), torch.rand(1, 256) * 2 - 1
    touched, weight = torch.rand(1, 256 * 5), torch.randn(256, 256 * 5)

    def inference(compute: Callable[[], Tensor]) -> Call:
        return torch.inference_mode()(compute)

    return {
        "kan_kernels": inference(lambda: layer(x)),
        "F.linear, 1280 to 256": inference(lambda: F.linear(touched, weight)),
        "reference": on_reference(inference(lambda: layer(x))),
    }


def digits() -> dict[str, Call]:
    """Return the steps of a network [64, 64, 10] at batch 64 with cross-entropy and Adam."""
    x, labels = torch.rand(64, 64), torch.randint(0, 10, (64,))

    def step(net: nn.Module) -> Call:
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)

        def run() -> None:
            optimizer.zero_grad()
            F.cross_entropy(net(x), labels).backward()
            optimizer.step()

        return run

    return networks([64, 64, 10], step)


def nested_laplacian(net: nn.Module, points: Tensor) -> Tensor:
    """Return the Laplacian (N, 1) by autograd, which nests three derivatives in a step."""
    x = points.clone().requires_grad_()
    (slope,) = torch.autograd.grad(net(x).sum(), x, create_graph=True)
    axes = range(points.shape[1])
    return sum(torch.autograd.grad(slope[:, d].sum(), x, create_graph=True)[0][:, d : d + 1] for d in axes)


def fused_laplacian(net: nn.Module, points: Tensor) -> Tensor:
    return kk.laplacian(net, points).laplacian


def poisson() -> dict[str, Call]:
    """Return the steps of a network [2, 2, 1] on 51 x 51 points, whose loss contains its Laplacian."""
    axis = torch.linspace(-1, 1, 51)
    points = torch.cartesian_prod(axis, axis)
    border = points[(points.abs() == 1).any(1)]

    def solution(p: Tensor) -> Tensor:
        return torch.sin(torch.pi * p[:, :1]) * torch.sin(torch.pi * p[:, 1:])

    source, at_border = -2 * torch.pi**2 * solution(points), solution(border)

    def step(net: nn.Module, laplacian: Callable[[nn.Module, Tensor], Tensor] = nested_laplacian) -> Call:
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)

        def run() -> None:
            optimizer.zero_grad()
            loss = (laplacian(net, points) - source).square().mean() + (net(border) - at_border).square().mean()
            loss.backward()
            optimizer.step()

        return run

    others = networks([2, 2, 1], step)
    others["kan_kernels, nested autograd"] = others.pop("kan_kernels")
    return {"kan_kernels": step(kk.KAN([2, 2, 1]), fused_laplacian)} | others


def laplacian(widths: list[int], rows: int) -> dict[str, Call]:
    """Return the loss of a Laplacian and its gradients: in one pass, by nested autograd, and of a tanh MLP."""
    points = torch.rand(rows, widths[0]) * 2 - 1

    def step(net: nn.Module, compute: Callable[[nn.Module, Tensor], Tensor]) -> Call:
        parameters = list(net.parameters())
        return lambda: torch.autograd.grad((compute(net, points) - 1).square().mean(), parameters, allow_unused=True)

    net = kk.KAN(widths)
    parameters = sum(p.numel() for p in net.parameters())
    depth = len(widths) - 2
    # I h + h + (depth - 1) (h^2 + h) + h + 1 parameters
    hidden = next(h for h in range(parameters, 0, -1) if widths[0] * h + 2 * h + (depth - 1) * (h * h + h) + 1 <= parameters)
    sizes = [widths[0], *[hidden] * depth]
    layers = [module for pair in itertools.pairwise(sizes) for module in (nn.Linear(*pair), nn.Tanh())]
    perceptron = nn.Sequential(*layers, nn.Linear(hidden, 1))
    return {
        "kan_kernels": step(net, fused_laplacian),
        "kan_kernels, nested autograd": step(net, nested_laplacian),
        "MLP, equal parameters, nested autograd": step(perceptron, nested_laplacian),
        "MLP in one pass": step(perceptron, fused_laplacian),
    }


MODELS = {
    "KANLinear(2, 5), 64 rows, gradients": tiny_layer,
    "256 to 256, one row, inference": one_row,
    "digits [64, 64, 10], batch 64, Adam": digits,
    "Poisson PINN [2, 2, 1], 2601 points, Adam": poisson,
    "Laplacian and gradients, [2, 10, 1], 2601 points": lambda: laplacian([2, 10, 1], 2601),
    "Laplacian and gradients, [2, 32, 32, 1], 2601 points": lambda: laplacian([2, 32, 32, 1], 2601),
    "Laplacian and gradients, [3, 64, 64, 1], 8192 points": lambda: laplacian([3, 64, 64, 1], 8192),
}


def measure(name: str, calls: dict[str, Call], threads: int, rounds: int) -> Iterable[Record]:
    for provider, timing in alternate(calls, rounds, budget=1.5).items():
        record = {"case": name, "provider": provider, "median_ms": 1e3 * timing.median, "min_ms": 1e3 * timing.min}
        yield record | {"samples": timing.samples, "threads": threads, "dtype": "float32", "machine": describe()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", default=str(torch.get_num_threads()), help="comma-separated thread counts")
    parser.add_argument("--rounds", type=int, default=15, help="samples of every contender")
    parser.add_argument("--out", type=Path, help="file to append to")
    arguments = parser.parse_args()
    out = arguments.out or RESULTS / f"{describe()['date']}-cpu-models.jsonl"
    for threads in map(int, arguments.threads.split(",")):
        torch.set_num_threads(threads)
        for name, make in tqdm(MODELS.items(), desc=f"{threads} threads"):
            torch.manual_seed(0)
            records = list(measure(name, make(), threads, arguments.rounds))
            append(out, records)
            tqdm.write(f"{name}: " + ", ".join(f"{r['provider']} {r['median_ms']:.3f} ms" for r in records))
    print(f"Appended to {out}")


if __name__ == "__main__":
    main()
