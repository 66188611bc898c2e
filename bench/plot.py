"""Draw a training step's milliseconds by case and provider: `python bench/plot.py [RESULT.jsonl] [--out FILE]`."""

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
from records import RESULTS, Record, newest, read


def draw(records: list[Record], out: Path) -> None:
    steps = {(r["case"], r["provider"]): r["median_ms"] for r in records if r["mode"] == "step"}
    cases = list(dict.fromkeys(case for case, _ in steps))
    providers = list(dict.fromkeys(provider for _, provider in steps))
    width = 0.8 / len(providers)

    figure, axes = plt.subplots(figsize=(max(8, 1.2 * len(cases)), 5), layout="constrained")
    for k, provider in enumerate(providers):
        present = [(position, steps[case, provider]) for position, case in enumerate(cases) if (case, provider) in steps]
        left = [position + (k - (len(providers) - 1) / 2) * width for position, _ in present]
        axes.bar(left, [milliseconds for _, milliseconds in present], width, label=provider)
    axes.set(yscale="log", ylabel=f"ms per training step, float32, {records[-1]['threads']} threads")
    axes.set_xticks(range(len(cases)), cases, rotation=30, ha="right")
    figure.legend(loc="outside upper center", fontsize="small", ncols=4)
    figure.savefig(out, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("result", nargs="?", type=Path, help="by default the newest of bench/results/")
    parser.add_argument("--out", type=Path, default=RESULTS / "step.png")
    arguments = parser.parse_args()
    draw(read(arguments.result or newest()), arguments.out)
    print(f"Drawn to {arguments.out}")


if __name__ == "__main__":
    main()
