"""Train a KAN [64, 64, 10] on scikit-learn's handwritten digits, with the fused kernels and with the plain-torch reference.

`make demo`, or `python examples/digits.py [--epochs 30] [--plot demo.png]`. Both networks start from the same weights and see
the same batches. They train in turn, epoch by epoch, so that a busy machine slows both down equally.
"""

import argparse
import copy
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context

import torch
from memory import memory_kilobytes, release_freed_memory, restart_peak_memory
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset
from tqdm import tqdm

import kan_kernels as kk

BACKENDS = {"kan_kernels": "auto", "reference": "reference"}
LARGE_BATCH = 4096
ROUNDS = 15  # steps of the large batch
WIDE_SPREAD = 1.5  # if the quartiles of the ratios are further apart than this factor, the ratio is unreliable


@dataclass
class Training:
    """A network trained on one backend, with the time and the loss of every epoch."""

    backend: str
    net: kk.KAN
    seconds: list[float] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.optimizer = torch.optim.AdamW(self.net.parameters(), lr=2e-3, weight_decay=1e-3)
        self.schedule = torch.optim.lr_scheduler.ExponentialLR(self.optimizer, 0.93)

    def run_epoch(self, batches: list[tuple[Tensor, Tensor]]) -> None:
        total = 0.0
        with kk.use_backend(self.backend):
            start = time.perf_counter()
            for x, y in batches:
                self.optimizer.zero_grad()
                loss = cross_entropy(self.net(x), y)
                loss.backward()
                self.optimizer.step()
                total += loss.item() * len(x)
            self.seconds.append(time.perf_counter() - start)
        self.schedule.step()
        self.losses.append(total / sum(len(x) for x, _ in batches))

    @torch.no_grad()
    def logits(self, x: Tensor) -> Tensor:
        with kk.use_backend(self.backend):
            return self.net(x)


def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training pixels (1437, 64) in [-1, 1], test pixels (360, 64), and their labels 0..9."""
    pixels, labels = load_digits(return_X_y=True)
    parts = train_test_split(pixels / 8 - 1, labels, test_size=360, random_state=0, stratify=labels)
    train_x, test_x, train_y, test_y = (torch.as_tensor(part) for part in parts)
    return train_x.float(), test_x.float(), train_y, test_y


def train(epochs: int, seed: int) -> dict[str, Training]:
    """Train with Adam on the cross-entropy in batches of 64, alternating between the backends after every epoch."""
    train_x, _, train_y, _ = digits()
    torch.manual_seed(seed)
    net = kk.KAN([64, 64, 10])
    data = TensorDataset(train_x, train_y)
    loader = DataLoader(data, batch_size=None, sampler=BatchSampler(RandomSampler(data), batch_size=64, drop_last=False))
    trainings = {name: Training(backend, copy.deepcopy(net)) for name, backend in BACKENDS.items()}
    few = list(loader)[:2]
    for backend in BACKENDS.values():
        Training(backend, copy.deepcopy(net)).run_epoch(few)  # the first step imports modules and starts threads
    for _ in tqdm(range(epochs), desc="training", unit="epoch"):
        batches = list(loader)
        for training in trainings.values():
            training.run_epoch(batches)
    return trainings


def large_batch() -> tuple[Tensor, Tensor]:
    x, _, y, _ = digits()
    rows = torch.arange(LARGE_BATCH) % len(x)
    return x[rows], y[rows]


def step(net: kk.KAN, x: Tensor, y: Tensor) -> None:
    net.zero_grad()
    cross_entropy(net(x), y).backward()


def step_seconds() -> dict[str, list[float]]:
    """The times of a training step on the large batch, without an optimizer; the backends alternate."""
    x, y = large_batch()
    net = kk.KAN([64, 64, 10])
    seconds: dict[str, list[float]] = {name: [] for name in BACKENDS}
    for turn in range(ROUNDS + 1):
        for name, backend in BACKENDS.items():
            with kk.use_backend(backend):
                start = time.perf_counter()
                step(net, x, y)
                if turn > 0:
                    seconds[name].append(time.perf_counter() - start)
    return seconds


def step_megabytes(backend: str) -> float | None:
    """The peak memory of that step beyond the memory in use before it, in a new process. None if there is no /proc."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_own_step_megabytes, backend).result()


def _own_step_megabytes(backend: str) -> float | None:
    release_freed_memory()
    x, y = large_batch()
    net = kk.KAN([64, 64, 10])
    with kk.use_backend(backend):
        step(net, x[:64], y[:64])
        before = restart_peak_memory()
        step(net, x, y)
        peak = memory_kilobytes("VmHWM")
    return None if before is None or peak is None else (peak - before) / 1024


def row(what: str, unit: str, ours: float, reference: float, spread: str = "") -> str:
    return f"{what:<34}{number(ours):>9} {unit:<3}{number(reference):>9} {unit:<3}{reference / ours:>8.1f}x  {spread}".rstrip()


def number(value: float) -> str:
    return f"{value:.0f}" if value >= 1000 else f"{value:.3g}"


def timed_row(what: str, seconds: dict[str, list[float]]) -> str:
    """The medians in milliseconds, and the first and third quartile of the ratios."""
    ours, theirs = seconds["kan_kernels"], seconds["reference"]
    ratios = [their / our for our, their in zip(ours, theirs, strict=True)]
    spread = ""
    if len(ratios) >= 4:
        low, _, high = statistics.quantiles(ratios, n=4)
        spread = f"({low:.1f}x to {high:.1f}x)"
        if high > WIDE_SPREAD * low:
            spread += " wide spread: the machine is busy"
    return row(what, "ms", 1e3 * statistics.median(ours), 1e3 * statistics.median(theirs), spread)


def report(trainings: dict[str, Training]) -> None:
    info = kk.info()
    kernels = f"{info.instruction_set} kernels" if info.instruction_set else "no C++ kernels"
    threads = torch.get_num_threads()
    print(f"\nKAN [64, 64, 10] on handwritten digits: {info.processor}, {threads} threads, {kernels}\n")
    print(f"{'':<34}{'kan_kernels':>12} {'reference':>12} {'ratio':>9}  (of the middle half)")
    print(timed_row("epoch of 1437, batch 64, median", {name: t.seconds for name, t in trainings.items()}))
    print(timed_row(f"step at batch {LARGE_BATCH}, median", step_seconds()))
    peaks = {name: step_megabytes(backend) for name, backend in BACKENDS.items()}
    ours, theirs = peaks["kan_kernels"], peaks["reference"]
    if ours and theirs:
        print(row("its peak memory", "MB", ours, theirs))

    _, test_x, _, test_y = digits()
    logits = {name: training.logits(test_x) for name, training in trainings.items()}
    accuracy = {name: (values.argmax(1) == test_y).double().mean().item() for name, values in logits.items()}
    difference = (logits["kan_kernels"] - logits["reference"]).abs().max().item()
    print(
        f"\nTest accuracy {accuracy['kan_kernels']:.1%} with kan_kernels, {accuracy['reference']:.1%} with the reference;"
        f" logits differ by at most {difference:.1e} of {logits['reference'].abs().max():.1f}."
    )
    print('Next: make demo ARGS="--plot demo.png", or examples/staircase.py and examples/sparsify.py.')


def plot(trainings: dict[str, Training], path: str) -> None:
    """Draw the loss curves and the functions of the strongest edges of the first layer."""
    import matplotlib.pyplot as plt
    from matplotlib.ticker import MaxNLocator

    layer = trainings["kan_kernels"].net.layers[0]
    x = torch.linspace(-1, 1, 201)
    strongest = layer.spline_weight.detach().abs().mean(-1).flatten().topk(6).indices

    figure, (left, right) = plt.subplots(1, 2, figsize=(7, 3), layout="constrained")
    for (name, training), style in zip(trainings.items(), ("-", "--"), strict=True):
        left.semilogy(range(1, len(training.losses) + 1), training.losses, style, label=name)
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.set(xlabel="epoch", ylabel="training loss")
    left.set_title("digits, KAN [64, 64, 10]", size="medium")
    left.legend()
    for edge in strongest.tolist():
        o, i = divmod(edge, layer.in_features)
        with torch.no_grad():
            right.plot(x, layer.edge(o, i)(x), label=f"{i} to {o}")
    right.set(xlabel="pixel's value", ylabel="edge function")
    right.set_title("strongest edges of the first layer", size="medium")
    figure.legend(*right.get_legend_handles_labels(), loc="outside right", fontsize="small", title="pixel\nto hidden")
    figure.savefig(path, dpi=200)
    print(f"Drawn to {path}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--plot", metavar="FILE", help="draw the losses and the strongest edges")
    arguments = parser.parse_args()
    trainings = train(arguments.epochs, arguments.seed)
    report(trainings)
    if arguments.plot:
        plot(trainings, arguments.plot)


if __name__ == "__main__":
    main()
