"""`deltalm launch --status | --stop`, with hosts that only answer."""

import threading
import time

import pytest

from deltalm_ds.errors import InputError
from deltalm_ds.files import locked
from deltalm_ds.launch import control
from deltalm_ds.launch.control import STOP, status, stop
from deltalm_ds.launch.fleet import Memory
from deltalm_ds.launch.job import Job, JobHost, write_job
from deltalm_ds.launch.remote import Outcome
from deltalm_ds.training.prepare import LOCK


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run that was launched on n1 and n2, with n3 lost; its supervisor is gone."""
    (tmp_path / LOCK).touch()
    write_job(Job(str(tmp_path), 2, (JobHost("n1", (0,)), JobHost("n2", (0,))), ("x",), {}))
    Memory("login", 7, 2, ["n1", "n2"], {"n3": 5.0}).write(tmp_path)
    asked = {}

    def run_on_hosts(names, command, timeout_s):
        asked.update(names=list(names), command=command)
        lines = {"n1": ['{"ended": 3, "left": 0}'], "n2": ["Welcome", '{"ended": 9, "left": 2}'], "n3": []}
        off = ["ssh: connect to host n3 port 22: Connection refused"]
        return {
            name: Outcome(0 if lines[name] else 255, lines=lines[name][-1:], error_lines=[] if lines[name] else off)
            for name in names
        }

    monkeypatch.setattr(control, "run_on_hosts", run_on_hosts)
    tmp_asked[str(tmp_path)] = asked
    return tmp_path


tmp_asked = {}


def test_what_a_dead_supervisor_left_is_ended_on_all_its_hosts(run):
    left = stop(run)
    assert left.pop("n3").startswith("n3 refuses the connection")
    assert left == {"n1": "", "n2": "2 processes are left"}
    asked = tmp_asked[str(run)]
    assert asked["names"] == ["n1", "n2", "n3"] and asked["command"].endswith(f" end {control.GRACE_S}")


def test_a_supervisor_that_lives_is_asked_and_waited_for(run, monkeypatch):
    monkeypatch.setattr(control, "LOOK_S", 0.05)
    seen = []

    def supervise(ready):
        with locked(run / LOCK, "in use"):
            ready.set()
            while not (run / STOP).exists():
                time.sleep(0.02)
            seen.append("asked")

    ready = threading.Event()
    thread = threading.Thread(target=supervise, args=(ready,))
    thread.start()
    assert ready.wait(30)
    assert status(run)["supervisor"] == "process 7 on login"
    stop(run)
    thread.join()
    assert seen == ["asked"] and not (run / STOP).exists()


def test_a_supervisor_that_does_not_end_is_told(run, monkeypatch):
    monkeypatch.setattr(control, "LOOK_S", 0.01)
    monkeypatch.setattr(control, "GRACE_S", 0.0)
    monkeypatch.setattr(control, "END_S", 0.1)
    with (
        locked(run / LOCK, "in use"),
        pytest.raises(InputError, match=r"\(process 7 on login\) does not end: kill it, then give the same command"),
    ):
        stop(run)


def test_a_supervisor_that_cannot_be_asked_by_a_file_is_named(run, monkeypatch):
    monkeypatch.setattr(control, "STOP", control.STOP / "not a folder")
    (run / "launch" / "stop").touch()
    with (
        locked(run / LOCK, "in use"),
        pytest.raises(InputError, match=r"cannot be written \(Not a directory\): ask .* by `kill 7` on login"),
    ):
        stop(run)


def test_the_status_of_a_run_whose_supervisor_is_gone(run):
    found = status(run)
    assert (found["supervisor"], found["attempt"], found["hosts"]) == ("none", 2, ["n1", "n2"])
    assert (found["lost"], found["newest_checkpoint"], found["ranks"]) == (["n3"], None, [])


@pytest.mark.parametrize("ask", [status, stop])
def test_a_run_that_was_never_launched(ask, tmp_path):
    with pytest.raises(InputError, match="was never launched"):
        ask(tmp_path)
