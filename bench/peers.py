"""Time the peers' models before and after `accelerate`: fits from pykan's examples, efficient-kan's layers, peak memory.

No package registry contains efficient-kan, so tests/peer_layers.py implements its layer from its description. `make bench`, or
`python bench/peers.py [--threads 2] [--rounds 5] [--only WORDS] [--out FILE]`. The script needs pykan. Measurements are
appended to bench/results/<date>-cpu-peers.jsonl, which table.py reads.
"""

import argparse
import contextlib
import io
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy
import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import peer_layers
from machine import describe
from peak import peak_megabytes
from records import RESULTS, Record, append
from timing import alternate
from torch.nn import functional as F
from tqdm import tqdm

import kan_kernels as kk

Job = Callable[[], object]
PROVIDERS = ("peer", "accelerated")


def network(provider: str, width: list[int], grid: int, seed: int = 0) -> Any:
    import kan

    net = kan.KAN(width=list(width), grid=grid, k=3, seed=seed, auto_save=False)
    return kk.accelerate(net) if provider == "accelerated" else net


def fitted(net: Any, function: Callable[[torch.Tensor], torch.Tensor], variables: int, **options: Any) -> Job:
    """Return a fit on 1000 points, which are created as in pykan's examples."""
    import kan

    data = kan.create_dataset(function, n_var=variables, train_num=1000, seed=0)

    def run() -> None:
        numpy.random.seed(0)
        net.fit(data, **options)

    return run


def hello(provider: str, lamb: float) -> Job:
    net = network(provider, [2, 5, 1], 5)
    return fitted(
        net, lambda x: torch.exp(torch.sin(torch.pi * x[:, [0]]) + x[:, [1]] ** 2), 2, opt="LBFGS", steps=20, lamb=lamb
    )


def trained(provider: str, width: list[int], rows: int) -> Any:
    """Return a network after some steps of training and a forward pass on `rows` rows, which the search for formulas reads."""
    net = network(provider, width, 5)

    def function(x: torch.Tensor) -> torch.Tensor:
        y = torch.exp(torch.sin(torch.pi * x[:, [0]]) + x[:, [1]] ** 2)
        return torch.cat([y, x.prod(1, keepdim=True)], 1) if width[-1] == 2 else y

    with contextlib.redirect_stderr(io.StringIO()):
        fitted(net, function, width[0], opt="LBFGS", steps=20)()
    net(torch.rand(rows, width[0]) * 2 - 1)
    return net


def formulas(provider: str, width: list[int], rows: int, lib: list[str] | None = None) -> Job:
    """Return the search for formulas. [2, 1, 1] is the hello world's network after pruning."""
    net = trained(provider, width, rows)

    def run() -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            net.auto_symbolic(lib=lib)

    return run


def own_function(provider: str) -> Job:
    """Return the fit of a function that the user has added to pykan's library."""
    import kan

    net = trained(provider, [2, 1, 1], 1000)
    with contextlib.redirect_stdout(io.StringIO()):
        kan.add_symbolic("erf", torch.special.erf, c=2)

    def run() -> None:
        net.fix_symbolic(0, 0, 0, "erf", verbose=False, log_history=False)

    return run


def wide(provider: str) -> Job:
    """Return 3 of the 50 steps of API_10_device."""

    def function(x: torch.Tensor) -> torch.Tensor:
        return torch.exp(sum(torch.sin(torch.pi * (x[:, [d]] ** 2 + x[:, [d + 1]] ** 2)) for d in (0, 2)) / 2)

    net = network(provider, [4, 100, 100, 100, 1], 3)
    return fitted(net, function, 4, opt="Adam", lr=1e-3, steps=3, lamb=1e-3, lamb_entropy=5.0, update_grid=False)


def poisson(provider: str) -> Job:
    """Return the first 2 of the 50 steps of Example_7_PDE_accuracy on the first grid, including grid updates."""
    import kan

    net = network(provider, [2, 2, 1], 5, seed=1).speed()
    axis = torch.linspace(-1, 1, 51)
    inside = torch.cartesian_prod(axis, axis)
    border = inside[(inside.abs() == 1).any(1)]

    def solution(x: torch.Tensor) -> torch.Tensor:
        return torch.sin(torch.pi * x[:, [0]]) * torch.sin(torch.pi * x[:, [1]])

    def jacobian(function: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        rows = torch.autograd.functional.jacobian(lambda z: function(z).sum(0), x, create_graph=True)
        return rows.permute(1, 0, 2)

    optimizer = kan.LBFGS(
        net.parameters(),
        lr=1,
        history_size=10,
        line_search_fn="strong_wolfe",
        tolerance_grad=1e-32,
        tolerance_change=1e-32,
        tolerance_ys=1e-32,
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        hessian = jacobian(lambda z: jacobian(net, z)[:, 0], inside)
        laplacian = hessian.diagonal(dim1=1, dim2=2).sum(1, keepdim=True)
        loss = 0.01 * (laplacian + 2 * torch.pi**2 * solution(inside)).square().mean()
        loss = loss + (net(border) - solution(border)).square().mean()
        loss.backward()
        return loss

    def run() -> None:
        for _ in range(2):
            net.update_grid_from_samples(inside)
            optimizer.step(closure)

    return run


def grid_update(provider: str) -> Job:
    layer = network(provider, [64, 64], 5).act_fun[0]
    x = torch.randn(10_000, 64)
    return lambda: layer.update_grid_from_samples(x)


LIB = ["x", "x^2", "exp", "log", "sin", "tanh"]
# Jobs that take seconds, each on a new network: name -> factory, runs of the peer's job (some are slow), steps per job.
LONG: dict[str, tuple[Callable[[str], Job], int, int]] = {
    "pykan, hello world [2, 5, 1], L-BFGS, 20 steps": (lambda provider: hello(provider, 0.0), 5, 1),
    "pykan, hello world, lamb = 0.01, 20 steps": (lambda provider: hello(provider, 0.01), 5, 1),
    "pykan, API_10 [4, 100, 100, 100, 1], Adam, lamb, a step": (wide, 2, 3),
    "pykan, Example_7, Poisson PINN [2, 2, 1], L-BFGS, a step": (poisson, 3, 2),
    "pykan, grid update of 64→64 on 10 000 rows": (grid_update, 1, 1),
    "pykan, auto_symbolic of [2, 1, 1] on 1000 rows": (lambda provider: formulas(provider, [2, 1, 1], 1000), 1, 1),
    "pykan, auto_symbolic of [4, 5, 2] on 1000 rows, 6 functions": (
        lambda provider: formulas(provider, [4, 5, 2], 1000, LIB),
        1,
        1,
    ),
    "pykan, auto_symbolic of [2, 1, 1] on 10 000 rows, 6 functions": (
        lambda provider: formulas(provider, [2, 1, 1], 10_000, LIB),
        1,
        1,
    ),
    "pykan, fix_symbolic with a function of the user's, 1000 rows": (own_function, 2, 1),
}


def seconds(job: Job) -> float:
    with contextlib.redirect_stderr(io.StringIO()):  # hides pykan's progress bar
        start = time.perf_counter()
        job()
        return time.perf_counter() - start


def time_long(name: str, rounds: int) -> Iterable[Record]:
    """Time the jobs of the providers in turn."""
    make, of_peer, steps = LONG[name]
    taken: dict[str, list[float]] = {provider: [] for provider in PROVIDERS}
    seconds(make("accelerated"))  # keeps imports and first allocations out of the timings
    for number in range(rounds):
        for provider in PROVIDERS:
            if provider == "accelerated" or number < of_peer:
                taken[provider].append(seconds(make(provider)) / steps)
    for provider, times in taken.items():
        best, middle = 1e3 * min(times), 1e3 * statistics.median(times)
        yield {"provider": provider, "median_ms": middle, "min_ms": best, "samples": len(times)}


def step(provider: str, widths: list[int], rows: int) -> Job:
    """Return a training step of efficient-kan's network with cross-entropy and Adam."""
    net = peer_layers.KAN(widths)
    if provider == "accelerated":
        kk.accelerate(net)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    x, labels = torch.rand(rows, widths[0]) * 2 - 1, torch.randint(0, widths[-1], (rows,))

    def run() -> None:
        optimizer.zero_grad()
        F.cross_entropy(net(x), labels).backward()
        optimizer.step()

    return run


# Steps that take milliseconds: name -> widths, rows.
SHORT: dict[str, tuple[list[int], int]] = {
    "efficient-kan, [64, 64, 10], batch 64, Adam, a step": ([64, 64, 10], 64),
    "efficient-kan, [784, 64, 10], batch 256, Adam, a step": ([784, 64, 10], 256),
    "efficient-kan, [64, 64, 64], batch 4096, Adam, a step": ([64, 64, 64], 4096),
}


def time_short(name: str, rounds: int) -> Iterable[Record]:
    calls = {provider: step(provider, *SHORT[name]) for provider in PROVIDERS}
    for provider, timing in alternate(calls, 3 * rounds, budget=3.0).items():
        yield {"provider": provider, "median_ms": 1e3 * timing.median, "min_ms": 1e3 * timing.min, "samples": timing.samples}


# The time of `accelerate`, compared with a training step of the original network on 1000 rows.
ONCE: dict[str, tuple[str, list[int]]] = {
    "accelerate of pykan's [2, 5, 1] (before: a step)": ("pykan", [2, 5, 1]),
    "accelerate of pykan's [4, 100, 100, 100, 1] (before: a step)": ("pykan", [4, 100, 100, 100, 1]),
    "accelerate of pykan's [784, 64, 10] (before: a step)": ("pykan", [784, 64, 10]),
    "accelerate of efficient-kan's [2, 5, 1] (before: a step)": ("efficient-kan", [2, 5, 1]),
    "accelerate of efficient-kan's [784, 64, 10] (before: a step)": ("efficient-kan", [784, 64, 10]),
}


def time_once(name: str, rounds: int) -> Iterable[Record]:
    """Time a step before `accelerate`, and `accelerate` itself.

    `accelerate` needs an original network, so `restore` follows every call.
    """
    peer, widths = ONCE[name]
    net = network("peer", widths, 5) if peer == "pykan" else peer_layers.KAN(widths)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    x = torch.rand(1000, widths[0]) * 2 - 1

    def run() -> None:
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()

    def accelerated() -> None:
        kk.restore(kk.accelerate(net))

    for provider, call in (("peer", run), ("accelerated", accelerated)):
        call()
        times = [seconds(call) for _ in range(rounds)]
        middle, best = 1e3 * statistics.median(times), 1e3 * min(times)
        yield {"provider": provider, "median_ms": middle, "min_ms": best, "samples": rounds}


# Two steps of `fit` with lamb and a grid update. pykan itself runs only with few rows.
MEMORY = {f"pykan, [8, 16, 32, 16, 8, 1], G = 15, Adam, lamb, {rows} rows": rows for rows in (90, 2000, 100_000)}
MOST_ROWS_OF_PYKAN = 2000


def two_steps(provider: str, rows: int) -> Job:
    net = network(provider, [8, 16, 32, 16, 8, 1], 15)
    x = torch.rand(rows, 8) * 2 - 1
    y = x.square().sum(1, keepdim=True)
    data = {"train_input": x, "train_label": y, "test_input": x[:90], "test_label": y[:90]}
    return lambda: net.fit(data, opt="Adam", steps=2, lr=1e-3, lamb=1e-3)


def peaks(name: str, threads: int) -> Iterable[Record]:
    rows = MEMORY[name]
    for provider in PROVIDERS:
        if provider == "accelerated" or rows <= MOST_ROWS_OF_PYKAN:
            yield {"provider": provider, "peak_mb": peak_megabytes(two_steps, (provider, 16), (provider, rows), threads)}


def measure(name: str, rounds: int, threads: int) -> list[Record]:
    timed = dict.fromkeys(LONG, time_long) | dict.fromkeys(SHORT, time_short) | dict.fromkeys(ONCE, time_once)
    found = peaks(name, threads) if name in MEMORY else timed[name](name, rounds)
    common = {"case": name, "threads": threads, "dtype": "float32", "machine": describe()}
    return [common | record for record in found]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5, help="samples of every accelerated job")
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--out", type=Path, help="file to append to")
    arguments = parser.parse_args()
    out = (arguments.out or RESULTS / f"{describe()['date']}-cpu-peers.jsonl").resolve()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # pykan writes files into the working directory
        os.mkdir("model")
        for name in tqdm([name for name in (*LONG, *SHORT, *ONCE, *MEMORY) if arguments.only in name]):
            records = measure(name, arguments.rounds, arguments.threads)
            append(out, records)
            told = ", ".join(f"{r['provider']} {r.get('median_ms', r.get('peak_mb')):.4g}" for r in records)
            tqdm.write(f"{name}: {told}")
        os.chdir("/")
    print(f"Appended to {out}")


if __name__ == "__main__":
    main()
