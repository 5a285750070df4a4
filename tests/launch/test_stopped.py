"""Whoever started ranks finds those that a signal has stopped; and needs no torch to watch over them."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from deltalm_ds.launch import stopped
from deltalm_ds.launch.stopped import StoppedRanks
from deltalm_ds.runs.beats import BEATS, Beat, beat_path, write_beat
from deltalm_ds.runs.events import read_events

HERE = socket.gethostname()


@pytest.fixture
def sleeper():
    """A process that does nothing."""
    process = subprocess.Popen(["sleep", "100"])
    yield process
    process.kill()
    process.wait()


@pytest.fixture
def finds(tmp_path, monkeypatch):
    """Whether the stopped ranks of a run are found, from the beat of one."""
    monkeypatch.setattr(stopped, "BEAT_S", 0.05)
    monkeypatch.setattr(stopped, "STARTER_WAITS_S", 0.3)
    (tmp_path / BEATS).mkdir()

    def finds(pid, seconds=1.0, host=HERE, started_by=None, attempt=None):
        beat = Beat(0, 9, "backward", 7, 2, 20.0, 0.2, pid, host, started_by or os.getpid())
        write_beat(beat_path(tmp_path, 0, attempt), beat)
        ranks, end = StoppedRanks(tmp_path), time.monotonic() + seconds
        while time.monotonic() < end and not ranks.found():
            time.sleep(0.02)
        return ranks.found()

    return finds


def test_who_started_a_rank_alone_finds_that_it_is_stopped(sleeper, finds, tmp_path, capsys):
    assert not finds(sleeper.pid)  # it may be writing to a slow disk
    sleeper.send_signal(signal.SIGSTOP)
    assert not finds(sleeper.pid, started_by=os.getpid() + 1)
    assert not finds(sleeper.pid, host=f"not-{HERE}")  # a process of that number is stopped here, and is not the rank
    assert not finds(sleeper.pid, attempt=3)
    assert not finds(sleeper.pid, seconds=0.3)
    assert finds(sleeper.pid, seconds=20)
    event, end = read_events(tmp_path)
    assert (end["kind"], end["rank"], end["code"], end["reason"]) == ("rank ended", 0, 1, event["fault"])
    assert event["fault"] == f"Stopped by a signal: rank 0 (process {sleeper.pid} on {HERE}, in backward of step 7)."
    assert event["fault"] in capsys.readouterr().err


def test_half_a_beat_is_no_rank(tmp_path):
    (tmp_path / BEATS).mkdir()
    beat_path(tmp_path, 0).write_text('{"rank": 1')
    assert not StoppedRanks(tmp_path).found()


def test_watching_over_ranks_imports_no_torch():
    code = (
        "import sys, deltalm_ds.launch.stopped, deltalm_ds.runs.beats, deltalm_ds.runs.starter, deltalm_ds.runs.history"
        "; assert 'torch' not in sys.modules and 'deepspeed' not in sys.modules"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, timeout=60)
