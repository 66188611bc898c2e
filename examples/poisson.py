"""Solve Poisson's equation on [-1, 1]^2 with a KAN [2, 10, 1], whose Laplacian `kk.laplacian` computes in one pass.

`python examples/poisson.py [--steps 60] [--plot poisson.png]`. The solution is sin(pi x) sin(pi y). It prints the relative L2
error and the seconds per 100 evaluations of the loss and its gradients, in one pass and by nested autograd, and `--plot` draws
the solution, its error and the losses.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import trange

import kan_kernels as kk

BORDER_WEIGHT = 100.0  # of the error on the border: the residual is some 20 times the solution


def solution(points: Tensor) -> Tensor:
    return torch.sin(torch.pi * points).prod(1, keepdim=True)


def in_one_pass(net: kk.KAN, points: Tensor) -> Tensor:
    return kk.laplacian(net, points).laplacian


def by_nested_autograd(net: kk.KAN, points: Tensor) -> Tensor:
    x = points.clone().requires_grad_()
    (slope,) = torch.autograd.grad(net(x).sum(), x, create_graph=True)
    return sum(torch.autograd.grad(slope[:, d].sum(), x, create_graph=True)[0][:, d : d + 1] for d in range(2))


@dataclass
class Problem:
    """The points inside and on the border of the square."""

    inside: Tensor
    border: Tensor

    def loss(self, net: kk.KAN, laplacian: Callable[[kk.KAN, Tensor], Tensor]) -> Tensor:
        residual = laplacian(net, self.inside) + 2 * torch.pi**2 * solution(self.inside)
        return residual.square().mean() + BORDER_WEIGHT * net(self.border).square().mean()


def problem(points: int) -> Problem:
    axis = torch.linspace(-1, 1, points)
    square = torch.cartesian_prod(axis, axis)
    on_border = (square.abs() == 1).any(1)
    return Problem(square[~on_border], square[on_border])


def relative_error(net: kk.KAN) -> float:
    axis = torch.linspace(-1, 1, 101)
    points = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        return ((net(points) - solution(points)).norm() / solution(points).norm()).item()


def seconds_per_100(net: kk.KAN, task: Problem, laplacian: Callable[[kk.KAN, Tensor], Tensor]) -> float:
    start = time.perf_counter()
    for _ in range(20):
        task.loss(net, laplacian).backward()
    return 5 * (time.perf_counter() - start)


def solve(steps: int) -> tuple[kk.KAN, list[float]]:
    """Train with L-BFGS, on a finer grid of the splines in the second half."""
    task = problem(41)
    net, losses = kk.KAN([2, 10, 1], grid_size=5, spline_order=4), []
    for stage in range(2):
        net = net if stage == 0 else net.refine(10)
        optimizer = torch.optim.LBFGS(net.parameters(), history_size=50, line_search_fn="strong_wolfe", tolerance_change=1e-14)

        def closure(net: kk.KAN = net, optimizer: torch.optim.Optimizer = optimizer) -> Tensor:
            optimizer.zero_grad()
            value = task.loss(net, in_one_pass)
            value.backward()
            losses.append(value.item())
            return value

        for _ in trange(steps // 2, desc=f"{net.grid_size} intervals", unit="step"):
            optimizer.step(closure)
    return net, losses


def draw(net: kk.KAN, losses: list[float], path: str) -> None:
    import matplotlib.pyplot as plt

    axis = torch.linspace(-1, 1, 101)
    points = torch.cartesian_prod(axis, axis)
    with torch.no_grad():
        values, error = (v.view(101, 101).T for v in (net(points), net(points) - solution(points)))
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(10, 3), layout="constrained")
    for axes, image, title in ((left, values, "solution"), (middle, error, "error")):
        shown = axes.imshow(image, extent=(-1, 1, -1, 1), origin="lower", cmap="RdBu")
        axes.set(title=title, xlabel="x", ylabel="y")
        figure.colorbar(shown, ax=axes)
    right.semilogy(losses, color="black")
    right.set(title="loss", xlabel="evaluation")
    figure.savefig(path, dpi=150)
    print(f"Drawn to {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=60, help="steps of L-BFGS, up to 20 iterations each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", metavar="FILE", help="draw the solution, its error and the losses")
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)
    torch.set_default_dtype(torch.float64)
    start = time.perf_counter()
    net, losses = solve(arguments.steps)
    print(
        f"\nrelative L2 error {relative_error(net):.1e} after {len(losses)} evaluations in {time.perf_counter() - start:.1f} s"
    )
    times = {name: seconds_per_100(net, problem(41), way) for name, way in WAYS.items()}
    print("seconds per 100 evaluations: " + ", ".join(f"{name} {seconds:.2f}" for name, seconds in times.items()))
    if arguments.plot:
        draw(net, losses, arguments.plot)


WAYS = {"in one pass": in_one_pass, "nested autograd": by_nested_autograd}


if __name__ == "__main__":
    main()
