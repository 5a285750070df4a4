"""The process group that training runs in, with processes that only act like DeepSpeed's launcher and ranks."""

import base64
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch

from deltalm_ds.environment import environment as recorded_environment
from deltalm_ds.errors import InputError
from deltalm_ds.launch import local
from deltalm_ds.threads import SET_BY_USERS

FAKE = Path(__file__).with_name("fake_launcher.py")
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


@pytest.fixture
def train(tmp_path, monkeypatch):
    """Run the fake launcher with a behaviour; afterwards none of its processes may be alive."""
    # a signal before `train_on_this_machine` listens, or after, is not for pytest
    before = {number: signal.signal(number, lambda *_: None) for number in SIGNALS}

    def train(behaviour):
        def command(run, num_ranks):
            assert (run, num_ranks) == (tmp_path, 2)
            return [sys.executable, str(FAKE), "runner", str(tmp_path), behaviour, str(os.getpid())]

        monkeypatch.setattr(local, "_command", command)
        return local.train_on_this_machine(tmp_path, 2)

    yield train
    pids = [int(file.read_text()) for file in tmp_path.glob("*.pid")]
    processes = [psutil.Process(pid) for pid in pids if psutil.pid_exists(pid)]
    psutil.wait_procs(processes, timeout=5)
    for number, handler in before.items():
        signal.signal(number, handler)
    assert len(pids) >= 2  # runner and launcher; a rank may have ended before it could leave its pid
    assert [process for process in processes if is_alive(process)] == []


def is_alive(process):
    """An orphan that nobody waits for stays as a zombie."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def left(directory, pattern):
    return sorted(file.name for file in directory.glob(pattern))


@pytest.mark.parametrize("code", [0, 2, 3, 75])
def test_the_exit_code_is_that_of_the_ranks(train, code):
    assert train(str(code)) == code


def test_a_signal_reaches_the_ranks_alone_and_they_save(train, tmp_path):
    assert train("stop") == 75
    assert left(tmp_path, "*.SIGTERM") == ["rank0.SIGTERM", "rank1.SIGTERM"]
    assert left(tmp_path, "*.saved") == ["rank0.saved", "rank1.saved"]


def test_a_scheduler_signals_every_process_and_the_ranks_save(train, tmp_path):
    """DeepSpeed's launcher would kill them 30 s later: it has the signal held back."""
    assert train("scheduler") == 75
    assert left(tmp_path, "*.SIGTERM") == ["rank0.SIGTERM", "rank1.SIGTERM"]


def test_a_signal_before_the_ranks_have_started(train, monkeypatch, capsys):
    """They get it as soon as they are there; one that has no handler yet ends at once, with nothing to save."""
    monkeypatch.setattr(local, "GRACE_S", 20)
    assert train("late") != 0
    assert "did not stop within" not in capsys.readouterr().err


def test_a_rank_that_has_ended_does_not_keep_the_signal_from_the_others(train, tmp_path):
    assert train("one_has_ended") == 75
    assert left(tmp_path, "*.saved") == ["rank1.saved"]


def test_ranks_that_do_not_stop_are_killed(train, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(local, "GRACE_S", 0.3)
    assert train("deaf") == -signal.SIGKILL
    assert left(tmp_path, "*.SIGTERM") == ["rank0.SIGTERM", "rank1.SIGTERM"]
    assert "did not stop within" in capsys.readouterr().err


def test_ranks_do_not_outlive_their_launcher(train, tmp_path):
    assert train("launcher_dies") == 9
    assert left(tmp_path, "*.SIGTERM") == []


def test_the_handlers_of_signals_are_given_back(train):
    handlers = [signal.getsignal(number) for number in SIGNALS]
    train("0")
    assert [signal.getsignal(number) for number in SIGNALS] == handlers


@pytest.mark.parametrize(
    ("chosen", "num_devices", "num_ranks", "expected"),
    [
        (None, 0, 2, ["-1", "-1"]),  # no GPU: ranks on the processor, whatever the launcher would number
        ("", 0, 1, ["-1"]),  # GPUs that the user hides stay hidden
        ("2,3", 2, 2, ["2", "3"]),
        ("2,3", 2, 1, ["2"]),
        ("GPU-5f2a, MIG-77", 2, 2, ["GPU-5f2a", "MIG-77"]),
        (None, 4, 3, ["0", "1", "2"]),
    ],
)
def test_ranks_see_the_devices_that_the_user_chose(chosen, num_devices, num_ranks, expected, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: num_devices)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if chosen is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
    command = local._command(tmp_path, num_ranks)
    world = json.loads(base64.urlsafe_b64decode(command[command.index("--world_info") + 1]))
    assert world == {"localhost": expected}


def test_a_user_who_takes_the_processor_gets_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    assert local.default_ranks() == 1
    assert local.rank_devices(6) == ["-1"] * 6


def test_a_port_that_the_user_chose(monkeypatch, tmp_path):
    monkeypatch.setenv("MASTER_PORT", "29876")
    command = local._command(tmp_path, 2)
    assert command[command.index("--master_port") + 1] == "29876"


def test_more_ranks_than_devices_are_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(InputError, match="3 ranks are asked for, and there are 2 GPUs: give --ranks 2"):
        local.train_on_this_machine(tmp_path, 3)


def test_the_command_is_deepspeeds_on_this_machine_alone(tmp_path):
    command = local._command(tmp_path, 3)
    assert command[:3] == [sys.executable, "-m", "deepspeed.launcher.launch"]
    assert command[command.index("--master_addr") + 1] == "127.0.0.1"
    assert command[-3:] == ["--module", "deltalm_ds.training.train", str(tmp_path)]


def test_the_launcher_gives_its_ranks_those_devices(tmp_path, monkeypatch):
    """DeepSpeed's own launcher, with a module in place of training that leaves what it was given."""
    (tmp_path / "leave.py").write_text(
        "import os, pathlib, sys; run = pathlib.Path(sys.argv[1]);"
        "(run / os.environ['RANK']).write_text(os.environ['CUDA_VISIBLE_DEVICES'])"
    )
    if sys.version_info >= (3, 11):  # 3.10 cannot leave the working directory out (docs/troubleshooting.md)
        (tmp_path / "queue.py").write_text("raise SystemExit('a module of the working directory was imported')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([*sys.path[1:]]))
    monkeypatch.setattr(local, "rank_devices", lambda num_ranks: ["2", "3"])
    command = local._command(tmp_path, 2)
    script = [str(tmp_path / "leave.py"), str(tmp_path)]
    command[command.index("--module") :] = script
    subprocess.run(command, env=local.rank_environment(2), check=True, timeout=120)
    assert [(tmp_path / rank).read_text() for rank in "01"] == ["2,3", "2,3"]


def test_a_second_ctrl_c_ends_at_once(train, tmp_path, capsys):
    assert train("deaf_to_ctrl_c") == -signal.SIGKILL
    assert "the ranks save and end" in capsys.readouterr().err


def test_a_killed_rank_is_told(train, capsys):
    assert train("247") == 247
    assert "ended by signal 9 (probably out of memory)" in capsys.readouterr().err


@pytest.mark.parametrize("num_ranks", [1, 2, 10_000])
def test_ranks_share_the_cores(num_ranks, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    environment = local.rank_environment(num_ranks)
    assert int(environment["OMP_NUM_THREADS"]) == max(1, len(os.sched_getaffinity(0)) // num_ranks)
    assert (environment["PYTHONSAFEPATH"], environment["DELTALM_STARTED_BY"]) == ("1", str(os.getpid()))
    assert environment["PATH"].split(os.pathsep)[0] == str(Path(sys.executable).parent)
    assert any(name in environment for name in SET_BY_USERS)  # ranks that wait do not take the others' cores
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert local.rank_environment(num_ranks)["OMP_NUM_THREADS"] == "7"


@pytest.mark.parametrize("variable", ["PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"])
def test_memory_is_in_segments_that_grow_unless_the_user_says_otherwise(variable, monkeypatch):
    names = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
    for name in names:
        monkeypatch.delenv(name, raising=False)
    assert local.rank_environment(1)["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
    monkeypatch.setenv(variable, "max_split_size_mb:512")
    environment = local.rank_environment(1)
    assert {name: environment[name] for name in names if name in environment} == {variable: "max_split_size_mb:512"}
    assert recorded_environment()["gpu_allocator"] == {variable: "max_split_size_mb:512"}
