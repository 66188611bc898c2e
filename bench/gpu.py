"""Time the KAN layer on a GPU against its peers, in every precision of float32 products, after a correctness check.

`make gpu`, or `python bench/gpu.py [--cases "64;256"] [--precisions highest] [--providers kan_kernels] [--out FILE]`.
Measurements are appended to bench/results/<date>-gpu.jsonl, which table.py reads. The script needs only torch and triton; the
libraries of real_peers.py and pykan are measured if they can be imported.

`make gpu DRY=1`, or `TRITON_INTERPRET=1 python bench/gpu.py --dry-run`, runs the same code without a GPU: tiny cases on the
CPU in Triton's interpreter. Their times are meaningless and are not saved.
"""

import argparse
import gc
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import triton

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import gate
import machine
from baselines import Baseline, Layer, Unavailable, build
from cases import GPU_BENCH_CASES, Case, Tensors, make
from records import RESULTS, Record, append
from roofline import PRECISIONS

import kan_kernels as kk

PROVIDERS = ("kan_kernels", "nn.Linear", "nn.Linear(I, O)", "three GEMMs, torch", "reference", "efficient-kan", "fast-kan")
COMPILED = ("reference + torch.compile", "inkan")  # compiling takes a minute per shape, so in one precision only
LINEAR = ("nn.Linear", "nn.Linear(I, O)", "three GEMMs, torch")
CAPTURED = ("kan_kernels", "nn.Linear", "nn.Linear(I, O)", "efficient-kan")  # also timed in a CUDA graph
MODES = ("forward", "step")
BASES_BYTES = 24e9  # limit for the temporaries of layers that store the bases
DRY_RUN = {"tiny": Case(7, 3, 5), "one-row": Case(1, 2, 3)}


class Gpu:
    """Measures time and memory on a GPU."""

    name = "cuda"

    def milliseconds(self, call) -> float:
        """Return the median time. The cache is flushed between calls."""
        from triton.testing import do_bench

        return do_bench(call, warmup=10, rep=50, return_mode="median")

    def graph_milliseconds(self, call) -> float:
        """Return the median time of a CUDA graph of the call, which has no launch overhead."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            call()
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            kept = call()
        milliseconds = self.milliseconds(graph.replay)
        del kept
        return milliseconds

    def peak_megabytes(self, call) -> float:
        """Return the peak of the memory that a call allocates, including its results."""
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        kept = call()
        torch.cuda.synchronize()
        peak = torch.cuda.max_memory_allocated() - before
        del kept
        return peak / 2**20

    def free(self) -> None:
        gc.collect()
        torch.cuda.empty_cache()


class DryRun:
    """Replaces the GPU by the CPU and calls everything once."""

    name = "cpu"

    def milliseconds(self, call) -> float:
        start = time.perf_counter()
        call()
        return 1e3 * (time.perf_counter() - start)

    graph_milliseconds = milliseconds

    def peak_megabytes(self, call) -> float:
        call()
        return 0.0

    def free(self) -> None:
        gc.collect()


def measure(device: Gpu | DryRun, name: str, case: Case, t: Tensors, precision: str, providers: Sequence[str]) -> list[Record]:
    """Measure the median time and peak memory of the providers in both modes."""
    records = []
    for provider in providers:
        if provider in COMPILED and precision != "highest":
            continue
        if provider not in ("kan_kernels", *LINEAR) and 4 * case.N * case.I * (case.M + 1) * 8 > BASES_BYTES:
            continue
        try:
            baseline = build(provider, case, t)
        except Unavailable:
            continue
        for mode in MODES:
            record: Record = {"case": name, "N": case.N, "I": case.I, "O": case.O, "G": case.G, "K": case.K, "mode": mode}
            record |= {"provider": provider, "version": baseline.version, "precision": precision, "threads": 0}
            try:
                record |= times(device, baseline, mode, provider in CAPTURED)
            except torch.OutOfMemoryError:
                print(f"{name}: {provider} needs more memory than there is", file=sys.stderr)
                continue
            records.append(record | {"machine": machine.describe() | {"triton": triton.__version__}})
        del baseline
        device.free()
    return records


def times(device: Gpu | DryRun, baseline: Baseline, mode: str, captured: bool) -> Record:
    call = getattr(baseline, mode)
    return {
        "median_ms": device.milliseconds(call),
        "graph_ms": device.graph_milliseconds(call) if captured else None,
        "peak_mb": device.peak_megabytes(call) if isinstance(baseline, Layer) else None,
    }


def table(records: list[Record]) -> str:
    """Return one line per provider: its time, how many times slower it is than kan_kernels, and its time in a CUDA graph."""
    ours = {(r["precision"], r["mode"]): r["median_ms"] for r in records if r["provider"] == "kan_kernels"}
    lines = []
    for r in records:
        ratio = r["median_ms"] / ours.get((r["precision"], r["mode"]), float("nan"))
        peak = "" if r["peak_mb"] is None else f"{r['peak_mb']:8.0f} MB"
        graph = "" if r["graph_ms"] is None else f"{r['graph_ms']:10.4f} ms in a graph"
        who = f"{r['precision']:8} {r['mode']:8} {r['provider']:26}"
        lines.append(f"  {who}{r['median_ms']:10.4f} ms{ratio:7.2f}x{peak}{graph}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", help="separated by ;")
    parser.add_argument("--precisions", default=",".join(PRECISIONS))
    parser.add_argument("--providers", help="separated by ;", default=";".join(PROVIDERS + COMPILED + ("pykan",)))
    parser.add_argument("--dry-run", action="store_true", help="tiny cases on the CPU, in Triton's interpreter")
    parser.add_argument("--out", type=Path, help="file to append to")
    arguments = parser.parse_args()
    device: Gpu | DryRun = DryRun() if arguments.dry_run else Gpu()
    cases = DRY_RUN if arguments.dry_run else GPU_BENCH_CASES
    if arguments.dry_run and os.environ.get("TRITON_INTERPRET", "0") != "1":
        raise SystemExit("--dry-run needs TRITON_INTERPRET=1 in the environment")
    if not arguments.dry_run and not torch.cuda.is_available():
        raise SystemExit("no GPU here: nothing to measure; --dry-run runs everything without one")
    out = arguments.out or (None if arguments.dry_run else RESULTS / f"{machine.describe()['date']}-gpu.jsonl")
    with kk.use_backend("triton"):
        for name in arguments.cases.split(";") if arguments.cases else cases:
            run(device, name, cases[name], arguments.precisions.split(","), arguments.providers.split(";"), out)


def run(device: Gpu | DryRun, name: str, case: Case, precisions: list[str], providers: list[str], out: Path | None) -> None:
    t = make(case, torch.float32).on(device.name)
    for precision in precisions:
        torch.set_float32_matmul_precision(precision)
        if precision == "highest":
            gate.check(name, case, device.name)
            device.free()
        records = measure(device, name, case, t, precision, providers)
        if out is not None:
            append(out, records)
        print(f"{name}: N={case.N} I={case.I} O={case.O} G={case.G}\n{table(records)}", flush=True)


if __name__ == "__main__":
    main()
