"""The KAN paper's staircase: a KAN [2, 1, 1] learns exp(sin(pi x) + y^2), and every refinement of its grids lowers the loss.

`python examples/staircase.py [--seed 0] [--plot staircase.png]`. Prints the training losses beside those that pykan publishes
for its Example 1, "Function Fitting", which trains the same net on the same 1000 points with 200 steps of LBFGS per grid.
"""

import argparse
import time
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor, nn
from tqdm import tqdm

import kan_kernels as kk

GRIDS = (3, 5, 10, 20, 50, 100)
PUBLISHED = {3: 1.46e-2, 10: 2.84e-4, 20: 4.21e-5, 50: 1.02e-5, 100: 1.64e-4}  # pykan's train RMSE
STEPS = 200  # at most, per grid, as in pykan; each step is 20 iterations of LBFGS
MOVING = 20  # initial steps on the first grid, during which the knots of the hidden node follow its values


@dataclass
class Stage:
    """The training on one grid: the RMSE on the training and the test points after every step."""

    G: int
    train: list[float]
    test: list[float]
    seconds: float


def points() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training inputs (1000, 2) and values (1000, 1), and the same for testing, from pykan's `create_dataset` with seed 0."""
    torch.manual_seed(0)
    train_0, test_0, train_1, test_1 = (torch.rand(1000, dtype=torch.float32).double() * 2 - 1 for _ in range(4))
    train_x, test_x = torch.stack([train_0, train_1], 1), torch.stack([test_0, test_1], 1)
    return train_x, function(train_x), test_x, function(test_x)


def function(x: Tensor) -> Tensor:
    return torch.exp(torch.sin(torch.pi * x[:, :1]) + x[:, 1:] ** 2)


def place_knots(net: kk.KAN, x: Tensor) -> None:
    """Place the knots of the inputs equidistantly over [-1, 1], and those of the hidden node at its values on x.

    `refine` leaves the K knots on either side at the positions of the coarsest grid. With those, LBFGS stops at 3.3e-4 for
    G = 10 and at 4.6e-5 for G = 20; if the knots are as close outside as inside, it reaches 2.8e-4 and 1.6e-5. The margin of
    `update_grid` makes the intervals longer: with the default of 0.01 for the inputs as well, G = 10 stops at 2.9e-4.
    """
    inputs, hidden = net.layers
    inputs.update_grid(torch.linspace(-1, 1, 1001, dtype=x.dtype).unsqueeze(1).expand(-1, 2), margin=0.0)
    hidden.update_grid(inputs(x))


def rmse(net: kk.KAN, x: Tensor, y: Tensor) -> float:
    with torch.no_grad():
        return (net(x) - y).square().mean().sqrt().item()


def lbfgs(net: kk.KAN) -> torch.optim.LBFGS:
    """LBFGS without tolerances: with torch's 1e-9 for a change of the loss, G = 20 stops at 8e-5, whose square is 6e-9."""
    return torch.optim.LBFGS(
        net.parameters(), history_size=100, tolerance_grad=0, tolerance_change=0, line_search_fn="strong_wolfe"
    )


def train(net: kk.KAN, data: tuple[Tensor, Tensor, Tensor, Tensor], bar: tqdm) -> Stage:
    """Train with LBFGS until twenty steps gain less than 1 %, for at most `STEPS` steps."""
    train_x, train_y, test_x, test_y = data
    moving = MOVING if net.grid_size == GRIDS[0] else 1

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (net(train_x) - train_y).square().mean()
        loss.backward()
        return loss

    stage = Stage(net.grid_size, [], [], 0.0)
    start = time.perf_counter()
    for step in range(STEPS):
        if step < moving:
            # At first the values of the hidden node leave its knots. Beyond them, splines and their gradients are 0.
            place_knots(net, train_x)
            optimizer = lbfgs(net)  # the history of the old one belongs to coefficients on other knots
        optimizer.step(closure)
        stage.train.append(rmse(net, train_x, train_y))
        stage.test.append(rmse(net, test_x, test_y))
        bar.set_postfix(G=stage.G, train=f"{stage.train[-1]:.2e}")
        bar.update()
        if step >= moving + 20 and stage.train[-1] > 0.99 * stage.train[-21]:
            break
    stage.seconds = time.perf_counter() - start
    return stage


def staircase(seed: int) -> list[Stage]:
    """Train one net on every grid in turn."""
    data = points()
    torch.manual_seed(seed)
    # With SiLU as base function, 7 of 10 seeds end in a local minimum with an RMSE of 0.6. With linear base functions, 1 of 10
    # does for scale_base 1, and none for 0.3, which makes them larger. The hidden node has few values at its ends: equidistant
    # knots alone (grid_eps 1) give a larger error for G = 50, a larger share of quantiles (0.5) does for G = 10.
    net = kk.KAN([2, 1, 1], GRIDS[0], base_activation=nn.Identity, scale_base=0.3, grid_eps=0.8, dtype=torch.float64)
    stages = []
    with tqdm(total=len(GRIDS) * STEPS, unit="step") as bar:
        for k, G in enumerate(GRIDS):
            net = net.refine(G) if k else net
            stages.append(train(net, data, bar))
            bar.update((k + 1) * STEPS - bar.n)  # skips the steps that were not needed
    return stages


def print_table(stages: list[Stage]) -> None:
    print(f"{'G':>4}{'steps':>7}{'train RMSE':>12}{'test RMSE':>11}{'s':>6}{'pykan, train RMSE':>19}")
    for stage in stages:
        published = f"{PUBLISHED[stage.G]:.2e}" if stage.G in PUBLISHED else "-"
        row = f"{stage.G:>4}{len(stage.train):>7}{stage.train[-1]:>12.2e}{stage.test[-1]:>11.2e}{stage.seconds:>6.1f}"
        print(f"{row}{published:>19}")


def plot(stages: list[Stage], path: str) -> None:
    """Draw the losses over the steps, and pykan's published losses at the end of each grid."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    ends = list(accumulate(len(stage.train) for stage in stages))
    for name in ("train", "test"):
        axes.semilogy([loss for stage in stages for loss in getattr(stage, name)], label=name, linewidth=1.2)
    published = [(end - 1, PUBLISHED[stage.G]) for stage, end in zip(stages, ends, strict=True) if stage.G in PUBLISHED]
    axes.semilogy(*zip(*published, strict=True), "k_", markersize=12, markeredgewidth=2, label="train, pykan (published)")
    for stage, end in zip(stages, ends, strict=True):
        axes.axvline(end - 1, color="0.85", linewidth=0.8, zorder=0)
        middle = end - len(stage.train) / 2
        name = f"G = {stage.G}" if stage is stages[0] else stage.G
        axes.text(middle, 1.01, name, transform=axes.get_xaxis_transform(), ha="center", va="bottom")
    axes.set(xlabel="step of LBFGS (20 iterations)", ylabel="RMSE", xlim=(0, 1.02 * ends[-1]))
    axes.set_title("KAN [2, 1, 1] on exp(sin(π x) + y²)", size="medium", pad=22)
    axes.legend()
    figure.savefig(path, dpi=200)
    print(f"Drawn to {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of the net's initial weights")
    parser.add_argument("--plot", metavar="FILE", help="draw the losses over the steps")
    arguments = parser.parse_args()
    stages = staircase(arguments.seed)
    print_table(stages)
    if arguments.plot:
        plot(stages, arguments.plot)


if __name__ == "__main__":
    main()
