"""The time line of a run: its attempts as bars, what happened to them as dots."""

import json
from pathlib import Path
from typing import Any

from test_run_page import report_of, training_record, write_metrics

DAY = "2026-01-01T"


def event(minute: int, kind: str, **values: Any) -> dict[str, Any]:
    return {"time": f"{DAY}00:{minute:02d}:00+00:00", "kind": kind, **values}


def figures_of(run: Path, events: list[dict[str, Any]], last_minute: int) -> dict[str, dict[str, Any]]:
    time = f"{DAY}00:{last_minute:02d}:00+00:00"
    write_metrics(run, [training_record(step) | {"time": time} for step in (20, 40)])
    (run / "events.jsonl").write_text("".join(json.dumps(one) + "\n" for one in events))
    return report_of(run).figures()


def minutes(times: list[str | None]) -> list[int | None]:
    return [time and int(time.split(":")[1]) for time in times]


def test_attempts_last_until_their_end_or_their_last_sign_of_life(tmp_path: Path) -> None:
    events = [
        event(0, "supervisor started"),
        event(1, "attempt", number=1),
        event(2, "start", host="n1"),
        event(7, "host lost", host="<n2>", reason="no word for 12 s"),
        event(8, "spare taken", host="n5"),
        event(10, "attempt", number=2),
        event(20, "end", code=75, reason="stopped, saved"),
        event(30, "attempt", number=3),
        event(31, "changed", changes={}),
    ]
    figure = figures_of(tmp_path, events, last_minute=40)["Attempts and faults"]
    spans, moments = figure["lines"]["spans"], figure["lines"]["moments"]
    assert minutes(spans["x"]) == [1, 8, None, 10, 20, None, 30, 40, None]
    assert spans["y"] == ["attempt", "attempt", None] * 3
    kinds = ["supervisor started", "attempt", "host lost", "spare taken", "attempt", "end", "attempt"]
    assert moments["y"] == kinds and minutes(moments["x"]) == [0, 1, 7, 8, 10, 20, 30]
    assert moments["text"][2] == "host: &lt;n2&gt;; reason: no word for 12 s"
    assert set(figure["layout"]["yaxis"]["categoryarray"]) == set(kinds)


def test_a_run_that_was_started_once_has_no_time_line(tmp_path: Path) -> None:
    once = [event(1, "start", host="n1"), event(9, "end", code=0)]
    assert not any("faults" in title for title in figures_of(tmp_path, once, 8))
    assert not any("faults" in title for title in figures_of(tmp_path, [], 8))
    twice = [*once, event(20, "start", host="n1"), event(29, "end", code=0)]
    spans = figures_of(tmp_path, twice, 28)["Starts and faults"]["lines"]["spans"]
    assert minutes(spans["x"]) == [1, 9, None, 20, 29, None]
