"""Time each stage of the CPU kernels separately, on one thread, and compare it with the processor's multiply-add peak.

`make bench`, or `python bench/stages.py [--isa avx2] [--out FILE]`; needs a C++17 compiler ($CXX, c++). Measurements are
appended to bench/results/<date>-cpu-stages-<instruction set>.jsonl, which table.py reads.
"""

import argparse
import os
import statistics
import subprocess
import tempfile
from collections import defaultdict
from pathlib import Path

from machine import describe, limit_to
from records import RESULTS, Record, append

SOURCE = Path(__file__).parent / "stages.cpp"
FLAGS = ("-std=c++17", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi")  # as in setup.py
# The flags apply to the whole program, not only to the kernels: clang inlines only between functions with the same target.
AVX2 = ("-mavx2", "-mfma", "-mf16c", "-mbmi", "-mbmi2")
AVX512 = (*AVX2, "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl")
TARGETS = {"baseline": (), "avx2": ("-DKAN_STAGES_AVX2", *AVX2), "avx512": ("-DKAN_STAGES_AVX512", *AVX512)}
SHAPES = ((4096, 64, 64, 5, 3), (4096, 256, 256, 5, 3), (4096, 64, 64, 20, 3), (2048, 64, 64, 100, 3), (4096, 64, 10, 5, 3))
RUNS = 5  # runs of the whole program, which reduce the effect of noise


def compile_to(binary: Path, instruction_set: str) -> None:
    compiler = [os.environ.get("CXX", "c++"), *FLAGS, *TARGETS[instruction_set], f"-I{SOURCE.parent.parent / 'csrc'}"]
    subprocess.run([*compiler, str(SOURCE), "-o", str(binary)], check=True)


def measure(binary: Path, shape: tuple[int, ...], machine: Record) -> list[Record]:
    """Return medians over the runs. `limit_ms` is the time of a stage's multiply-adds at the peak rate."""
    times: dict[str, list[float]] = defaultdict(list)
    work: dict[str, float] = {}
    for _ in range(RUNS):
        lines = subprocess.run([str(binary), *map(str, shape)], check=True, capture_output=True, text=True).stdout.splitlines()
        for line in lines:
            name, milliseconds, multiply_adds = line.split("\t")
            times[name].append(float(milliseconds))
            work[name] = float(multiply_adds)
    peak_ms = statistics.median(times.pop("peak")) / work.pop("peak")  # per billion multiply-adds
    sizes = dict(zip("NIOGK", shape, strict=True))
    return [
        {
            "case": sizes,
            "stage": name,
            "median_ms": statistics.median(samples),
            "limit_ms": work[name] * peak_ms,
            "peak_gflops": 2e3 / peak_ms,
        }
        | {"threads": 1, "machine": machine}
        for name, samples in times.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--isa", help="compile for this instruction set, e.g. avx2")
    parser.add_argument("--out", type=Path, help="file to append to")
    arguments = parser.parse_args()
    limit_to(arguments.isa)
    machine = describe()
    out = arguments.out or RESULTS / f"{machine['date']}-cpu-stages-{machine['instruction_set']}.jsonl"
    with tempfile.TemporaryDirectory() as folder:
        binary = Path(folder) / "stages"
        compile_to(binary, str(machine["instruction_set"]))
        for shape in SHAPES:
            records = measure(binary, shape, machine)
            append(out, records)
            for r in records:
                share = f"{r['limit_ms'] / r['median_ms']:.0%} of the peak" if r["limit_ms"] else ""
                print(f"{shape!s:<24}{r['stage']:<28}{r['median_ms']:>9.3f} ms  {share}")
    print(f"Appended to {out}")


if __name__ == "__main__":
    main()
