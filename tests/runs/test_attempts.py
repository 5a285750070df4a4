"""Only the newest attempt may write: what tells an older one so, and what is left where it learns of it too late."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from deltalm_ds.runs.attempts import (
    ATTEMPT,
    Fence,
    TakenOver,
    begin_attempt,
    current_attempt,
    own_attempt,
    temporary_of_attempt,
)
from deltalm_ds.runs.beats import BEATS, beat_path, read_beats
from deltalm_ds.runs.events import read_events, record_event


def test_attempts_count_from_one(tmp_path):
    assert current_attempt(tmp_path) == 0
    assert [begin_attempt(tmp_path) for _ in range(12)] == list(range(1, 13))
    assert current_attempt(tmp_path) == 12
    assert [path.name for path in (tmp_path / "launch").iterdir()] == ["attempt"]


def test_the_newest_attempt_is_let_through_and_no_older_one(tmp_path):
    fences = [Fence(tmp_path, begin_attempt(tmp_path)) for _ in range(3)]
    fences[2].check()
    Fence(tmp_path, None).check()
    for number, fence in enumerate(fences[:2], start=1):
        with pytest.raises(TakenOver, match=f"Attempt 3 goes on in .*: this process, of attempt {number}, ends"):
            fence.check()


def test_ranks_without_a_supervisor_are_not_fenced(tmp_path, monkeypatch):
    monkeypatch.delenv(ATTEMPT, raising=False)
    begin_attempt(tmp_path)
    assert own_attempt() is None
    record_event(tmp_path, "started")
    assert temporary_of_attempt(tmp_path / "x") == tmp_path / ".x.tmp"


def test_attempts_write_beside_each_other(tmp_path, monkeypatch):
    (tmp_path / BEATS).mkdir()
    names = set()
    for number in ("1", "2", ""):
        monkeypatch.setenv(ATTEMPT, number)
        names |= {temporary_of_attempt(tmp_path / "x"), beat_path(tmp_path, 0, own_attempt())}
        beat_path(tmp_path, 0, own_attempt()).write_text(
            f'{{"rank": 0, "beat": {number or 0}, "section": "data", "step": 0, "place": 0, "since_s": 0, "limit_s": 9,'
            ' "pid": 1, "host": "h", "started_by": 1}'
        )
    assert len(names) == 6
    assert [read_beats(tmp_path, attempt)[0].beat for attempt in (1, 2, None)] == [1, 2, 0]


def test_a_rank_whose_attempt_is_over_ends_instead_of_recording(tmp_path):
    code = (
        "import pathlib; from deltalm_ds.runs.events import record_event; record_event(pathlib.Path('.'), 'a', n=1)\n"
        "try:\n  record_event(pathlib.Path('.'), 'b')\nfinally:\n  print('ended like any other')"
    )
    for number in (1, 2):
        begin_attempt(tmp_path)
        environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
        ended = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, env=environment | {ATTEMPT: "1"}, capture_output=True, text=True
        )
        assert ended.returncode == number - 1
    assert [event["kind"] for event in read_events(tmp_path)] == ["a", "b"]
    assert ended.stdout == ""
    assert ended.stderr.startswith("deltalm: Attempt 2 goes on in .: this process, of attempt 1, ends")
