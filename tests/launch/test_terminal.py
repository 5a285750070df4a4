"""A terminal that is closed asks a run in its foreground to stop, and is nothing to one under nohup or setsid."""

import fcntl
import os
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest

from deltalm_ds.runs.events import read_events

FAKE = Path(__file__).with_name("fake_launcher.py")
TRAIN = """
import os, pathlib, sys
from deltalm_ds.launch import local
from deltalm_ds.streams import survive_lost_terminal
fake, run = sys.argv[1:]
local._command = lambda *_: [sys.executable, fake, "runner", run, "patient", str(os.getpid())]
survive_lost_terminal()
pathlib.Path(run, "train.pid").write_text(str(os.getpid()))
sys.exit(local.train_on_this_machine(pathlib.Path(run), 2))
"""


def await_condition(condition):
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("a minute has passed")


def take_terminal():
    """In the new process: its terminal is that of its standard input, and hanging up is heard, also under nohup."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture
def in_terminal(tmp_path):
    """Run the training of fake ranks as a command of a new terminal, which is closed once the ranks are there."""
    started = []

    def run(*command):
        ours, theirs = os.openpty()
        process = subprocess.Popen(
            [*command, sys.executable, "-c", TRAIN, str(FAKE), str(tmp_path)],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            cwd=tmp_path,
            start_new_session=True,
            preexec_fn=take_terminal,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        )
        started.append(process)
        os.close(theirs)
        await_condition(lambda: all((tmp_path / f"rank{number}.pid").exists() for number in "01"))
        time.sleep(0.3)  # what started the ranks is waiting for them
        os.close(ours)
        return process

    yield run
    (tmp_path / "finish").touch()
    for process in started:
        process.wait(timeout=60)


def end_of(run):
    await_condition(lambda: read_events(run)[-1]["kind"] == "end")
    return read_events(run)[-1]


def test_in_the_foreground_the_ranks_are_asked_to_save(in_terminal, tmp_path):
    in_terminal()
    end = end_of(tmp_path)
    assert (end["code"], end["asked"]) == (75, True)
    assert sorted(path.name for path in tmp_path.glob("*.SIGTERM")) == ["rank0.SIGTERM", "rank1.SIGTERM"]


def test_under_nohup_it_goes_on(in_terminal, tmp_path):
    in_terminal("nohup")
    time.sleep(0.5)
    assert read_events(tmp_path)[-1]["kind"] == "start"
    (tmp_path / "finish").touch()
    end = end_of(tmp_path)
    assert (end["code"], end["asked"]) == (0, False)


def test_in_a_session_of_its_own_it_goes_on_and_can_still_be_stopped(in_terminal, tmp_path):
    """Its messages have no reader any more: writing to the terminal is an error."""
    in_terminal("sh", "-c", 'setsid "$@" & wait', "sh")  # the shell is what the terminal ends
    time.sleep(0.5)
    assert read_events(tmp_path)[-1]["kind"] == "start"
    os.kill(int((tmp_path / "train.pid").read_text()), signal.SIGTERM)
    assert end_of(tmp_path)["code"] == 75
