"""Time the layer against itself with another dtype, degree, kind of knots, width or number of threads.

`make bench`, or `python bench/variants.py [--threads 2] [--rounds 15] [--out FILE]`. Measurements are appended to
bench/results/<date>-cpu-variants.jsonl, which table.py reads.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from baselines import build
from cases import BENCH_CASES, Case, make
from machine import describe
from records import RESULTS, Record, append
from timing import alternate

import kan_kernels as kk

SQUARE = BENCH_CASES["square-64"]
WIDE = BENCH_CASES["wide-input"]
FINE = BENCH_CASES["grid-100"]
HALF_DTYPES = (torch.bfloat16, torch.float16)
# Name of the comparison -> its contenders. Times are relative to the first contender.
COMPARISONS: dict[str, dict[str, tuple[Case, torch.dtype]]] = {
    f"dtype, {case.I}→{case.O} at {case.N}": {
        str(dtype).removeprefix("torch."): (case, dtype) for dtype in (torch.float32, torch.float64, *HALF_DTYPES)
    }
    for case in (SQUARE, WIDE)
}
COMPARISONS |= {
    f"knots, {case.I}→{case.O} at {case.N}, G={case.G}": {
        knots: (replace(case, knots=knots), torch.float32) for knots in ("uniform", "adaptive")
    }
    for case in (SQUARE, WIDE, BENCH_CASES["grid-20"], FINE)
}
COMPARISONS["degree, 64→64 at 4096"] = {f"K={K}": (replace(SQUARE, K=K), torch.float32) for K in (3, 1, 2, 4, 5)}
# Times per edge, which should not jump from one width to the next.
NEIGHBOURS = {
    "outputs of 64, per edge": [replace(SQUARE, O=outputs) for outputs in (64, 63, 65, 80, 96, 128)],
    "few outputs of 64, per edge": [replace(SQUARE, O=outputs) for outputs in (16, 17, 15, 13, 12, 10, 8)],
    "256 inputs, per edge": [Case(4096, 256, outputs, points="inside") for outputs in (2, 1)],
    "one input, per edge": [Case(4096, 1, outputs, points="inside") for outputs in (256, 128, 255)],
    "wide layers at 256, per edge": [
        Case(256, inputs, outputs, points="inside") for inputs, outputs in ((256, 64), (784, 64), (64, 784), (64, 256))
    ],
}


def step(case: Case, dtype: torch.dtype) -> Callable[[], object]:
    t = make(case, dtype)
    leaves = [leaf.detach().requires_grad_() for leaf in (t.x, t.spline_weight, t.base_weight) if leaf is not None]
    x, spline_weight, base_weight = leaves
    return lambda: torch.autograd.grad(kk.kan_linear(x, spline_weight, t.grid, base_weight), leaves, t.g)


def threads_of(case: Case, count: int) -> Callable[[], object]:
    compute = step(case, torch.float32)

    def run() -> None:
        torch.set_num_threads(count)
        compute()

    return run


def measure(
    name: str, calls: dict[str, Callable[[], object]], sizes: dict[str, int], rounds: int, threads: int
) -> list[Record]:
    records: list[Record] = []
    for variant, timing in alternate(calls, rounds, budget=0.7).items():
        per_edge = timing.median / sizes[variant]
        first = records[0]["ns_per_edge"] if records else 1e9 * per_edge
        record: Record = {"comparison": name, "variant": variant, "median_ms": 1e3 * timing.median}
        record |= {"ns_per_edge": 1e9 * per_edge, "ratio": 1e9 * per_edge / first, "threads": threads, "machine": describe()}
        records.append(record)
    return records


def edges(case: Case) -> int:
    return case.N * case.I * case.O


def parse(description: str | None) -> argparse.Namespace:
    """Parse the command line and set the number of threads."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=15, help="samples of every contender")
    parser.add_argument("--out", type=Path, help="file to append to")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    return arguments


def compare(work: dict[str, dict[str, tuple[Case, Callable[[], object]]]], arguments: argparse.Namespace, kind: str) -> None:
    """Measure the contenders of every comparison and append to results/<date>-<kind>.jsonl."""
    out = arguments.out or RESULTS / f"{describe()['date']}-{kind}.jsonl"
    for name, contenders in tqdm(work.items()):
        calls = {variant: call for variant, (_, call) in contenders.items()}
        sizes = {variant: edges(case) for variant, (case, _) in contenders.items()}
        records = measure(name, calls, sizes, arguments.rounds, arguments.threads)
        torch.set_num_threads(arguments.threads)
        append(out, records)
        tqdm.write(f"{name}: " + ", ".join(f"{r['variant']} {r['median_ms']:.3f} ms ({r['ratio']:.2f})" for r in records))
    print(f"Appended to {out}")


def main() -> None:
    arguments = parse(__doc__)
    work: dict[str, dict[str, tuple[Case, Callable[[], object]]]] = {}
    for name, contenders in COMPARISONS.items():
        work[name] = {variant: (case, step(case, dtype)) for variant, (case, dtype) in contenders.items()}
    for name, cases in NEIGHBOURS.items():
        work[name] = {f"{case.I}→{case.O}": (case, step(case, torch.float32)) for case in cases}
    for case in (SQUARE, BENCH_CASES["square-256"]):
        for dtype in (torch.bfloat16, torch.float32):
            work[f"{str(dtype).removeprefix('torch.')}, {case.I}→{case.O} at {case.N}"] = {
                "KANLinear": (case, step(case, dtype)),
                f"nn.Linear {case.I * (case.M + 1)}→{case.O}": (case, build("nn.Linear", case, make(case, dtype)).step),
            }
    for name in ("square-64", "square-256", "grid-20"):
        case = BENCH_CASES[name]
        counts = sorted({1, arguments.threads})
        work[f"threads, {case.I}→{case.O}, G={case.G}"] = {str(n): (case, threads_of(case, n)) for n in counts}
    compare(work, arguments, "cpu-variants")


if __name__ == "__main__":
    main()
