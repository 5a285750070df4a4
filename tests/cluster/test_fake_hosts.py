"""`deltalm launch` on two hosts that need no root: to its end, and on from a rank that is killed."""

import signal
from pathlib import Path

import pytest

from tests.cluster.cases import VERDICTS
from tests.cluster.fake_hosts import FakeHosts
from tests.cluster.launched import STRANGE, Launched
from tests.faults.tiny import Training, records, write_experiment

STEPS, FAULT_STEP = 80, 20
TOLERANCE = 1e-6  # of a loss, relative, on other numbers of ranks


def test_a_rank_is_killed_and_the_losses_are_those_of_one_host(tmp_path: Path) -> None:
    model = {"dropout": 0.0, "attention_dropout": 0.0, "activation_dropout": 0.0}  # masks hang on the dealing to ranks
    recipe = write_experiment(tmp_path / "experiment", model=model, training={"max_steps": STEPS})
    one_host = Training(recipe, tmp_path / "one_host", 1)
    assert one_host.await_end() == 0, one_host.messages
    with FakeHosts(tmp_path / "fake", 2) as hosts:
        hostfile = tmp_path / "hostfile"
        hostfile.write_text("".join(f"{name} slots=1\n" for name in hosts.names))
        job = Launched(hosts, hostfile, recipe, tmp_path / "run", "launch.backoff_s=0.5")
        job.await_that(lambda: job.last_step() >= FAULT_STEP)
        (victim,) = job.processes(hosts.names[1], "rank")
        variables = victim.environ()
        assert variables[STRANGE[0]] == STRANGE[1] and variables["RANK"] == "1"
        victim.send_signal(signal.SIGKILL)
        job.await_that(lambda: len(job.events("started")) == 2)
        assert job.await_end() == 0, job.messages
    said = [str(event) for event in job.events(*VERDICTS)]
    assert any(hosts.names[1] in words and "rank 1" in words for words in said), said
    ours, theirs = records(job.run, "train"), records(one_host.run, "train")
    assert ours.keys() == theirs.keys() and len(ours) == STEPS
    assert {step: ours[step]["loss"] for step in ours} == pytest.approx(
        {step: theirs[step]["loss"] for step in theirs}, rel=TOLERANCE
    )
