"""The README's chart shows the newest results, and bench/plot.py shows every provider."""

import copy
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent.parent / "bench"))

import chart
import plot
import records
import table


@pytest.fixture
def results():
    return records.read(records.newest())


def slower(results):
    """Return the same results with one time doubled and another date."""
    changed = copy.deepcopy(results)
    changed[-1]["machine"]["date"] = "2000-01-01"
    for record in changed:
        if (record["case"], record["mode"], record["provider"]) == ("square-64", "step", "pykan"):
            record["median_ms"] *= 2
    return changed


@pytest.mark.parametrize("theme", chart.THEMES)
def test_the_committed_chart_has_the_newest_results(results, theme):
    assert chart.held(chart.path(theme)) == chart.data(results), "python bench/chart.py"


def test_a_chart_of_other_results_is_found_out(results, tmp_path, monkeypatch):
    monkeypatch.setattr(chart, "FOLDER", tmp_path)
    monkeypatch.setattr(chart, "ROOT", tmp_path)
    chart.write(chart.data(slower(results)))
    assert chart.held(tmp_path / "step-dark.svg") == chart.data(slower(results)) != chart.data(results)
    monkeypatch.setattr(sys, "argv", ["chart.py", "--check"])
    with pytest.raises(SystemExit, match=r"step-light.svg is out of date: python bench/chart.py"):
        chart.main()
    monkeypatch.setattr(sys, "argv", ["chart.py"])
    chart.main()
    assert chart.held(tmp_path / "step-light.svg") == chart.data(results)


def test_the_chart_says_what_it_shows(results):
    text = chart.path("light").read_text()
    assert len(text) < 40_000
    assert results[-1]["machine"]["cpu"] in text
    assert f"{results[-1]['machine']['instruction_set']} kernels" in text
    steps = {(r["case"], r["provider"]): r["median_ms"] for r in results if r["mode"] == "step"}
    assert f">{steps['square-64', 'pykan'] / steps['square-64', 'kan_kernels']:.0f}x</text>" in text
    missing = [rival for case in chart.CASES for rival in chart.RIVALS if (case, rival) not in steps]
    assert text.count(">not measured</text>") == len(missing)


def written(figure):
    (axes,) = figure.axes
    legend = [text.get_text() for text in axes.get_legend().get_texts()]
    return legend, [label.get_text() for label in axes.get_yticklabels()], figure.get_supxlabel()


def test_the_plot_has_the_tables_names_and_says_what_is_missing(results):
    # Older results have no linear layer of the same width.
    results = results + [r | {"provider": "nn.Linear(I, O)"} for r in results if r["provider"] == "nn.Linear"]
    legend, cases, foot = written(plot.draw(results))
    assert [name.removesuffix(" (not measured)") for name in legend] == ["kan_kernels", *table.RIVALS]
    assert [case.splitlines()[0] for case in cases] == [row[0] for row in table.layers("step")(results)[1:]]
    steps = {(r["case"], r["provider"]) for r in results if r["mode"] == "step"}
    for label in cases:
        case = label.partition(" ")[0]
        missing = [rival for rival, providers in table.RIVALS.items() if not any((case, p) in steps for p in providers)]
        assert label.splitlines()[1:] == [f"not measured: {rival}" for rival in missing]
    assert results[-1]["machine"]["cpu"] in foot.replace("\n", " ")

    without = [record for record in results if record["provider"] != "pykan"]
    legend, cases, _ = written(plot.draw(without))
    assert "pykan (not measured)" in legend
    assert all("not measured: pykan" in case for case in cases)

    other = [record | {"provider": "another"} for record in results if record["provider"] == "pykan"]
    assert written(plot.draw(results + other))[0][-1] == "another"


def test_the_plot_draws_quartiles_where_there_are_some(results):
    without = [{key: value for key, value in record.items() if key != "quartiles_ms"} for record in results]
    assert "these results have no quartiles" in written(plot.draw(without))[2].replace("\n", " ")
    quartiles = [record | {"quartiles_ms": [0.9 * record["median_ms"], 1.2 * record["median_ms"]]} for record in results]
    figure = plot.draw(quartiles)
    assert "first to the third quartile" in written(figure)[2]
    ours = [record["median_ms"] for record in results if (record["mode"], record["provider"]) == ("step", "kan_kernels")]
    segments = figure.axes[0].collections[0].get_segments()
    for median, ((low, _), (high, _)) in zip(ours, segments, strict=True):
        assert (low, high) == pytest.approx((0.9 * median, 1.2 * median))
