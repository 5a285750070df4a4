"""The collective test: every rank takes part, sums are right, and a host that is slow is the one that is named."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest

from deltalm_ds.launch.preflight.collective_check import MOST_ROUNDS, host_values, rounds
from deltalm_ds.launch.preflight.findings import FAIL
from deltalm_ds.launch.preflight.network_checks import collective
from tests.launch.preflight.told import survey


@pytest.mark.parametrize("num_hosts", range(1, 40))
def test_rounds_pair_hosts_with_ever_new_ones(num_hosts: int) -> None:
    found = rounds(num_hosts)
    for pairs in found:
        busy = [host for pair in pairs for host in pair]
        assert len(busy) == len(set(busy)) >= num_hosts - 1
    all_pairs = [pair for pairs in found for pair in pairs]
    assert len(all_pairs) == len(set(all_pairs))
    if num_hosts <= MOST_ROUNDS:
        assert set(all_pairs) == set(itertools.combinations(range(num_hosts), 2))


def test_a_slow_host_does_not_make_its_partners_slow() -> None:
    for num_hosts in range(3, 12):
        pairs = [pair for one in rounds(num_hosts) for pair in one]
        rates = {
            pair: {"bandwidth": 1.0 if 2 in pair else 10.0, "latency_s": 5.0 if 2 in pair else 1.0} for pair in pairs
        }
        values = [host_values(host, rates) for host in range(num_hosts)]
        assert [host for host, one in enumerate(values) if one["bandwidth"] < 10] == [2]
        assert [host for host, one in enumerate(values) if one["latency_s"] > 1] == [2]


def test_ranks_that_wait_name_their_host(tmp_path: Path) -> None:
    program = Path(__file__).with_name("collective_ranks.py")
    subprocess.run([sys.executable, program, tmp_path / "out.json", "1", "4", "2"], check=True, timeout=120)
    result = json.loads((tmp_path / "out.json").read_text())
    assert result["is_right"] and result["num_ranks"] == 4
    assert len(result["pairs"]) == 6
    named = {f"n{number}": values for number, values in enumerate(result["hosts"], start=1)}
    faults = [one for one in collective(survey(), result | {"hosts": named}).findings() if one.level == FAIL]
    assert {one.hosts for one in faults} == {("n3",)}
