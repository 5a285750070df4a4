"""The parts of a start add up to the time since its process began, and are recorded once, by one rank."""

import time

import psutil
from torch import distributed

from deltalm_ds.runs.events import read_events
from deltalm_ds.training.startup import Startup

ROUNDING_S = 0.05  # of three parts, and of the clock that says when a process began


def test_parts_are_all_of_the_time(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "get_rank", lambda: 0)
    before = clocks()
    startup = Startup()
    time.sleep(0.2)
    startup.ended("model")
    after = clocks()
    startup.first_step_ended(tmp_path, 11)
    end = clocks()
    startup.first_step_ended(tmp_path, 12)
    (event,) = read_events(tmp_path)
    assert (event["step"], list(event["seconds"])) == (11, ["imports", "model", "first step"])
    for clock, kind in enumerate(("seconds", "cpu_seconds")):
        assert after[clock] - ROUNDING_S <= sum(event[kind].values()) <= end[clock] + ROUNDING_S
        assert event[kind]["model"] <= after[clock] - before[clock] + ROUNDING_S
    assert event["seconds"]["model"] >= 0.2


def clocks():
    """Seconds since this process began, and of processors."""
    return time.time() - psutil.Process().create_time(), time.process_time()


def test_other_ranks_record_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "get_rank", lambda: 1)
    Startup().first_step_ended(tmp_path, 1)
    assert read_events(tmp_path) == []
