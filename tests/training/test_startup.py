"""The parts of a start add up to the time since its process began, and are recorded once, by one rank."""

import time

import psutil
import pytest
from torch import distributed

from deltalm_ds.runs.events import read_events
from deltalm_ds.training.startup import Startup


def test_parts_are_all_of_the_time(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "get_rank", lambda: 0)
    startup = Startup()
    time.sleep(0.2)
    startup.ended("model")
    startup.first_step_ended(tmp_path, 11)
    startup.first_step_ended(tmp_path, 12)
    (event,) = read_events(tmp_path)
    assert (event["step"], list(event["seconds"])) == (11, ["imports", "model", "first step"])
    assert sum(event["seconds"].values()) == pytest.approx(time.time() - psutil.Process().create_time(), abs=0.1)
    assert sum(event["cpu_seconds"].values()) == pytest.approx(time.process_time(), abs=0.1)
    assert event["seconds"]["model"] == pytest.approx(0.2, abs=0.1) and event["cpu_seconds"]["model"] < 0.1


def test_other_ranks_record_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "get_rank", lambda: 1)
    Startup().first_step_ended(tmp_path, 1)
    assert read_events(tmp_path) == []
