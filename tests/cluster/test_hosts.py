"""The hosts on which launching is tried: what a fault does to one of them is what it is said to do."""

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.cluster.hosts import LOGIN, Hosts, what_is_missing


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    if why := what_is_missing():
        pytest.skip(why)
    state = Path(tempfile.mkdtemp(dir="/var/tmp"))  # /tmp, where pytest's folders lie, each host has for itself
    with Hosts(state, 2, prefix="dlt", network="10.76.9") as made:
        yield made
    shutil.rmtree(state)
    assert not list(Path("/run/netns").glob("dlt-*"))
    assert not [name for name in os.listdir("/sys/class/net") if name.startswith("dlt-")]


def test_each_has_a_name_processes_and_a_folder_for_temporary_files(hosts):
    (hosts.state / "seen").write_text("by all")
    look = f"hostname; cat {hosts.state}/seen; echo; ls /tmp | wc -l; ps -e | wc -l"
    outputs = [hosts.run(LOGIN, ["ssh", name, look]) for name in hosts.names]
    for name, output in zip(hosts.names, outputs, strict=True):
        *found, num_processes = output.stdout.split("\n")[:4]
        assert found == [name, "by all", "0"]
        assert int(num_processes) < 10
    assert hosts.run("n1", ["ssh", "n2", "exit 7"]).returncode == 7


def test_its_processes_are_found_from_outside(hosts):
    assert hosts.processes("n1") == []
    waiting = hosts.start("n1", ["sleep", "60"])
    (process,) = until(lambda: hosts.processes("n1"))
    assert process.cmdline() == ["sleep", "60"] and hosts.processes("n2") == []
    process.send_signal(signal.SIGTERM)
    assert waiting.wait(10) == -signal.SIGTERM
    assert hosts.processes("n1") == []


def test_a_pulled_cable_says_nothing_and_comes_back(hosts):
    ping = ["ssh", "n2", "true"]
    hosts.pull_cable("n2")
    process = hosts.start("n1", ping)
    with pytest.raises(psutil.TimeoutExpired):
        psutil.Process(process.pid).wait(1)
    hosts.put_cable_back("n2")
    assert process.wait(30) in (0, 255)
    assert hosts.run(LOGIN, ping).returncode == 0


@pytest.mark.parametrize("silently", [True, False])
def test_power_ends_all_of_its_processes(hosts, silently):
    session = hosts.start(LOGIN, ["ssh", "n2", "sleep 60"])
    until(lambda: hosts.processes("n2"))
    hosts.switch_off("n2", silently)
    assert not hosts.is_on("n2") and hosts.processes("n2") == []
    if silently:
        assert session.poll() is None  # nothing has told it
        hosts.kill(LOGIN)
    assert session.wait(10) != 0
    hosts.boot("n2")
    assert hosts.run(LOGIN, ["ssh", "n2", "hostname"]).stdout == "n2\n"


def test_the_folder_must_be_one_that_all_hosts_see(tmp_path):
    if why := what_is_missing():
        pytest.skip(why)
    with pytest.raises(RuntimeError, match="give another folder"), Hosts(Path("/tmp/hosts"), 1, "dlu", "10.76.8"):
        pass


def until(condition):
    """Wait until something is true, and return it."""
    end = time.monotonic() + 10
    while not (value := condition()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return value
