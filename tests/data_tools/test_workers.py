"""Processes that share the work of a build."""

import os
import subprocess
import sys
import threading

import pytest

from deltalm_ds.data_tools import workers as workers_module
from deltalm_ds.data_tools.build import build
from deltalm_ds.data_tools.workers import start_workers
from deltalm_ds.errors import InputError
from tests.data_tools.building import SLOW_BUILD

IMPORTED_BY = os.getpid()  # in a forked process another one's


def test_killed_worker_is_one_sentence(vocabulary, specs, tmp_path, monkeypatch):
    monkeypatch.setattr(workers_module, "_start_process", os._exit)
    with pytest.raises(InputError, match="A process died"), start_workers(2) as workers:
        build(specs, vocabulary, tmp_path / "out", workers=workers)
    assert not (tmp_path / "out").exists()


def test_worker_that_cannot_start_does_not_block(workspace, tmp_path):
    """A program read from stdin cannot be started anew in a worker, which one with threads needs."""
    command = [sys.executable, "-", str(workspace), str(tmp_path / "out"), "2"]
    thread = "import threading; threading.Thread(target=threading.Event().wait, daemon=True).start()"
    program = f"{thread}\n{SLOW_BUILD}"
    result = subprocess.run(command, input=program, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode != 0 and "A process died" in result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("num_threads", [0, 1])
def test_workers_are_forked_where_no_thread_can_hold_a_lock(num_threads):
    """A lock that another thread holds at a fork is held in the worker for ever."""
    stop = threading.Event()
    threads = [threading.Thread(target=stop.wait) for _ in range(num_threads)]
    for thread in threads:
        thread.start()
    is_alone = threading.active_count() == 1
    try:
        with start_workers(2) as workers:
            assert set(workers.run(_is_forked, range(4))) == {is_alone}
    finally:
        stop.set()


def _is_forked(_):
    return os.getpid() != IMPORTED_BY


def test_results_come_whatever_fails_and_nothing_more_is_begun():
    with start_workers(2) as workers:
        assert sorted(workers.run(abs, range(-20, 0))) == list(range(1, 21))
        with pytest.raises(TypeError, match="bad operand"):
            list(workers.run(abs, [1, 2, "three", *range(1000)]))
