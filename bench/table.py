"""The README's performance table, from a results file.

`python bench/table.py [RESULT.jsonl]` prints it, `--write README.md` puts it between that file's markers, and `--check` fails
unless README.md has it as it would be written.
"""

import argparse
from pathlib import Path

from records import Record, newest, read

README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- bench:begin -->", "<!-- bench:end -->"
GEMMS = ("three GEMMs, torch", "three GEMMs, oneDNN")
# Heading -> the providers of whom the fastest counts.
RIVALS = {
    "reference": ("reference",),
    "reference + torch.compile": ("reference + torch.compile",),
    "pykan": ("pykan",),
    "nn.Linear": ("nn.Linear",),
    "best GEMMs": GEMMS,
}
COMMAND = "python bench/run.py && python bench/table.py --write README.md"


def markdown(records: list[Record]) -> str:
    steps: dict[str, dict[str, Record]] = {}
    for record in records:
        if record["mode"] == "step":
            steps.setdefault(record["case"], {})[record["provider"]] = record
    headings = ["case (I→O, N, G)", "ms per step", *(f"vs {rival}" for rival in RIVALS), "peak MB", "peak MB, reference"]
    rows = [headings, ["---"] + ["---:"] * (len(headings) - 1), *(row(name, step) for name, step in steps.items())]
    return "\n".join([*(f"| {' | '.join(cells)} |" for cells in rows), "", footnote(records)])


def row(name: str, step: dict[str, Record]) -> list[str]:
    ours = step["kan_kernels"]
    cells = [f"{name} ({ours['I']}→{ours['O']}, {ours['N']}, {ours['G']})", f"{ours['median_ms']:.3g}"]
    for providers in RIVALS.values():
        times = [step[provider]["median_ms"] for provider in providers if provider in step]
        cells.append(f"{min(times) / ours['median_ms']:.2f}x" if times else "-")
    return cells + [megabytes(step.get(provider)) for provider in ("kan_kernels", "reference")]


def megabytes(record: Record | None) -> str:
    return "n/a" if record is None or record["peak_mb"] is None else f"{record['peak_mb']:.1f}"


def footnote(records: list[Record]) -> str:
    last = records[-1]
    machine = last["machine"]
    return (
        f"vs: how many times faster than that. {last['dtype']}, {last['threads']} threads on {machine['cpu']}"
        f" ({machine['cores']} cores, {machine['instruction_set'] or 'no C++'} kernels), kan_kernels {machine['kan_kernels']},"
        f" torch {machine['torch']}, Python {machine['python']}, {machine['date']}. Reproduce: `{COMMAND}`."
    )


def with_table(document: str, table: str) -> str:
    head, begin, rest = document.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not (begin and end):
        raise SystemExit(f"no {BEGIN} ... {END} to put the table between")
    return f"{head}{BEGIN}\n{table}\n{END}{tail}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", nargs="?", type=Path, help="by default the newest of bench/results/")
    parser.add_argument("--write", type=Path, metavar="FILE", help="put the table into this file")
    parser.add_argument("--check", action="store_true", help="exit with 1 unless README.md is up to date")
    arguments = parser.parse_args()

    table = markdown(read(arguments.result or newest()))
    if arguments.check and README.read_text() != with_table(README.read_text(), table):
        raise SystemExit(f"{README.name}: the performance table is out of date: {COMMAND.rpartition('&& ')[2]}")
    if arguments.write:
        arguments.write.write_text(with_table(arguments.write.read_text(), table))
    elif not arguments.check:
        print(table)


if __name__ == "__main__":
    main()
