"""Which hosts the next attempt takes, and how long it waits."""

import pytest

from deltalm_ds.errors import InputError
from deltalm_ds.launch.fleet import (
    Failure,
    Memory,
    backoff_s,
    choose_hosts,
    may_go_on_with,
    read_memory,
    remember_failure,
)
from deltalm_ds.launch.hostfile import Host
from deltalm_ds.recipe.launch_section import LaunchSection

HOSTS = (Host("n1", 8), Host("s1", 8, is_spare=True), Host("n2", 8), Host("n3", 8), Host("s2", 8, is_spare=True))
SECTION = LaunchSection(backoff_s=5, window_s=100)


def chosen(lost=(), excluded=()):
    memory = Memory(lost=dict.fromkeys(lost, 0.0), excluded=dict.fromkeys(excluded, ""))
    return [host.name for host in choose_hosts(HOSTS, memory, 3)]


@pytest.mark.parametrize(
    ("lost", "excluded", "expected"),
    [
        ((), (), ["n1", "n2", "n3"]),
        (("n1",), (), ["n2", "n3", "s1"]),  # another host has rank 0 then
        (("n1", "s1"), (), ["n2", "n3", "s2"]),
        ((), ("n2",), ["n1", "n3", "s1"]),
        (("n3",), ("n2",), ["n1", "s1", "s2"]),
        (("n3", "s1"), ("n2",), ["n1", "n2", "s2"]),  # better than too few
        (("n1", "s1", "s2"), ("n2",), ["n2", "n3"]),
        (("n1", "n2", "n3", "s1", "s2"), (), []),
    ],
)
def test_the_hosts_of_the_next_attempt(lost, excluded, expected):
    assert chosen(lost, excluded) == expected


def failed(memory, host, at, step=0):
    return remember_failure(memory, Failure(at, host, "a rank ended", step), HOSTS, SECTION)


def test_a_host_that_is_blamed_twice_in_the_window_makes_room_for_a_spare():
    memory = Memory(hosts=["n1", "n2", "n3"])
    assert failed(memory, "n2", 0) is None
    assert failed(memory, "n2", 150) is None  # the first was too long ago
    assert failed(memory, "n3", 160) is None
    assert failed(memory, "n2", 200) == "n2"
    assert "blamed 2 times in 100 s" in memory.excluded["n2"]


def test_without_a_spare_nobody_is_left_out():
    memory = Memory(hosts=["n1", "n2", "n3"], lost={"s1": 0.0, "s2": 0.0})
    assert [failed(memory, "n2", at) for at in range(4)] == [None] * 4
    assert memory.excluded == {}


def test_failures_at_the_same_checkpoint_double_the_wait():
    memory, waits = Memory(hosts=["n1"]), []
    for step in (10, 10, 10, 20, 20, 20, 20, 20, 20, 20, 20):
        failed(memory, "n1", 0, step)
        waits.append(backoff_s(memory, SECTION))
    assert waits == [5, 10, 20, 5, 10, 20, 40, 80, 160, 300, 300]


@pytest.mark.parametrize(
    ("min_hosts", "num_hosts", "expected"),
    [(None, 3, False), (None, 4, True), (2, 1, False), (2, 2, True), (9, 4, True)],
)
def test_fewer_hosts_only_where_the_recipe_allows(min_hosts, num_hosts, expected):
    assert may_go_on_with(num_hosts, 4, LaunchSection(min_hosts=min_hosts)) == expected


def test_what_is_remembered_comes_back(tmp_path):
    (tmp_path / "launch").mkdir()
    memory = Memory("n9", 7, 3, ["n1"], {"n2": 2.5}, {"n3": "why"}, [Failure(1.0, "n1", "what", 10)], None)
    memory.write(tmp_path)
    assert read_memory(tmp_path) == memory
    (tmp_path / "launch" / "supervisor.json").write_text('{"attempt": "x"}')
    with pytest.raises(InputError, match="remove it to start anew"):
        read_memory(tmp_path)
