"""Time efficient-kan's layer, the same layer after `accelerate`, and a native layer, to find replacements that are slower.

`python bench/replace.py [--threads 2] [--rounds 5] [--only WORDS] [--out FILE]`. The real efficient-kan must be importable,
or the environment variable EFFICIENT_KAN must name a checkout of it. Measurements are appended to
bench/results/<date>-cpu-replace-<instruction set>-<threads>.jsonl, which table.py reads.
"""

import argparse
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType

import torch
from machine import describe, limit_to
from real_peers import Missing, efficient_kan
from records import RESULTS, Record, append
from timing import alternate
from torch import Tensor, nn
from tqdm import tqdm

import kan_kernels as kk

SHAPES = ((16, 16), (64, 64), (256, 256), (512, 512), (1024, 1024), (768, 3072))
ROWS = (1, 16, 64, 256, 4096)
GRIDS = (5, 20)
OTHER_DEGREES = (1, 2, 4, 5, 6, 7)
FEWER_ROWS = ROWS[:-1]  # for the other degrees and float64
MOST_BASES = 60_000_000  # the largest N I M; beyond it, efficient-kan's tensors of bases take too long
BUDGET = 0.5  # seconds for the samples of a provider


@dataclass(frozen=True)
class Layer:
    """The sizes of a layer and its batch."""

    I: int  # noqa: E741
    O: int  # noqa: E741
    N: int
    G: int = 5
    K: int = 3
    dtype: str = "float32"

    def __str__(self) -> str:
        return f"{self.I}→{self.O}, N={self.N}, G={self.G}, K={self.K}, {self.dtype}"


def layers() -> Iterator[Layer]:
    """Yield every shape and batch for degree 3, and every other degree and float64 for a small and a large layer."""
    for inputs, outputs in SHAPES:
        for rows in ROWS:
            for grid_size in GRIDS:
                yield Layer(inputs, outputs, rows, grid_size)
    for size in (64, 512):
        for rows in FEWER_ROWS:
            for degree in OTHER_DEGREES:
                yield Layer(size, size, rows, K=degree)
            for grid_size in GRIDS:
                yield Layer(size, size, rows, grid_size, dtype="float64")


def providers(peer: ModuleType, case: Layer) -> dict[str, nn.Module]:
    """Return the three layers with equal weights."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(getattr(torch, case.dtype))
    try:
        torch.manual_seed(0)
        theirs = peer.KANLinear(case.I, case.O, grid_size=case.G, spline_order=case.K)
        accelerated = peer.KANLinear(case.I, case.O, grid_size=case.G, spline_order=case.K)
        native = kk.KANLinear(case.I, case.O, grid_size=case.G, spline_order=case.K)
    finally:
        torch.set_default_dtype(before)
    for layer in (accelerated, native):
        layer.load_state_dict(theirs.state_dict())
    kk.accelerate(accelerated)
    if type(accelerated) is peer.KANLinear:
        raise SystemExit(f"{case}: accelerate left the layer: {kk.info().fallbacks}")
    return {"efficient-kan": theirs, "accelerated": accelerated, "native": native}


def calls(layer: nn.Module, x: Tensor, g: Tensor) -> dict[str, Callable[[], object]]:
    """Return a forward and a training step without an optimizer."""
    leaves = [x, *layer.parameters()]

    def forward() -> None:
        with torch.no_grad():
            layer(x)

    return {"forward": forward, "step": lambda: torch.autograd.grad(layer(x), leaves, g)}


def measure(peer: ModuleType, case: Layer, rounds: int) -> Iterator[Record]:
    dtype = getattr(torch, case.dtype)
    x = (torch.rand(case.N, case.I, dtype=dtype) * 2 - 1).requires_grad_()
    g = torch.randn(case.N, case.O, dtype=dtype)
    found = {name: calls(layer, x, g) for name, layer in providers(peer, case).items()}
    expected = found["efficient-kan"]["step"]()
    for name in ("accelerated", "native"):
        for ours, theirs in zip(found[name]["step"](), expected, strict=True):
            if not torch.allclose(ours, theirs, rtol=1e-3, atol=1e-3 * float(theirs.abs().max())):
                raise SystemExit(f"{case}: {name} computes other gradients: not timed")
    for mode in ("forward", "step"):
        timings = alternate({name: by_mode[mode] for name, by_mode in found.items()}, rounds, BUDGET)
        for name, timing in timings.items():
            yield {"mode": mode, "provider": name, "median_ms": 1e3 * timing.median, "min_ms": 1e3 * timing.min}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", default="", help="cases whose name contains this")
    parser.add_argument("--out", type=Path, help="file to append to")
    parser.add_argument("--isa", help="limit all libraries to this instruction set, e.g. avx2")
    arguments = parser.parse_args()
    limit_to(arguments.isa)
    torch.set_num_threads(arguments.threads)
    try:
        peer, commit = efficient_kan()
    except Missing as missing:
        raise SystemExit(str(missing)) from missing
    machine = describe()
    out = arguments.out or RESULTS / f"{machine['date']}-cpu-replace-{machine['instruction_set']}-{arguments.threads}.jsonl"
    cases = [case for case in layers() if arguments.only in str(case) and case.N * case.I * (case.G + case.K) <= MOST_BASES]
    for case in tqdm(cases):
        records = list(measure(peer, case, arguments.rounds))
        common = {"case": str(case), **asdict(case), "threads": arguments.threads, "efficient_kan": commit, "machine": machine}
        append(out, [common | record for record in records])
        times = {(r["mode"], r["provider"]): r["median_ms"] for r in records}
        told = ", ".join(
            f"{mode} {times[mode, 'efficient-kan'] / times[mode, 'accelerated']:.2f}x" for mode in ("forward", "step")
        )
        tqdm.write(f"{case}, {arguments.threads} threads: {told}")
    print(f"Appended to {out}")


if __name__ == "__main__":
    main()
