"""Commands on many hosts: exit code, output and time-out of each; no ssh is left; refusals in a sentence."""

import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from deltalm_ds.errors import InputError
from deltalm_ds.launch.remote import Outcome, run_on_hosts, why_ssh_failed
from tests.launch import fake_hosts


@pytest.fixture
def no_new_child() -> Iterator[None]:
    """Zombies are such as well; a process of an earlier test's may go on."""
    me = psutil.Process()
    before = set(me.children(recursive=True))
    yield
    assert set(me.children(recursive=True)) <= before


@pytest.fixture
def ssh_bin(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    return fake_hosts.put_on_path(monkeypatch, tmp_path)


def test_every_host_runs_its_command_in_its_own_environment(ssh_bin: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OURS", "seen")
    names = ["n1", "n2", "n10"]
    outcomes = run_on_hosts(names, lambda index: f'echo $HOSTNAME {index} "$OURS"; echo no >&2; exit {index}', 30)
    assert list(outcomes) == names
    assert [outcome.output for outcome in outcomes.values()] == ["n1 0 ", "n2 1 ", "n10 2 "]
    assert [outcome.code for outcome in outcomes.values()] == [0, 1, 2]
    assert {outcome.errors for outcome in outcomes.values()} == {"no"}


def test_a_command_arrives_as_it_was_written(ssh_bin: Path) -> None:
    """ClusterShell's other workers replace %h; a shell sees to the rest."""
    outcome = run_on_hosts(["n1"], """printf '%s|' '%h' 'a|b' '' '$HOME "x"'""", 30)["n1"]
    assert outcome.output == """%h|a|b||$HOME "x"|"""


def test_lines_come_while_the_command_runs(ssh_bin: Path, tmp_path: Path) -> None:
    seen: list[tuple[str, str]] = []

    def on_line(name: str, line: str) -> None:
        seen.append((name, line))
        (tmp_path / "go").touch()  # the command waits for it

    command = f"echo é; until [ -e '{tmp_path}/go' ]; do sleep 0.02; done; echo end; printf '\\377'"
    outcome = run_on_hosts(["n1"], command, 30, on_line)["n1"]
    assert seen == [("n1", "é"), ("n1", "end"), ("n1", "\N{REPLACEMENT CHARACTER}")] and outcome.code == 0


def test_the_end_of_each_host_is_told(ssh_bin: Path, tmp_path: Path) -> None:
    fake_hosts.refuse(ssh_bin, "n1", "no route")
    ended: list[str] = []

    def on_end(name: str) -> None:
        ended.append(name)
        (tmp_path / name).touch()  # the next host waits for it

    after = {1: "n1", 2: "n2"}
    command = "until [ -e '{}' ]; do sleep 0.02; done"
    run_on_hosts(["n1", "n2", "n3"], lambda index: command.format(tmp_path / after.get(index, "")), 30, on_end=on_end)
    assert ended == ["n1", "n2", "n3"]


def test_stdin_is_empty(ssh_bin: Path) -> None:
    assert run_on_hosts(["n1"], "cat; echo end", 30)["n1"].output == "end"


@pytest.mark.usefixtures("no_new_child")
def test_a_host_that_takes_too_long_is_told_from_the_others(ssh_bin: Path) -> None:
    outcomes = run_on_hosts(["n1", "n2"], lambda index: "exec sleep 60" if index else "echo here", 2)
    assert (outcomes["n1"].code, outcomes["n1"].timed_out) == (0, False)
    assert (outcomes["n2"].code, outcomes["n2"].timed_out) == (None, True)
    assert "did not answer in time" in str(why_ssh_failed("n2", outcomes["n2"]))


@pytest.mark.usefixtures("no_new_child")
def test_an_exception_of_the_caller_ends_every_ssh(ssh_bin: Path) -> None:
    def on_line(name: str, line: str) -> None:
        raise RuntimeError(line)

    with pytest.raises(RuntimeError, match="first"):
        run_on_hosts(["n1", "n2"], "echo first; exec sleep 60", 30, on_line)
    assert run_on_hosts(["n1"], "echo again", 30)["n1"].output == "again"


def test_an_interrupt_ends_every_ssh(ssh_bin: Path, tmp_path: Path) -> None:
    files = [tmp_path / f"pid{index}" for index in range(2)]
    source = (
        "import signal\n"
        "from deltalm_ds.launch.remote import run_on_hosts\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # ignored where the tests run in the background
        f"run_on_hosts(['n1', 'n2'], lambda index: f'echo $$ > {tmp_path}/pid{{index}}; exec sleep 60', 50)"
    )
    process = subprocess.Popen([sys.executable, "-c", source], stderr=subprocess.PIPE)
    _wait_for(lambda: all(file.exists() and file.read_text() for file in files))  # a shell makes them before it writes
    process.send_signal(signal.SIGINT)
    assert b"KeyboardInterrupt" in process.communicate(timeout=30)[1]
    sleepers = [int(file.read_text()) for file in files]
    _wait_for(lambda: not any(psutil.pid_exists(pid) for pid in sleepers))


def test_more_hosts_than_ssh_processes_at_a_time(ssh_bin: Path) -> None:
    names = [f"n{number}" for number in range(1, 11)]
    outcomes = run_on_hosts(names, "echo $HOSTNAME", 60, at_once=3)
    assert [outcome.output for outcome in outcomes.values()] == names


def test_without_ssh(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="There is no ssh on PATH: install"):
        run_on_hosts(["n1"], "true", 5)


@pytest.mark.parametrize("name", ["n1", "n01", "10.0.0.1", "a-b.example.org", "node1-2x3", "gpu_a"])
def test_names_arrive_whole(ssh_bin: Path, name: str) -> None:
    assert run_on_hosts([name], "echo $HOSTNAME", 30)[name].output == name


@pytest.mark.parametrize(
    "name",
    ["", "-oProxyCommand=touch x", "n[1-3]", "n1,n2", "n1 n2", "@gpus", "n1!n2", "n1&n2", "n*", "n%h", "$(id)", "a/b",
     "root@n1", "root@-oX", "n1\n"],
)  # fmt: skip
def test_names_that_are_something_else(name: str) -> None:
    with pytest.raises(InputError):
        run_on_hosts([name], "true", 5)


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        (
            "ssh: Could not resolve hostname n1: Name or service not known",
            "n1 is unknown here: correct it in the hostfile",
        ),
        ("ssh: connect to host n1 port 22: Connection refused", "whether sshd runs there"),
        ("ssh: connect to host n1 port 22: Connection timed out", "does not answer"),
        ("ssh: connect to host n1 port 22: No route to host", "no route to n1"),
        ("kex_exchange_identification: read: Connection timed out", "does not answer"),
        ("kex_exchange_identification: Connection closed by remote host", "MaxStartups"),
        ("Host key verification failed.\r", "host key of n1 is not known here: run `ssh n1 true`"),
        ("@ WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED! @\nHost key verification failed.", "ssh-keygen -R n1"),
        ("root@n1: Permission denied (publickey,password).", "ssh-copy-id n1"),
        ("/root/.ssh/config: line 3: Bad configuration option: fo\nterminating, 1 bad configuration options", "ssh -G"),
        ("Cannot execute command-line and remote command.", "RemoteCommand"),
        ("banner\n\nsomething new", r"ssh to n1 failed \(something new\): make `ssh n1 true` work first"),
        ("", "no message"),
    ],
)
def test_refusals_in_one_sentence_with_the_next_step(ssh_bin: Path, said: str, sentence: str) -> None:
    fake_hosts.refuse(ssh_bin, "n1", said)
    outcome = run_on_hosts(["n1"], "true", 30)["n1"]
    assert re.search(sentence, str(why_ssh_failed("n1", outcome)))


def test_a_command_that_ran_is_no_refusal() -> None:
    assert why_ssh_failed("n1", Outcome(code=1, error_lines=["Permission denied"])) is None


def _wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
