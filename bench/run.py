"""Time the KAN layer against its peers on the shapes of tests/cases.py, after a correctness check.

`make bench`, or `python bench/run.py [--cases square-64,grid-20] [--threads 1,2] [--rounds 15] [--isa avx2] [--out
FILE]`. Measurements are appended to bench/results/<date>-cpu-<instruction set>.jsonl, which table.py and plot.py read.
"""

import argparse
import os
import sys
from pathlib import Path

import torch
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import gate
import machine
from baselines import BASELINES, Baseline, Unavailable, build
from cases import BENCH_CASES, Case, make
from memory import step_megabytes
from records import RESULTS, Record, append
from timing import alternate

MODES = ("forward", "step")
SECONDS = 0.7  # for the samples of one baseline in one mode
IDLE_LOAD = 0.5


def measure(name: str, case: Case, threads: int, rounds: int, progress: tqdm) -> list[Record]:
    """Check the case, then time every available baseline, then measure their memory."""

    def stage(text: str) -> None:
        progress.set_description(f"{name}, {threads} threads: {text}")

    stage("gate")
    gate.check(name, case)
    baselines = available(name, case)
    versions = {baseline.name: baseline.version for baseline in baselines}
    records = []
    for mode in MODES:
        stage(mode)
        timings = alternate({b.name: getattr(b, mode) for b in baselines}, rounds, SECONDS)
        for provider, timing in timings.items():
            record: Record = {"case": name, "N": case.N, "I": case.I, "O": case.O, "G": case.G, "K": case.K, "mode": mode}
            record |= {"provider": provider, "median_ms": 1e3 * timing.median, "min_ms": 1e3 * timing.min}
            record |= {"quartiles_ms": [1e3 * quartile for quartile in timing.quartiles]}
            record |= {"samples": timing.samples, "peak_mb": None, "threads": threads, "dtype": "float32"}
            record["version"] = versions[provider]
            records.append(record | {"machine": machine.describe()})
    del baselines
    for record in records:
        if record["mode"] == "step":
            stage(f"memory, {record['provider']}")
            record["peak_mb"] = step_megabytes(record["provider"], case, threads)
    return records


def available(name: str, case: Case) -> list[Baseline]:
    tensors = make(case, torch.float32)
    baselines = []
    for provider in BASELINES:
        try:
            baselines.append(build(provider, case, tensors))
        except Unavailable as reason:  # noqa: PERF203
            tqdm.write(f"{name}: without {provider}: {reason}")
    return baselines


def table(name: str, case: Case, records: list[Record]) -> str:
    """Return one line per provider: its times and how many times slower it is than kan_kernels."""
    by_key = {(r["provider"], r["mode"]): r for r in records}
    lines = [
        f"\n{name}: N={case.N} I={case.I} O={case.O} G={case.G} K={case.K}, {records[0]['threads']} threads",
        f"{'':<28}{'forward ms':>12}{'':>8}{'step ms':>12}{'':>8}{'peak MB':>10}",
    ]
    for provider in dict.fromkeys(r["provider"] for r in records):
        line = f"  {provider:<26}"
        for mode in MODES:
            median = by_key[provider, mode]["median_ms"]
            line += f"{median:>12.3f}{median / by_key['kan_kernels', mode]['median_ms']:>7.2f}x"
        peak = by_key[provider, "step"]["peak_mb"]
        lines.append(line + ("       n/a" if peak is None else f"{peak:>10.1f}"))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", default="all", help=f"comma-separated, of {', '.join(BENCH_CASES)}; or all")
    parser.add_argument("--threads", default=str(torch.get_num_threads()), help="comma-separated thread counts")
    parser.add_argument("--rounds", type=int, default=15, help="samples of every baseline, fewer of slow ones")
    parser.add_argument("--isa", help="limit all libraries to this instruction set, e.g. avx2")
    parser.add_argument("--out", type=Path, help="file to append to")
    arguments = parser.parse_args()
    machine.limit_to(arguments.isa)

    names = list(BENCH_CASES) if arguments.cases == "all" else arguments.cases.split(",")
    if unknown := set(names) - set(BENCH_CASES):
        parser.error(f"--cases: unknown {', '.join(sorted(unknown))}; there are {', '.join(BENCH_CASES)}")
    thread_counts = [int(count) for count in arguments.threads.split(",")]
    here = machine.describe()
    out = arguments.out or RESULTS / f"{here['date']}-cpu-{here['instruction_set']}.jsonl"

    # If a core is busy, the other threads wait at the barrier for a scheduler tick, 100 times the step of a small layer.
    if hasattr(os, "getloadavg") and (load := os.getloadavg()[0]) > IDLE_LOAD:
        print(f"The machine is or was busy (load {load:.1f}): with several threads, wait until it is idle.")
    with tqdm(total=len(names) * len(thread_counts)) as progress:
        for threads in thread_counts:
            torch.set_num_threads(threads)
            for name in names:
                records = measure(name, BENCH_CASES[name], threads, arguments.rounds, progress)
                append(out, records)
                tqdm.write(table(name, BENCH_CASES[name], records))
                progress.update()
    print(f"\nAppended to {out}")


if __name__ == "__main__":
    main()
