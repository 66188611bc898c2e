"""Time edge norms, with a forward and a training step for comparison.

`make bench`, or `python bench/edges.py [--threads 2] [--rounds 15] [--out FILE]`. Measurements are appended to
bench/results/<date>-cpu-edges.jsonl, which table.py reads.
"""

import sys
from collections.abc import Callable
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from cases import BENCH_CASES, Case, Tensors, make
from variants import compare, parse, step

import kan_kernels as kk

NAMES = ("square-64", "square-256", "ten-outputs", "grid-20", "grid-100")


def forward(t: Tensors) -> Callable[[], object]:
    return lambda: kk.kan_linear(t.x, t.spline_weight, t.grid, t.base_weight)


def norms(t: Tensors, ord: str) -> Callable[[], object]:
    return lambda: kk.edge_norms(t.x, t.spline_weight, t.grid, t.base_weight, ord)


def norms_step(t: Tensors, ord: str) -> Callable[[], object]:
    """Return a call that computes the norms and their gradients with respect to x and all parameters."""
    leaves = [leaf.detach().clone().requires_grad_() for leaf in (t.x, t.spline_weight, t.base_weight) if leaf is not None]
    x, spline_weight, base_weight = leaves
    return lambda: torch.autograd.grad(kk.edge_norms(x, spline_weight, t.grid, base_weight, ord).sum(), leaves)


def comparisons() -> dict[str, dict[str, tuple[Case, Callable[[], object]]]]:
    found = {}
    for name in NAMES:
        case = BENCH_CASES[name]
        t = make(case, torch.float32)
        shape = f"{case.I}→{case.O} at {case.N}, G={case.G}"
        alone = {"forward": forward(t), "l1": norms(t, "l1"), "std": norms(t, "std")}
        found[f"norms, {shape}"] = {variant: (case, call) for variant, call in alone.items()}
        steps = {"training step": step(case, torch.float32), "l1": norms_step(t, "l1"), "std": norms_step(t, "std")}
        found[f"norms with gradients, {shape}"] = {variant: (case, call) for variant, call in steps.items()}
    return found


def main() -> None:
    arguments = parse(__doc__)
    compare(comparisons(), arguments, "cpu-edges")


if __name__ == "__main__":
    main()
