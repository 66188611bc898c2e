"""Draw the README's chart from the newest results: docs/step-light.svg and docs/step-dark.svg.

`python bench/chart.py` writes both files. `--check` fails unless the data stored in them match the results.
"""

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from records import Record, newest, read
from table import ROOT, setup

FOLDER = ROOT / "docs"
CASES = ("square-64", "square-256", "wide-input", "ten-outputs", "grid-20", "tiny")
RIVALS = {  # provider, as in the tables -> text of the legend
    "nn.Linear": "nn.Linear of as many parameters",
    "efficient-kan": "efficient-kan",
    "pykan": "pykan",
}
TITLE = "One training step of a KAN layer"
SUBTITLE = "How many times as long as kan_kernels the others take (logarithmic)"
DESCRIPTION = "{http://purl.org/dc/elements/1.1/}description"

Data = dict[str, object]


@dataclass(frozen=True)
class Theme:
    """The colors of a chart. The background is transparent."""

    text: str
    faint: str
    bars: Sequence[str]  # in the order of RIVALS


THEMES = {
    "light": Theme("#1f2328", "#59636e", ("#8c959f", "#0969da", "#bc4c00")),
    "dark": Theme("#e6edf3", "#9198a1", ("#8d96a0", "#4493f8", "#f0883e")),
}


def data(records: list[Record]) -> Data:
    """Return the data of the chart: the times of every case, or None if not measured, and the setup of the measurement."""
    steps = {(r["case"], r["provider"]): r for r in records if r["mode"] == "step"}
    cases = []
    for case in CASES:
        if (case, "kan_kernels") not in steps:
            raise SystemExit(f"no step of {case} in the newest results: run `make bench` first")
        ours = steps[case, "kan_kernels"]
        times = {rival: steps[case, rival]["median_ms"] if (case, rival) in steps else None for rival in RIVALS}
        cases.append({**{size: ours[size] for size in "NIOG"}, "kan_kernels": ours["median_ms"], **times})
    return {"unit": "ms", "mode": "step", "cases": cases, "setup": setup(records)}


def draw(chart: Data, theme: Theme) -> Figure:
    """Draw the chart 8 inches wide, which is 800 pixels at 100 pixels per inch."""
    cases = chart["cases"]
    figure = Figure(figsize=(8, 5.3))
    axes = figure.add_axes((0.2, 0.14, 0.73, 0.64))
    for row, case in enumerate(cases):
        for number, (rival, color) in enumerate(zip(RIVALS, theme.bars, strict=True)):
            draw_bar(axes, row + 0.26 * (number - 1), case[rival], case["kan_kernels"], color, theme)
    axes.axvline(1, color=theme.text, linewidth=1.2)
    axes.text(1, -0.62, "kan_kernels = 1", color=theme.text, size=9, ha="center", va="bottom")
    axes.set(xscale="log", xlim=(0.35, 400), ylim=(len(cases) - 0.5, -0.5))
    axes.set_xticks([1, 10, 100], ["1x", "10x", "100x"], size=9, color=theme.faint)
    axes.set_yticks(range(len(cases)), [label(case) for case in cases], size=9, color=theme.text)
    axes.tick_params(which="both", length=0)
    axes.grid(axis="x", color=theme.faint, alpha=0.3, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.set_frame_on(False)
    figure.text(0.02, 0.975, TITLE, size=13, weight="bold", color=theme.text, va="top")
    figure.text(0.02, 0.92, SUBTITLE, size=10, color=theme.text, va="top")
    for left, rival, color in zip((0.02, 0.33, 0.8), RIVALS.values(), theme.bars, strict=True):
        figure.text(left, 0.865, "■", size=10, color=color, va="top")
        figure.text(left + 0.022, 0.865, rival, size=9, color=theme.text, va="top")
    figure.text(0.02, 0.02, caption(chart["setup"]), size=8.5, color=theme.faint, va="bottom", linespacing=1.4)
    return figure


def draw_bar(axes: Axes, y: float, time: float | None, ours: float, color: str, theme: Theme) -> None:
    if time is None:
        axes.text(1.04, y, "not measured", size=8, color=theme.faint, va="center", ha="left")
        return
    ratio = time / ours
    axes.barh(y, ratio - 1, left=1, height=0.24, color=color)
    end, side = (1.04 * ratio, "left") if ratio > 1 else (ratio / 1.04, "right")
    digits = 2 if ratio < 1 else 1 if ratio < 9.95 else 0
    axes.text(end, y, f"{ratio:.{digits}f}x", size=8, color=theme.text, va="center", ha=side)


def label(case: Record) -> str:
    return "{I} → {O}, G = {G}\nbatch {N}".format(**case)


def caption(setup: str) -> str:
    """Return the setup in two lines, broken between two facts."""
    facts = setup.split(", ")
    middle = next(k for k, fact in enumerate(facts) if fact.startswith("kan_kernels"))
    return (
        f"Forward, gradients of x and of all parameters, degree 3. {', '.join(facts[:middle])},\n{', '.join(facts[middle:])}"
    )


def path(theme: str) -> Path:
    return FOLDER / f"step-{theme}.svg"


def write(chart: Data) -> None:
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "kan_kernels"}):
        for name, theme in THEMES.items():
            metadata = {"Title": TITLE, "Description": json.dumps(chart, ensure_ascii=False), "Date": None}
            draw(chart, theme).savefig(path(name), transparent=True, metadata=metadata)


def held(file: Path) -> Data:
    """Return the data stored in a chart file."""
    return json.loads(ElementTree.parse(file).find(f".//{DESCRIPTION}").text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="exit with 1 unless the charts are up to date")
    chart, arguments = data(read(newest())), parser.parse_args()
    if not arguments.check:
        write(chart)
    for name in THEMES:
        if held(path(name)) != chart:
            raise SystemExit(f"{path(name).relative_to(ROOT)} is out of date: python bench/chart.py")


if __name__ == "__main__":
    main()
