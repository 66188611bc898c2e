"""Train a KAN [64, 64, 10] on scikit-learn's handwritten digits, with the fused kernels and with the reference.

`make demo`, or `python examples/digits.py [--epochs 30] [--plot demo.png]`. Both backends start from the same seed and see
the same batches; each runs in a process of its own, so that its memory can be told apart.
"""

import argparse
import copy
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import torch
from memory import memory_kilobytes, restart_peak_memory
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset
from tqdm import tqdm

import kan_kernels as kk


@dataclass
class Run:
    """What one backend's training gives."""

    backend: str
    seconds_per_epoch: float
    peak_megabytes: float | None
    losses: list[float]
    logits: Tensor
    labels: Tensor
    state: dict[str, Tensor]

    @property
    def accuracy(self) -> float:
        return (self.logits.argmax(1) == self.labels).double().mean().item()


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training pixels (1437, 64) in [-1, 1], test pixels (360, 64), and their labels 0..9."""
    pixels, labels = load_digits(return_X_y=True)
    parts = train_test_split(pixels / 8 - 1, labels, test_size=360, random_state=0, stratify=labels)
    train_x, test_x, train_y, test_y = (torch.as_tensor(part) for part in parts)
    return train_x.float(), test_x.float(), train_y, test_y


def train(backend: str, epochs: int, seed: int) -> Run:
    """Adam on the cross-entropy, batches of 64."""
    train_x, test_x, train_y, test_y = digits()
    torch.manual_seed(seed)
    net = kk.KAN([64, 64, 10])
    data = TensorDataset(train_x, train_y)
    batches = DataLoader(data, batch_size=None, sampler=BatchSampler(RandomSampler(data), batch_size=64, drop_last=False))
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.93)
    losses = []
    with kk.use_backend(backend):
        warm_up(torch.nn.Linear(64, 10), train_x[:64])  # what torch itself loads is not this backend's memory
        memory = restart_peak_memory()
        warm_up(net, train_x[:64])
        start = time.perf_counter()
        for _ in tqdm(range(epochs), desc=f"{backend:>9}", unit="epoch"):
            total = 0.0
            for x, y in batches:
                optimizer.zero_grad()
                loss = cross_entropy(net(x), y)
                loss.backward()
                optimizer.step()
                total += loss.item() * len(x)
            schedule.step()
            losses.append(total / len(train_x))
        seconds = (time.perf_counter() - start) / epochs
        peak = None if memory is None else (memory_kilobytes("VmHWM") or memory) - memory
        with torch.no_grad():
            logits = net(test_x)
    state = {name: value.clone() for name, value in net.state_dict().items()}
    return Run(backend, seconds, None if peak is None else peak / 1024, losses, logits, test_y, state)


def warm_up(net: torch.nn.Module, x: Tensor) -> None:
    """A step of a copy: what a first step imports and starts does not belong on the clock."""
    net = copy.deepcopy(net)
    optimizer = torch.optim.AdamW(net.parameters())
    net(x).sum().backward()
    optimizer.step()


def in_new_process(*arguments) -> Run:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(train, *arguments).result()


def print_table(runs: list[Run]) -> None:
    slowest = max(run.seconds_per_epoch for run in runs)
    print(f"\n{'backend':<12}{'s / epoch':>11}{'peak MB':>10}{'accuracy':>11}{'speed-up':>11}")
    for run in runs:
        peak = "n/a" if run.peak_megabytes is None else f"{run.peak_megabytes:.1f}"
        speed_up = slowest / run.seconds_per_epoch
        print(f"{run.backend:<12}{run.seconds_per_epoch:>11.4f}{peak:>10}{run.accuracy:>11.2%}{speed_up:>10.1f}x")
    difference = (runs[0].logits - runs[1].logits).abs().max().item()
    print(
        f"\nLargest difference between the two runs' test logits: {difference:.2e}"
        f" (logits up to {runs[1].logits.abs().max():.1f})"
    )


def plot(runs: list[Run], path: str) -> None:
    """The loss curves and the edge functions of the first layer's most active input pixels."""
    import matplotlib.pyplot as plt

    net = kk.KAN([64, 64, 10])
    net.load_state_dict(runs[0].state)
    layer = net.layers[0]
    x = torch.linspace(-1, 1, 201)
    strongest = layer.spline_weight.detach().abs().mean(-1).flatten().topk(6).indices

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for run, style in zip(runs, ("-", "--"), strict=True):
        left.semilogy(run.losses, style, label=run.backend)
    left.set(xlabel="epoch", ylabel="training loss", title="digits, KAN [64, 64, 10]")
    left.legend()
    for edge in strongest.tolist():
        o, i = divmod(edge, layer.in_features)
        inputs = torch.zeros(len(x), layer.in_features)
        inputs[:, i] = x
        with torch.no_grad():
            y = layer(inputs)[:, o] - layer(torch.zeros_like(inputs))[:, o]
        right.plot(x, y, label=f"pixel {i} to hidden {o}")
    right.set(xlabel="pixel", ylabel="edge function, minus its value at 0", title="strongest edges of the first layer")
    right.legend(fontsize="small")
    figure.savefig(path, dpi=120)
    print(f"Drawn to {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", metavar="FILE", help="draw loss curves and learned edge functions")
    arguments = parser.parse_args()
    print(kk.info())
    runs = [in_new_process(backend, arguments.epochs, arguments.seed) for backend in ("auto", "reference")]
    print_table(runs)
    if arguments.plot:
        plot(runs, arguments.plot)


if __name__ == "__main__":
    main()
