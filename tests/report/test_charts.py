"""Charts alone: what is left out, how long lines are shortened, how lines are told apart."""

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltalm_ds.report.charts import Line, line_chart, palette
from deltalm_ds.report.run_charts import phase_starts


def lines_of(chart: str) -> list[dict[str, Any]]:
    """The lines that a chart gives to plotly."""
    return json.JSONDecoder().raw_decode(chart, chart.index("[{", chart.index("Plotly.newPlot(")))[0]


def test_logarithmic_axis_leaves_out_what_it_cannot_show() -> None:
    values = [0.1, math.inf, math.nan, 0.0, -1.0, 1000.0]
    (line,) = lines_of(line_chart("norm", [Line("", range(6), values)], log=True))
    assert (line["x"], line["y"]) == ([0, 5], [0.1, 1000.0])
    (line,) = lines_of(line_chart("norm", [Line("", range(6), values)]))
    assert (line["x"], line["y"]) == ([0, 3, 4, 5], [0.1, 0.0, -1.0, 1000.0])


def test_chart_without_points_is_nothing() -> None:
    assert line_chart("empty", [Line("a", [], []), Line("b", [1], [math.nan])]) == ""


def test_a_line_without_points_is_left_out() -> None:
    (line,) = lines_of(line_chart("one", [Line("a", [], []), Line("b", [1], [2.0])]))
    assert (line["name"], line["x"], line["y"]) == ("b", [1], [2.0])
    assert "markers" in line["mode"]  # a single point would not be seen as a line


def test_long_lines_are_averaged_and_small() -> None:
    steps = range(100_000)
    chart = line_chart("long", [Line("", steps, [step % 2 for step in steps])])
    (line,) = lines_of(chart)
    assert len(line["x"]) <= 1000 and len(chart) < 30_000
    # runs of an even number of points: each mean is one half
    assert set(line["y"]) == {0.5}
    assert line["x"] == sorted(line["x"]) and sum(line["x"]) / len(line["x"]) == pytest.approx(49_999.5)


@given(st.integers(1, 132))
def test_colours_of_a_palette_differ(count: int) -> None:
    colours = palette([f"en-{number}" for number in range(count)])
    assert len(colours) == len(set(colours.values())) == count


def test_marks_stand_upright_at_their_steps() -> None:
    chart = line_chart("marked", [Line("", [0, 10], [1.0, 2.0])], marks=[3, 7])
    begin = chart.index("{", chart.index("}]", chart.index("[{", chart.index("Plotly.newPlot("))))
    layout = json.JSONDecoder().raw_decode(chart, begin)[0]
    assert [(shape["x0"], shape["x1"], shape["yref"]) for shape in layout["shapes"]] == [
        (3, 3, "paper"),
        (7, 7, "paper"),
    ]


def test_phases_begin_where_records_say() -> None:
    records = [{"step": step, "phase": phase} for step, phase in ((5, 1), (10, 1), (15, 2), (20, 3), (25, 3))]
    assert phase_starts(records) == [15, 20]
    assert phase_starts([{"step": 5}, {"step": 10}]) == []
