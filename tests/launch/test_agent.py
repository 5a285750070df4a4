"""An agent as a real process, with processes that only act like DeepSpeed's launcher and ranks."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from deltalm_ds.launch.agent import has_gpus
from deltalm_ds.launch.job import JOB, ROOT, Job, JobHost, write_job
from deltalm_ds.launch.leftovers import leftovers

FAKE = Path(__file__).with_name("fake_launcher.py")
# An agent whose launcher is the fake one, and whose patience is short.
AGENT = """
import os, sys
from deltalm_ds.launch import agent
from deltalm_ds.launch import rank_processes
fake, directory, behaviour, job = sys.argv[1:]
agent.launcher_command = lambda *_: [sys.executable, fake, "launcher", directory, behaviour, str(os.getpid())]
agent.LOST_S, rank_processes.STOPPED_S = 2.0, 1.0
agent.main(job, "0")
"""
DEADLINE_S = 60


class Supervised:
    """The supervisor's end of an agent."""

    def __init__(self, job, directory, behaviour):
        write_job(job)
        own = {"PYTHONPATH": str(ROOT), "DELTALM_RUN": job.run, "DELTALM_ATTEMPT": str(job.attempt)}
        command = [sys.executable, "-c", AGENT, str(FAKE), str(directory), behaviour, str(job.directory / JOB)]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen(command, env=os.environ | own, text=True, start_new_session=True, **pipes)
        self.messages, self.directory = queue.Queue(), directory
        threading.Thread(target=self._read, daemon=True).start()
        self.is_heard = True
        threading.Thread(target=self._be_heard, daemon=True).start()

    def _read(self):
        for line in self.process.stdout:
            self.messages.put(json.loads(line))
        self.messages.put({"closed": True})

    def _be_heard(self):
        while self.is_heard and self.process.poll() is None:
            self.send({"alive": 1})
            time.sleep(0.5)

    def send(self, message):
        try:
            self.process.stdin.write(json.dumps(message) + "\n")
            self.process.stdin.flush()
        except (OSError, ValueError):
            pass

    def await_message(self, key):
        until = time.monotonic() + DEADLINE_S
        while time.monotonic() < until:
            message = self.messages.get(timeout=DEADLINE_S)
            if key in message:
                return message
            assert "closed" not in message, f"closed, without {key}"
        raise AssertionError(f"no {key}")

    def start(self):
        hello = self.await_message("hello")["hello"]
        meet = {name: hello[name] for name in ("addresses", "port", "word")}
        self.send({"meet": meet})
        met = self.await_message("met")["met"]
        address = next(iter(met))
        self.send({"start": {"address": address, "port": hello["port"], "own": met[address]}})
        self.await_message("started")
        await_that(lambda: all((self.directory / f"rank{rank}.pid").exists() for rank in (0, 1)))

    def pid(self, role):
        return int((self.directory / f"{role}.pid").read_text())

    def left(self):
        return sorted(path.name for path in self.directory.glob("*.SIGTERM"))

    def await_end(self):
        assert self.process.wait(timeout=DEADLINE_S) == 0


def await_that(condition):
    until = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.fixture
def begin(tmp_path):
    """Start an agent; afterwards nothing of its run may be left."""
    started = []
    directory = tmp_path / "left"
    directory.mkdir()

    def begin(behaviour, attempt=1):
        job = Job(str(tmp_path), attempt, (JobHost("n1", (0, 1)),), ("x",), {"RANK_IS": "set"})
        started.append(Supervised(job, directory, behaviour))
        return started[-1]

    yield begin
    for one in started:
        one.is_heard = False
        one.process.stdin.close()
        one.process.wait(timeout=DEADLINE_S)
    await_that(lambda: leftovers(tmp_path) == [])


def test_ranks_that_end_well(begin, tmp_path):
    agent = begin("patient")
    agent.start()
    (tmp_path / "left" / "finish").touch()
    assert agent.await_message("ended") == {"ended": 0, "why": ""}
    agent.await_end()


def test_who_is_asked_to_stop_saves_and_the_agent_says_so(begin):
    agent = begin("patient")
    agent.start()
    agent.send({"stop": 60})
    assert agent.await_message("ended")["ended"] == 75
    assert agent.left() == ["rank0.SIGTERM", "rank1.SIGTERM"]  # and not the launcher, which would kill them


def test_a_stop_without_grace_kills(begin):
    agent = begin("unheeding")
    agent.start()
    agent.send({"stop": 60})
    agent.send({"stop": 0})
    assert agent.await_message("ended")["ended"] == -signal.SIGKILL


@pytest.mark.parametrize("how", ["closed", "silent"])
def test_without_a_supervisor_ranks_save_and_all_ends(begin, how):
    agent = begin("patient")
    agent.start()
    agent.is_heard = False
    if how == "closed":
        agent.process.stdin.close()
    agent.await_end()
    assert agent.left() == ["rank0.SIGTERM", "rank1.SIGTERM"]


def test_without_a_supervisor_before_the_start(begin):
    agent = begin("patient")
    agent.await_message("hello")
    agent.is_heard = False
    agent.process.stdin.close()
    agent.await_end()


def test_a_launcher_that_is_killed_is_told_with_the_ranks_that_are_left(begin):
    agent = begin("patient")
    agent.start()
    os.kill(agent.pid("launcher"), signal.SIGKILL)
    assert agent.await_message("launcher") == {"launcher": -signal.SIGKILL, "left": 2}
    agent.send({"stop": 60})
    assert agent.await_message("ended")["ended"] == -signal.SIGKILL
    assert agent.left() == ["rank0.SIGTERM", "rank1.SIGTERM"]


def test_a_process_that_is_stopped_is_told_whether_or_not_it_beats(begin):
    agent = begin("patient")
    agent.start()
    os.kill(agent.pid("launcher"), signal.SIGSTOP)
    message = agent.await_message("stopped")
    assert message == {"stopped": None, "pid": agent.pid("launcher")}
    agent.send({"stop": 0})
    assert agent.await_message("ended")["ended"] == -signal.SIGKILL


def test_an_agent_that_is_asked_by_its_host_tells_why(begin):
    agent = begin("patient")
    agent.start()
    agent.process.send_signal(signal.SIGTERM)
    assert agent.await_message("ended") == {"ended": 75, "why": "SIGTERM on its host"}


def test_an_agent_that_is_killed_leaves_nobody_with_its_connection(begin):
    """The supervisor hears of it at once; the next attempt ends what is left of this one."""
    first = begin("patient")
    first.start()
    ranks = [psutil.Process(first.pid(role)) for role in ("launcher", "rank0", "rank1")]
    first.process.kill()
    with pytest.raises(AssertionError, match="closed"):
        first.await_message("ended")
    assert all(process.is_running() for process in ranks)
    second = begin("patient", attempt=2)
    assert second.await_message("hello")["hello"]["leftovers"] == 3
    assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in ranks)


def test_it_starts_without_torch():
    code = "import sys, deltalm_ds.launch.agent; print(sorted({'torch', 'pydantic'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True)
    assert b"torch" not in done.stdout and done.returncode == 0


def test_gpus_whose_driver_does_not_answer_are_gpus(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)  # importing it is an error
    assert not has_gpus(tmp_path)
    (tmp_path / "nvidiactl").touch()
    assert not has_gpus(tmp_path)
    (tmp_path / "nvidia0").touch()
    assert has_gpus(tmp_path)
