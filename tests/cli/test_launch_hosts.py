"""`deltalm launch`: dry runs, and hosts that are refused before anything is written or started."""

import json

import pytest
from command import deltalm, make_world, must, snapshot


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    directory = tmp_path_factory.mktemp("world")
    make_world(directory)
    return directory


def test_dry_run(world):
    """Of an engine that needs GPUs, which this machine has not got."""
    command = "launch", "--dry-run", 12, world / "recipe.yaml", "deepspeed=fp16_zero1"
    shown = must(*command)
    assert shown.startswith("world: 12 ranks on 2 hosts: host[1-2]\n")
    lines = [line.split() for line in shown.splitlines()]
    assert ["host2", "11", "3", "1", "host1", "0,1,2,3"] in lines
    assert "checked: every rank has a device of its own" in shown
    result = json.loads(must(*command, "--json"))
    assert [rank["RANK"] for rank in result["ranks"]] == [str(rank) for rank in range(12)]
    for step in result["steps"]:
        assert [f"{step['step']}", f"{step['sequences']}"] in [line[:2] for line in lines]
    idle = max(step["idle_ranks"] for step in result["steps"])
    assert (f"up to {idle} ranks have no sequence in a step" in shown) == (idle > 0)


def test_dry_run_of_a_hostfile(world, tmp_path):
    (tmp_path / "hosts").write_text("n[1-2] slots=2\nn3 slots=1\nn4 slots=2 spare\n")
    command = "launch", "--hostfile", tmp_path / "hosts", world / "recipe.yaml"
    assert must(*command, "--dry-run", 5).startswith("world: 5 ranks on 3 hosts: n[1-3]\n")
    result = json.loads(must(*command, "--dry-run", 2, "--include", "n2:1@n3", "--json"))
    assert [(rank["MASTER_ADDR"], rank["CUDA_VISIBLE_DEVICES"]) for rank in result["ranks"]] == [
        ("n2", "1"),
        ("n2", "0"),
    ]
    outcome = deltalm(*command, "--dry-run", 8)
    assert outcome.code == 2
    assert outcome.messages == [
        "deltalm: --dry-run 8, and the hosts have 5 slots: give --dry-run 5, or leave out --hostfile."
    ]
    assert deltalm("launch", "--dry-run", 8).messages == [
        "deltalm: --dry-run needs a recipe: deltalm launch --dry-run 32 RECIPE."
    ]


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("n1 slots=0\nn2 slots=1x\n", (), "line 2: 'slots=1x' does not give the slots: write n2 slots=1."),
        ("n[1-3] slots=2\n", ("--expect-hosts", 4), "--expect-hosts 4, and there are 3 hosts: n[1-3] slots=2."),
        ("n[1-3] slots=2\n", ("--expect-slots", 5), "--expect-slots 5, and there are 6 slots: n[1-3] slots=2."),
        ("n[1-3] slots=2\n", ("--include", "n4"), "--include n4: there is no host n4; the nearest is n3."),
        ("localhost slots=1\n127.0.0.1 slots=1\n", (), "lines 1 and 2: localhost and 127.0.0.1 are one host"),
        (None, (), "does not exist"),
    ],
)
def test_hosts_that_are_refused(world, tmp_path, text, options, message):
    if text is not None:
        (tmp_path / "hosts").write_text(text)
    before = snapshot(world)
    command = "launch", "--hostfile", tmp_path / "hosts", world / "recipe.yaml", "--out", world / "run", *options
    outcome = deltalm(*command)
    assert outcome.code == 2
    assert message in outcome.stderr
    assert snapshot(world) == before
