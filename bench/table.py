"""Generate the performance tables of README.md and bench/README.md from the newest results.

`python bench/table.py` prints the tables. `--write` inserts each table between its markers in its document, and `--check`
fails unless the documents are up to date.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from cases import GPU_BENCH_CASES
from records import LAYER_KEY, Record, newest, read
from roofline import H200, PRECISIONS, least_milliseconds

ROOT = Path(__file__).parent.parent

SETS = ("avx2", "avx512")
CASE_HEADING = "case (I→O, N, G)"
GEMMS = ("three GEMMs, torch", "three GEMMs, oneDNN")
# Heading -> providers. The tables show the fastest provider of a heading.
RIVALS = {
    "dense reference": ("reference",),
    "dense reference + torch.compile": ("reference + torch.compile",),
    "efficient-kan": ("efficient-kan",),
    "pykan": ("pykan",),
    "inkan": ("inkan",),
    "fast-kan (RBF)": ("fast-kan",),
    "nn.Linear": ("nn.Linear",),
    "best GEMMs": GEMMS,
    "nn.Linear(I, O)": ("nn.Linear(I, O)",),
}


def footnote(records: list[Record]) -> str:
    return f"{setup(records)} Reproduce: `make bench`."


def layers_footnote(records: list[Record]) -> str:
    versions = dict.fromkeys(f"{r['provider']} {r['version']}" for r in records if r.get("version"))
    return " ".join(filter(None, (setup(records), ", ".join(versions) + "." if versions else "", "Reproduce: `make bench`.")))


def setup(records: list[Record]) -> str:
    """Return a sentence with the machine, versions and date of the records."""
    last = records[-1]
    machine = last["machine"]
    return (
        f"float32, {last['threads']} thread{'s' * (last['threads'] > 1)} on {machine['cpu']} ({machine['cores']} cores,"
        f" {machine['instruction_set'] or 'no C++'} kernels), kan_kernels {machine['kan_kernels']}, torch {machine['torch']},"
        f" Python {machine['python']}, {machine['date']}."
    )


@dataclass(frozen=True)
class Block:
    """A table in a document, between markers that contain its name."""

    name: str
    document: Path
    results: str  # results/<date>-<results>.jsonl
    key: tuple[str, ...]  # fields that identify a measurement
    rows: Callable[[list[Record]], list[list[str]]]

    footnote: Callable[[list[Record]], str] = footnote

    def markdown(self) -> str:
        records = self.records()
        headings, *rows = self.rows(records)
        lines = [headings, ["---"] + ["---:"] * (len(headings) - 1), *rows]
        return "\n".join([*(f"| {' | '.join(cells)} |" for cells in lines), "", self.footnote(records)])

    def records(self) -> list[Record]:
        return read(newest(self.results), self.key)

    def put_into(self, text: str) -> str:
        begin, end = f"<!-- {self.name}:begin -->", f"<!-- {self.name}:end -->"
        head, found_begin, rest = text.partition(begin)
        _, found_end, tail = rest.partition(end)
        if not (found_begin and found_end):
            raise SystemExit(f"{self.document.name}: no {begin} ... {end} to put the table between")
        return f"{head}{begin}\n{self.markdown()}\n{end}{tail}"


def layers(mode: str) -> Callable[[list[Record]], list[list[str]]]:
    """Return a function that makes a row per case: ratios to the rivals' times and, in mode "step", the peak memory."""

    def rows(records: list[Record]) -> list[list[str]]:
        by_case: dict[str, dict[str, Record]] = {}
        for record in records:
            if record["mode"] == mode:
                by_case.setdefault(record["case"], {})[record["provider"]] = record
        has_memory = mode == "step"
        memory = ["peak MB", "peak MB, reference"] if has_memory else []
        rivals = {
            name: providers for name, providers in RIVALS.items() if any(p in r for r in by_case.values() for p in providers)
        }
        table = [[CASE_HEADING, "nn.Linear", f"ms per {mode}", *(f"vs {rival}" for rival in rivals), *memory]]
        for results in by_case.values():
            ours = results["kan_kernels"]
            linear = f"{ours['I'] * (ours['G'] + ours['K'] + 1)}→{ours['O']}"
            cells = [case_name(ours), linear, f"{ours['median_ms']:.3g}"]
            for providers in rivals.values():
                times = [results[provider]["median_ms"] for provider in providers if provider in results]
                cells.append(f"{min(times) / ours['median_ms']:.2f}x" if times else "n/a")
            peaks = [megabytes(results.get(provider)) for provider in ("kan_kernels", "reference")]
            table.append(cells + (peaks if has_memory else []))
        return table

    return rows


def case_name(record: Record) -> str:
    """Return the name and the sizes of a case, formatted like `CASE_HEADING`."""
    return "{case} ({I}→{O}, {N}, {G})".format(**record)


def megabytes(record: Record | None) -> str:
    return "n/a" if record is None or record["peak_mb"] is None else f"{record['peak_mb']:.1f}"


def models(records: list[Record]) -> list[list[str]]:
    """Return a row per model: the time of kan_kernels, and the other times with their ratios to it."""
    by_case: dict[str, list[Record]] = {}
    for record in records:
        by_case.setdefault(record["case"], []).append(record)
    table = [["", "kan_kernels, ms", "the others, ms (over kan_kernels')"]]
    for name, results in by_case.items():
        ours = next(r["median_ms"] for r in results if r["provider"] == "kan_kernels")
        others = [
            f"{r['provider']} {r['median_ms']:.3g} ({r['median_ms'] / ours:.2f}x)"
            for r in results
            if r["provider"] != "kan_kernels"
        ]
        table.append([name, f"{ours:.3g}", "; ".join(others)])
    return table


def peers(kind: str, unit: str) -> Callable[[list[Record]], list[list[str]]]:
    """Return a function that makes a row per job.

    A row has the measurement `kind` of the peer before and after `accelerate`, and the ratio of the two.
    """

    def rows(records: list[Record]) -> list[list[str]]:
        by_case: dict[str, dict[str, float]] = {}
        for record in records:
            if kind in record:
                by_case.setdefault(record["case"], {})[record["provider"]] = record[kind]
        table = [["", f"before, {unit}", f"accelerated, {unit}", "times less"]]
        for name, found in by_case.items():
            before, after = found.get("peer"), found["accelerated"]
            cells = ["does not fit", "n/a"] if before is None else [three_digits(before), f"{before / after:.1f}x"]
            table.append([name, cells[0], three_digits(after), cells[1]])
        return table

    return rows


def three_digits(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"


def variants(records: list[Record]) -> list[list[str]]:
    """Return a row per comparison: the time of the first variant, and the ratios of the others to it."""
    by_name: dict[str, list[Record]] = {}
    for record in records:
        by_name.setdefault(record["comparison"], []).append(record)
    table = [["", "of", "ms", "ratio to it"]]
    for name, (first, *others) in by_name.items():
        ratios = ", ".join(f"{r['variant']} {r['ratio']:.2f}" for r in others)
        table.append([name, first["variant"], f"{first['median_ms']:.3g}", ratios])
    return table


def replaced(records: list[Record]) -> list[list[str]]:
    """Return a row per kind of layer and a column per batch.

    A cell states how many times faster the accelerated layer is than efficient-kan's.
    """
    times = {(r["case"], r["mode"], r["provider"]): r["median_ms"] for r in records}
    batches = sorted({r["N"] for r in records})
    by_layer: dict[str, dict[int, str]] = {}
    for r in records:
        layer = "{I}→{O}, G={G}, K={K}".format(**r) + (", float64" if r["dtype"] == "float64" else "")
        ratios = (
            times[r["case"], mode, "efficient-kan"] / times[r["case"], mode, "accelerated"] for mode in ("forward", "step")
        )
        by_layer.setdefault(layer, {})[r["N"]] = " / ".join(f"{ratio:.1f}" for ratio in ratios)
    rows = [[layer, *(cells.get(batch, "-") for batch in batches)] for layer, cells in by_layer.items()]
    return [["forward / step, times faster", *(f"N={batch}" for batch in batches)], *rows]


def replaced_footnote(records: list[Record]) -> str:
    times = {(r["case"], r["mode"], r["provider"]): r["median_ms"] for r in records}
    ratios = sorted(ms / times[case, mode, "native"] for (case, mode, name), ms in times.items() if name == "accelerated")
    gains = sorted(
        times[case, mode, "efficient-kan"] / ms for (case, mode, name), ms in times.items() if name == "accelerated"
    )
    last = records[-1]
    machine, threads = last["machine"], last["threads"]
    return (
        f"The real efficient-kan, commit {last['efficient_kan']}: {len(gains)} comparisons, least {gains[0]:.2f}x, median"
        f" {gains[len(gains) // 2]:.2f}x. An accelerated layer takes {ratios[len(ratios) // 2]:.2f} of a native one's time"
        f" (median; {ratios[len(ratios) // 20]:.2f} to {ratios[-1 - len(ratios) // 20]:.2f} for nine in ten)."
        f" {threads} thread{'s' * (threads > 1)} on {machine['cpu']} ({machine['cores']} cores, {machine['instruction_set']}"
        f" kernels), torch {machine['torch']}, {machine['date']}. Reproduce: `python bench/replace.py --threads {threads}`."
    )


def stages(records: list[Record]) -> list[list[str]]:
    """Return a row per stage and a column per shape: milliseconds, and the share of the peak that the stage reaches."""
    shapes = list(dict.fromkeys(shape_of(r) for r in records))
    by_stage: dict[str, dict[str, str]] = {}
    for r in records:
        share = f" ({r['limit_ms'] / r['median_ms']:.0%})" if r["limit_ms"] else ""
        by_stage.setdefault(r["stage"], {})[shape_of(r)] = f"{r['median_ms']:.3g}{share}"
    peak = records[-1]["peak_gflops"]
    rows = [[stage, *(cells[shape] for shape in shapes)] for stage, cells in by_stage.items()]
    return [[f"ms (share of the {peak:.0f} GFLOP/s peak)", *shapes], *rows]


GPU_RIVALS = ("nn.Linear", "nn.Linear(I, O)", "efficient-kan", "fast-kan", "pykan", "reference")


def gpu(records: list[Record]) -> list[list[str]]:
    """Return a row per case and precision: times, the limits of the roofline, and the ratios of the rivals' steps."""
    found = {(r["case"], r["precision"], r["mode"], r["provider"]): r for r in records}
    headings = ["case (I→O, N, G)", "precision", "forward, ms", "limit", "step, ms", "limit", "launched, ms"]
    table = [[*headings, *(f"vs {rival}" for rival in GPU_RIVALS), "peak MB"]]
    for name, case in GPU_BENCH_CASES.items():
        for precision in PRECISIONS:
            ours = {mode: found.get((name, precision, mode, "kan_kernels")) for mode in ("forward", "step")}
            if None in ours.values():
                continue
            cells = [f"{name} ({case.I}→{case.O}, {case.N}, {case.G})", precision]
            for mode, record in ours.items():
                cells += [f"{device_ms(record):.3g}", f"{least_milliseconds(case, precision, mode):.3g}"]
            cells.append(f"{ours['step']['median_ms']:.3g}")
            for rival in GPU_RIVALS:
                record = found.get((name, precision, "step", rival))
                cells.append(f"{times_as_long(record, ours['step']):.2f}x" if record else "n/a")
            table.append([*cells, megabytes(ours["step"])])
    return table


def device_ms(record: Record) -> float:
    """Return the time in a CUDA graph, or the time of the call if it was not captured because its kernels are large."""
    return record["graph_ms"] or record["median_ms"]


def times_as_long(rival: Record, ours: Record) -> float:
    """Return the ratio of two times in CUDA graphs, or of two launched calls if the rival was not captured."""
    if rival["graph_ms"]:
        return rival["graph_ms"] / ours["graph_ms"]
    return rival["median_ms"] / ours["median_ms"]


def gpu_footnote(records: list[Record]) -> str:
    machine = records[-1]["machine"]
    return (
        f"float32 on {machine['gpu']}, kan_kernels {machine['kan_kernels']}, torch {machine['torch']}, triton"
        f" {machine['triton']}, {machine['date']}. Limits: `bench/roofline.py`'s for an {H200.name}. Reproduce: `make gpu`."
    )


def shape_of(record: Record) -> str:
    return "{N}, {I}→{O}, G={G}".format(**record["case"])


@dataclass(frozen=True)
class Claims(Block):
    """The README's sentences with numbers, from the newest results of each kind for every instruction set."""

    def markdown(self) -> str:
        steps = [_steps(read(newest(f"cpu-{isa}"), self.key)) for isa in SETS]
        ours = steps[0]["kan_kernels"]
        linear = f"{ours['I'] * (ours['G'] + ours['K'] + 1)}→{ours['O']}"
        gains = "; ".join(_gains(isa) for isa in SETS)
        pykan = read(newest("cpu-peers"), ("case", "provider"))
        pykan_ms = {
            (r["case"], r["provider"]): r["median_ms"] for r in pykan if "median_ms" in r and r["case"].startswith("pykan")
        }
        ratios = sorted(
            before / pykan_ms[case, "accelerated"] for (case, provider), before in pykan_ms.items() if provider == "peer"
        )
        return "\n".join(
            [
                f"- **Fast.** A training step of a {ours['I']}→{ours['O']} layer (G = {ours['G']}, K = {ours['K']},"
                f" {ours['N']} rows), against an `nn.Linear` with as many parameters ({linear}) and other KAN layers:",
                *(f"  - {_step_claim(step)}" for step in steps),
                f"  - {_gpu_claim()}",
                f"- **Small.** The step needs {ours['peak_mb']:.1f} MB beyond its inputs and parameters; dense bases need"
                f" {steps[0]['reference']['peak_mb']:.0f} MB.",
                f"- **A drop-in.** `kk.accelerate(model)` makes efficient-kan's layers faster ({gains}) and pykan's"
                f" fits, grid updates and searches for formulas {ratios[0]:.1f} to {ratios[-1]:.1f} times"
                f" ({processor(pykan[-1])}), with the same outputs and gradients up to rounding.",
            ]
        )


def _steps(records: list[Record]) -> dict[str, Record]:
    """Return the steps of the case that the README names, by provider."""
    return {r["provider"]: r for r in records if (r["case"], r["mode"]) == ("square-64", "step")}


def _step_claim(step: dict[str, Record]) -> str:
    ours = step["kan_kernels"]
    names = {
        "nn.Linear": "`nn.Linear`",
        "efficient-kan": "efficient-kan",
        "pykan": "pykan",
        "reference": "dense bases times a matrix",
    }
    others = [f"{name} {step[p]['median_ms'] / ours['median_ms']:.1f}" for p, name in names.items() if p in step]
    return f"{processor(ours)}: {ours['median_ms']:.1f} ms, and the others take this many times as long: {', '.join(others)}"


def _gains(instruction_set: str) -> str:
    """Return how many times faster layers of efficient-kan are after `accelerate`."""
    records = read(newest(f"cpu-replace-{instruction_set}-2"), ("case", "mode", "provider"))
    ms = {(r["case"], r["mode"], r["provider"]): r["median_ms"] for r in records}
    gains = sorted(t / ms[case, mode, "accelerated"] for (case, mode, name), t in ms.items() if name == "efficient-kan")
    median, least = gains[len(gains) // 2], gains[0]
    return f"{median:.1f} times, median of {len(gains)} comparisons, the least {least:.2f}, {processor(records[-1])}"


def _gpu_claim() -> str:
    """Return the claim about the step of one case on a GPU in torch's default precision."""
    records = read(newest("gpu"), ("case", "precision", "mode", "provider"))
    step = {r["provider"]: r for r in records if (r["case"], r["precision"], r["mode"]) == ("256", "highest", "step")}
    ours, machine = step["kan_kernels"], step["kan_kernels"]["machine"]
    names = {"nn.Linear": "`nn.Linear`", "efficient-kan": "efficient-kan", "fast-kan": "fast-kan", "reference": "dense bases"}
    captured, launched = (
        ", ".join(f"{name} {times_as_long(step[p], ours):.1f}" for p, name in names.items() if p in step and group(step[p]))
        for group in (lambda rival: rival["graph_ms"], lambda rival: not rival["graph_ms"])
    )
    size = f"{ours['I']}→{ours['O']}, {ours['N']} rows, PyTorch's default precision"
    return (
        f"{machine['gpu']}, {size}: {device_ms(ours):.1f} ms in a CUDA graph, and the others take this many"
        f" times as long: {captured};"
        f" {ours['median_ms']:.1f} ms without a graph, and the others take this many times as long: {launched}"
    )


def processor(record: Record) -> str:
    machine, threads = record["machine"], record["threads"]
    return f"{machine['cpu']}, {machine['instruction_set']} kernels, {threads} thread{'s' * (threads > 1)}"


BLOCKS = (
    Claims("claims", ROOT / "README.md", "cpu-avx*", LAYER_KEY, layers("step")),
    *(
        Block(f"bench-{isa}", ROOT / "bench" / "README.md", f"cpu-{isa}", LAYER_KEY, layers("step"), layers_footnote)
        for isa in SETS
    ),
    Block("peers", ROOT / "bench" / "README.md", "cpu-peers", ("case", "provider"), peers("median_ms", "ms")),
    Block("peers-memory", ROOT / "bench" / "README.md", "cpu-peers", ("case", "provider"), peers("peak_mb", "MB")),
    Block("models", ROOT / "bench" / "README.md", "cpu-models", ("case", "provider"), models),
    *(
        Block(f"forward-{isa}", ROOT / "bench" / "README.md", f"cpu-{isa}", LAYER_KEY, layers("forward"), layers_footnote)
        for isa in SETS
    ),
    Block("variants", ROOT / "bench" / "README.md", "cpu-variants", ("comparison", "variant"), variants),
    Block("edges", ROOT / "bench" / "README.md", "cpu-edges", ("comparison", "variant"), variants),
    *(
        Block(
            f"replace-{instruction_set}-{threads}",
            ROOT / "bench" / "README.md",
            f"cpu-replace-{instruction_set}-{threads}",
            ("case", "mode", "provider"),
            replaced,
            replaced_footnote,
        )
        for instruction_set in SETS
        for threads in (2, 1)
    ),
    *(
        Block(f"stages-{isa}", ROOT / "bench" / "README.md", f"cpu-stages-{isa}", ("case", "stage"), stages)
        for isa in ("baseline", *SETS)
    ),
    Block("gpu", ROOT / "bench" / "README.md", "gpu", ("case", "precision", "mode", "provider"), gpu, gpu_footnote),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the tables into their documents")
    parser.add_argument("--check", action="store_true", help="exit with 1 unless the documents are up to date")
    arguments = parser.parse_args()
    for block in BLOCKS:
        if not (arguments.write or arguments.check):
            print(f"{block.document.relative_to(ROOT)}, {block.name}:\n{block.markdown()}\n")
            continue
        before = block.document.read_text()
        after = block.put_into(before)
        if arguments.check and before != after:
            raise SystemExit(
                f"{block.document.relative_to(ROOT)}: table {block.name!r} is out of date: python bench/table.py --write"
            )
        if arguments.write:
            block.document.write_text(after)


if __name__ == "__main__":
    main()
