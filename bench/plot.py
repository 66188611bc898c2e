"""Draw the time of a training step by case and contender with `python bench/plot.py [RESULT.jsonl] [--out FILE]`.

Contenders and cases have the names of the README's tables. A dot is a median. Its line extends from the first to the third
quartile, or down to the fastest sample if the results have no quartiles. Missing measurements are listed beside their case.
"""

import argparse
import textwrap
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from records import RESULTS, Record, newest, read
from table import CASE_HEADING, RIVALS, case_name, setup

MODE = "step"
OURS = "kan_kernels"
COLORS = ("black", "#0072b2", "#56b4e9", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#999999")
MARKERS = "oDdsv^P*<>X"  # more than colors, so that every contender has its own pair


def contenders(records: list[Record]) -> dict[str, tuple[str, ...]]:
    """Return the providers of every contender by its name. The plot shows the fastest provider of a contender.

    The contenders are kan_kernels, the rivals of the tables, and every other provider that was measured.
    """
    named = {OURS: (OURS,), **RIVALS}
    known = {provider for providers in named.values() for provider in providers}
    return named | {r["provider"]: (r["provider"],) for r in records if r["provider"] not in known}


def fastest(records: list[Record]) -> Record | None:
    return min(records, key=lambda record: record["median_ms"], default=None)


def spread(record: Record) -> tuple[float, float]:
    """Return the ends of the record's line in ms."""
    low, high = record.get("quartiles_ms", (record["min_ms"], record["median_ms"]))
    return low, high


def draw(records: list[Record]) -> Figure:
    steps = [record for record in records if record["mode"] == MODE]
    cases = {record["case"]: case_name(record) for record in steps}
    figure = Figure(figsize=(7, 1.9 + 0.27 * len(cases)), layout="constrained")
    axes = figure.subplots()
    missing: dict[str, list[str]] = {case: [] for case in cases}
    for number, (contender, providers) in enumerate(contenders(steps).items()):
        measured = [
            (row, fastest([r for r in steps if r["case"] == case and r["provider"] in providers]))
            for row, case in enumerate(cases)
        ]
        for case, (_, record) in zip(cases, measured, strict=True):
            if record is None:
                missing[case].append(contender)
        draw_contender(axes, number, contender, [(row, record) for row, record in measured if record is not None])
    axes.set_yticks(range(len(cases)), [name_with_gaps(cases[case], missing[case]) for case in cases], size=7)
    axes.set(xscale="log", ylim=(len(cases) - 0.5, -0.5))
    axes.set_xlabel("ms", size=8)
    axes.set_ylabel(CASE_HEADING, size=8)
    axes.tick_params(axis="x", labelsize=8)
    axes.grid(axis="x", color="0.85", linewidth=0.6)
    axes.set_axisbelow(True)
    for row in range(1, len(cases)):
        axes.axhline(row - 0.5, color="0.93", linewidth=0.6, zorder=0)
    figure.suptitle("One training step: the forward, gradients of x and of all parameters", size=10)
    axes.legend(loc="lower center", bbox_to_anchor=(0.4, 1.0), fontsize=7, ncols=5, frameon=False, handletextpad=0.1)
    figure.supxlabel(textwrap.fill(f"{spread_says(steps)} {setup(records)}", 125), size=7, color="0.3")
    return figure


def draw_contender(axes: Axes, number: int, name: str, measured: list[tuple[int, Record]]) -> None:
    """Draw one contender in every row, slightly below the previous one. The legend names it even without measurements."""
    rows = [row + 0.07 * (number - 5) for row, _ in measured]
    style = {"color": COLORS[number % len(COLORS)], "zorder": 3}
    lows, highs = [spread(record)[0] for _, record in measured], [spread(record)[1] for _, record in measured]
    axes.hlines(rows, lows, highs, linewidth=1.5, **style)
    medians = [record["median_ms"] for _, record in measured]
    label = name if measured else f"{name} (not measured)"
    axes.plot(medians, rows, marker=MARKERS[number % len(MARKERS)], markersize=4, linestyle="", label=label, **style)


def name_with_gaps(name: str, missing: list[str]) -> str:
    return "\n".join([name, *(f"not measured: {contender}" for contender in missing)])


def spread_says(records: list[Record]) -> str:
    if all("quartiles_ms" in record for record in records):
        return "Medians, with the first to the third quartile."
    return "Medians, with lines down to the fastest sample; these results have no quartiles."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("result", nargs="?", type=Path, help="by default the newest of bench/results/")
    parser.add_argument("--out", type=Path, default=RESULTS / "step.png")
    arguments = parser.parse_args()
    draw(read(arguments.result or newest())).savefig(arguments.out, dpi=200)
    print(f"Drawn to {arguments.out}")


if __name__ == "__main__":
    main()
