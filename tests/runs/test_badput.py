"""Where the time of a run went, for lives written down with their answer."""

import json

import pytest

from deltalm_ds.runs.badput import time_spent


def at(seconds):
    return f"2026-01-01T{seconds // 3600:02d}:{seconds // 60 % 60:02d}:{seconds % 60:02d}+00:00"


def write(run, name, entries):
    (run / name).write_text("".join(json.dumps(entry) + "\n" for entry in entries))


def record(time, step, kind="train", **seconds):
    return {"step": step, "kind": kind, "time": at(time), "seconds": seconds}


def event(time, kind, **values):
    return {"time": at(time), "kind": kind, **values}


def test_a_life_of_three_starts(tmp_path):
    """The first is stopped; the second is killed 40 s after its last record, which a third one makes again."""
    records = [
        record(130, 10, start=20.0, forward=60.0, data=40.0),  # 10 s before its clock began
        record(150, 10, "validation", checkpoint=5.0, validation=15.0),
        record(300, 20, start=15.0, forward=50.0),  # of the second start, at 220
        # records of steps 21 to 30, at 400, were cut off by the third start
        record(600, 30, start=20.0, backward=130.0),  # of the third start, at 440
    ]
    events = [
        event(0, "start"),
        event(160, "end", code=75),
        event(218, "changed"),
        event(220, "start"),
        event(440, "start"),
        event(450, "steps lost", step=20, last_step=30, until=at(400), seconds=100.0),
        event(610, "end", code=0),
    ]
    write(tmp_path, "metrics.jsonl", records)
    write(tmp_path, "events.jsonl", events)
    assert time_spent(tmp_path) == {
        "steps": 60 + 40 + 50 + 130,
        "starts": (130 - 100) + (300 - 220 - 50) + (600 - 440 - 130),
        "checkpoints": 5,
        "validation": 15,
        "recomputed": 100,
        "down": (220 - 160) + (440 - 400),
        "other": 610 - (280 + 90 + 20 + 100 + 100),
    }


def test_a_run_without_events_of_starts(tmp_path):
    write(tmp_path, "metrics.jsonl", [record(30, 10, start=5.0, forward=20.0), record(60, 20, forward=25.0, other=2.0)])
    spent = time_spent(tmp_path)
    assert spent["steps"] == 47 and spent["starts"] == 5 and spent["down"] == 0
    assert sum(spent.values()) == pytest.approx(25 + 30)


def test_a_log_of_before_has_no_times(tmp_path):
    write(tmp_path, "metrics.jsonl", [{"step": 1, "kind": "train", "loss": 2.0}])
    assert time_spent(tmp_path) == {}
