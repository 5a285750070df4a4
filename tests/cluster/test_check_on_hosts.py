"""`deltalm launch --check` on hosts with networks of their own: who is slow, and what breaks between them, is named."""

import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.hosts import LOGIN, Hosts, what_is_missing
from tests.faults.tiny import ROOT, TRAIN, write_experiment

pytestmark = pytest.mark.slow
NAMES = ("n1", "n2", "n3", "n4")
PORT = 29_777
LONGEST_S = 400.0
LISTEN = f"import socket, time; s = socket.socket(); s.bind(('', {PORT})); s.listen(); time.sleep({LONGEST_S})"


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    if why := what_is_missing() or (
        None if shutil.which("tc") else "A slow network needs tc: apt-get install iproute2."
    ):
        pytest.skip(why)
    state = ROOT / f".hosts-check-{os.getpid()}"
    with Hosts(state, len(NAMES), prefix="dlc", network="10.76.8") as made:
        (state / "hostfile").write_text("n[1-4] slots=1\n")
        write_experiment(state / "experiment")
        yield made
    shutil.rmtree(state)


def check(hosts: Hosts, out: Path, port: int = 0) -> list[dict[str, Any]]:
    """What a check from the login host finds, without what passes."""
    command = ["env", f"PYTHONPATH={ROOT}", f"MASTER_PORT={port}", "OMP_NUM_THREADS=1", sys.executable, "-c", TRAIN]
    recipe, hostfile = hosts.state / "experiment/recipe.yaml", hosts.state / "hostfile"
    arguments = ["launch", "--check", "--json", "--hostfile", hostfile, recipe, "--out", out]
    done = hosts.run(LOGIN, [*command, *arguments], LONGEST_S)
    report = json.loads(next(line for line in done.stdout.splitlines() if line.startswith('{"verdict')))
    assert done.returncode == report["exit_code"] == 2
    return [one for one in report["findings"] if one["level"] == "FAIL"]


def test_a_slow_host_is_named_and_nothing_else(hosts: Hosts) -> None:
    limit = ["tc", "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", "50mbit", "burst", "64kb", "latency", "50ms"]
    assert hosts.run("n3", limit).returncode == 0
    try:
        (fault,) = check(hosts, hosts.state / "run")
    finally:
        hosts.run("n3", ["tc", "qdisc", "del", "dev", "eth0", "root"])
    assert (fault["check"], fault["hosts"]) == ("collectives", ["n3"])
    assert all(hosts.processes(name) == [] for name in NAMES)
    assert not list(hosts.state.glob(".check-*"))


def test_what_breaks_between_hosts(hosts: Hosts) -> None:
    """A port in use, another MTU, a changed host key, a pulled cable: each on another host."""
    known, keys = hosts.state / "ssh/known_hosts", (hosts.state / "ssh/known_hosts").read_text()
    of_n1 = re.search("^n1,.* (.*)$", keys, re.MULTILINE)[1]
    hosts.start("n1", [sys.executable, "-c", LISTEN])
    hosts.run("n2", ["ip", "link", "set", "eth0", "mtu", "1400"])
    known.write_text(re.sub("^(n3,.*) .*$", rf"\1 {of_n1}", keys, flags=re.MULTILINE))
    hosts.pull_cable("n4")
    try:
        found = {(one["check"], *one["hosts"]): one["what"] for one in check(hosts, hosts.state / "run", PORT)}
    finally:
        hosts.kill("n1")
        hosts.run("n2", ["ip", "link", "set", "eth0", "mtu", "1500"])
        known.write_text(keys)
        hosts.put_cable_back("n4")
    expected = {
        ("first host", "n1"): f"port {PORT} cannot be had",
        ("network", "n1", "n2"): "MTU differs: n1 1500; n2 1400",
        ("reachable", "n3"): "another host key",
        ("reachable", "n4"): "does not answer|no route",
    }
    assert found.keys() == expected.keys()
    assert all(re.search(expected[key], what) for key, what in found.items()), found


def test_a_run_directory_that_each_host_has_for_itself(hosts: Hosts) -> None:
    (fault,) = check(hosts, Path("/tmp/run"))
    assert (fault["check"], fault["hosts"]) == ("run directory", list(NAMES))
    assert "does not find what this machine wrote" in fault["what"]
