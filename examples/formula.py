"""Find the formula of data: train a KAN [2, 5, 1], prune it, replace its splines by functions, and train their constants.

`python examples/formula.py [--rows 1000] [--noise 0.0] [--plot formula.png]`. The data are exp(sin(pi x) + y^2). It prints
the seconds of every stage and the formula, and `--plot` draws the pruned network with the names of the functions on its edges.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from tqdm import tqdm

import kan_kernels as kk

FACTOR = 1e-2  # of the regularisation, which is pykan's: it finds the shape [2, 1, 1] for nearly every seed
NAMES = ("x", "y")


def law(points: Tensor) -> Tensor:
    x, y = points.unbind(1)
    return torch.exp(torch.sin(torch.pi * x) + y**2).unsqueeze(1)


def fit(net: nn.Module, rounds: int, loss: Callable[[], Tensor], bar: tqdm) -> None:
    """Minimise the loss with L-BFGS, 20 iterations a round."""
    optimizer = torch.optim.LBFGS(
        net.parameters(), history_size=20, line_search_fn="strong_wolfe", tolerance_grad=1e-12, tolerance_change=1e-14
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    for _ in range(rounds):
        optimizer.step(closure)
        bar.update()


class Stages:
    """The seconds of every stage, and a progress bar for all of them."""

    def __init__(self, rounds: int) -> None:
        self.seconds: dict[str, float] = {}
        self.bar = tqdm(total=rounds, unit="round")

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self.bar.set_description(name)
        start = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - start


def rmse(net: nn.Module, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return (net(x) - y).square().mean().sqrt().item()


def find(rows: int, noise: float, path: str | None) -> None:
    torch.set_default_dtype(torch.float64)
    x, test = (torch.rand(rows, 2) * 2 - 1 for _ in range(2))
    y = law(x) + noise * torch.randn(rows, 1)
    errors = {}
    stages = Stages(rounds=2 * 3 * 10 + 20 + 10)

    net = kk.KAN([2, 5, 1], grid_size=3)

    def squared_error() -> Tensor:
        return (net(x) - y).square().mean()

    def sparse_loss() -> Tensor:
        return squared_error() + FACTOR * net.regularization_loss(x, regularize_entropy=2.0, metric="edge_forward_spline_n")

    with stages.stage("train and prune"):
        for _ in range(2):
            for _ in range(3):
                net.update_grid(x)
                fit(net, 10, sparse_loss, stages.bar)
            net, _ = net.prune(x)
    errors["sparse"] = rmse(net, test, law(test))
    with stages.stage("train again"):
        net = net.refine(10)
        net.update_grid(x)
        fit(net, 20, squared_error, stages.bar)
    errors["splines"] = rmse(net, test, law(test))
    with stages.stage("find functions"):
        found = net.symbolic(x, progress=False)
    errors["functions"] = rmse(found, test, law(test))
    with stages.stage("train constants"):
        fit(found, 10, lambda: (found(x) - y).square().mean(), stages.bar)
    errors["constants"] = rmse(found, test, law(test))
    stages.bar.close()

    print(f"\nshape: {[net.layers[0].in_features, *(layer.out_features for layer in net.layers)]}", found.report(), sep="\n\n")
    print("\ntest RMSE:", ", ".join(f"{name} {error:.1e}" for name, error in errors.items()))
    print("seconds:", ", ".join(f"{name} {seconds:.2f}" for name, seconds in stages.seconds.items()))
    print("formula:", found.formula(NAMES, digits=4)[0])
    if path:
        figure = kk.plot(net, x, in_names=NAMES, title="exp(sin(pi x) + y^2)", edge_labels=found.functions)
        figure.savefig(path, dpi=200)
        print(f"Drawn to {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--noise", type=float, default=0.0, help="the standard deviation of noise in the data")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", metavar="FILE", help="draw the network with the names of the functions")
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    find(arguments.rows, arguments.noise, arguments.plot)


if __name__ == "__main__":
    main()
