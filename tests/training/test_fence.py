"""Ranks of an earlier attempt that wake up leave the run directory, to the byte, as their successor has left it."""

import signal
import time
from pathlib import Path

import psutil
import pytest

from deltalm_ds.runs.attempts import begin_attempt, current_attempt
from deltalm_ds.runs.checkpoints import checkpoint_directories
from deltalm_ds.training.prepare import LOCK
from deltalm_ds.training.train import _only_writer
from tests.ranks_here import places, start_rank

WITHIN_S = 120


@pytest.fixture
def start(tmp_path):
    """Start the one rank of an attempt."""
    ranks = []

    def start(run, place, **environment):
        (alone,) = places()
        arguments = [Path(__file__).with_name("stopping_rank.py"), run, place]
        with open(tmp_path / f"{place}.log", "w") as log:
            ranks.append(start_rank(arguments, alone | environment, stdout=log, stderr=log))
        return ranks[-1]

    yield start
    for rank in ranks:
        rank.kill()
        rank.wait()


def await_stop(rank):
    end = time.monotonic() + WITHIN_S
    while psutil.Process(rank.pid).status() != psutil.STATUS_STOPPED:
        assert rank.poll() is None and time.monotonic() < end
        time.sleep(0.05)


def content(run):
    """All files but those under names of an attempt's own, which nobody reads and the next start removes."""
    files = (path.relative_to(run) for path in run.rglob("*") if path.is_file())
    return {path: (run / path).read_bytes() for path in files if not any(part.endswith(".tmp") for part in path.parts)}


def test_old_ranks_that_wake_up_write_nothing(start, make_run, tmp_path):
    run, old = make_run(tmp_path / "run"), []
    for place in ("writing", "publishing"):
        old.append(start(run, place, DELTALM_ATTEMPT=str(begin_attempt(run))))
        await_stop(old[-1])
    assert checkpoint_directories(run) == []
    assert start(run, "nowhere", DELTALM_ATTEMPT=str(begin_attempt(run))).wait(timeout=WITHIN_S) == 0
    before = content(run)
    assert [path.name for path in checkpoint_directories(run)] == ["step_00000010", "step_00000020"]
    for number, (rank, place) in enumerate(zip(old, ("writing", "publishing"), strict=True), start=1):
        rank.send_signal(signal.SIGCONT)
        assert rank.wait(timeout=WITHIN_S) == 1
        told = (tmp_path / f"{place}.log").read_text().splitlines()
        assert f"deltalm: Attempt 3 goes on in {run}: this process, of attempt {number}, ends" in told[-1]
        assert not any("Traceback" in line for line in told)
        assert content(run) == before


def test_ranks_of_a_supervised_run_leave_the_lock_to_the_supervisor(tmp_path, monkeypatch):
    begin_attempt(tmp_path)
    monkeypatch.setenv("DELTALM_ATTEMPT", "1")
    with _only_writer(tmp_path, 0):
        assert not (tmp_path / LOCK).exists()
    assert current_attempt(tmp_path) == 1


def test_a_start_without_a_supervisor_fences_off_attempts_before_it(tmp_path, monkeypatch):
    monkeypatch.delenv("DELTALM_ATTEMPT", raising=False)
    with _only_writer(tmp_path, 0):
        assert "process" in (tmp_path / LOCK).read_text()
    assert current_attempt(tmp_path) == 0
    begin_attempt(tmp_path)
    with _only_writer(tmp_path, 1):
        assert current_attempt(tmp_path) == 1
    with _only_writer(tmp_path, 0):
        assert current_attempt(tmp_path) == 2
