"""What is done to a job of SLURM's, and how it must come again or end (`slurm_campaign.py`)."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.cluster.slurm_cluster import PARTITION, SlurmJob

FAULT_STEP, SECOND_FAULT_STEP = 10, 50
SMALL = ("--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=1")
PREEMPTION = (
    "PreemptType=preempt/partition_prio\nPreemptMode=CANCEL\nJobRequeue=0\n"
    "PartitionName=low Nodes={nodes} Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=60\n"
    "PartitionName=high Nodes={nodes} MaxTime=INFINITE State=UP PriorityTier=10"
)


@dataclass(frozen=True)
class Case:
    """A training under SLURM.

    Attributes:
        what: happens, in words.
        act: does it, to a job that was submitted for a run; returns the job that ends, and how that must end.
        script: which of the batch scripts.
        options: of sbatch.
        environment: the variables at the script's head.
        settings: of slurm.conf.
        gpus: that each node says to have.
        said: what must be in the job's output.
        is_whole: whether the run gets to its end.
    """

    what: str
    act: Callable[[SlurmJob, Path], dict[str, str]]
    script: str = "finetune"
    options: tuple[str, ...] = SMALL
    environment: dict[str, str] = field(default_factory=dict)
    settings: str = PARTITION
    gpus: int = 1
    said: str = ""
    is_whole: bool = True


def _completed(job: SlurmJob, restarts: int = 0) -> dict[str, str]:
    facts = job.await_end()
    outcome = facts["JobState"], facts["ExitCode"], int(facts["Restarts"])
    assert outcome == ("COMPLETED", "0:0", restarts), f"{outcome}: {job.messages[-3000:]}"
    return facts


def _undisturbed(job: SlurmJob, _run: Path) -> dict[str, str]:
    return _completed(job)


def _signalled(job: SlurmJob, run: Path) -> dict[str, str]:
    job.await_step(run, FAULT_STEP)
    job.slurm.run("scancel", "--signal=USR1", job.number)
    return _completed(job, restarts=1)


def _signalled_whole(job: SlurmJob, run: Path) -> dict[str, str]:
    job.await_step(run, FAULT_STEP)
    job.slurm.run("scancel", "--full", "--signal=USR1", job.number)
    return _completed(job, restarts=1)


def _limited(job: SlurmJob, run: Path) -> dict[str, str]:
    """Its time is shortened to what is nearly over, and given back to the next start: a job's limit is its own.

    SLURM looks every 30 s whether it is time for the signal; until then a rank is held.
    """
    job.await_step(run, FAULT_STEP)
    rank = _rank_of("n2", job)
    rank.suspend()
    minutes, seconds = map(int, job.facts()["RunTime"].split(":")[1:])
    limit = (60 * minutes + seconds + 40) // 60 + 1
    job.slurm.run("scontrol", "update", f"JobId={job.number}", f"TimeLimit={limit}")
    job.slurm.await_that(lambda: "stopping: the ranks save" in job.messages, what="the signal")
    rank.resume()
    job.slurm.await_that(lambda: job.facts()["Restarts"] == "1", what="the restart")
    job.slurm.run("scontrol", "update", f"JobId={job.number}", "TimeLimit=480")
    return _completed(job, restarts=1)


def _rank_killed(job: SlurmJob, run: Path) -> dict[str, str]:
    job.await_step(run, FAULT_STEP)
    _rank_of("n2", job).kill()
    return _completed(job, restarts=1)


def _rank_of(host: str, job: SlurmJob) -> psutil.Process:
    processes = job.slurm.hosts.processes(host)
    return next(one for one in processes if "deltalm_ds.training.train" in one.cmdline() and one.name() != "srun")


def _drained(job: SlurmJob, run: Path) -> dict[str, str]:
    job.await_step(run, FAULT_STEP)
    job.slurm.run("scontrol", "update", "NodeName=n2", "State=DRAIN", "Reason=tried")
    job.slurm.run("scancel", "--signal=USR1", job.number)
    facts = _completed(job, restarts=1)
    assert "n2" not in job.slurm.run("scontrol", "show", "hostnames", facts["NodeList"]).split()
    return facts


def _node_lost(number: int) -> Callable[[SlurmJob, Path], dict[str, str]]:
    def act(job: SlurmJob, run: Path) -> dict[str, str]:
        job.await_step(run, FAULT_STEP)
        job.slurm.hosts.switch_off(f"n{number}")
        facts = _completed(job, restarts=1)
        assert f"n{number}" not in facts["NodeList"]
        return facts

    return act


def _cap_reached(job: SlurmJob, run: Path) -> dict[str, str]:
    for step in (FAULT_STEP, SECOND_FAULT_STEP):
        job.await_step(run, step)
        job.slurm.run("scancel", "--signal=USR1", job.number)
        if step == FAULT_STEP:
            job.slurm.await_that(lambda: job.facts()["Restarts"] == "1", what="the restart")
    facts = job.await_end()
    assert (facts["JobState"], facts["Restarts"]) == ("FAILED", "1"), facts
    time.sleep(3)  # a requeue would be seen by now
    assert (job.facts()["JobState"], job.slurm.jobs()) == ("FAILED", [job.number]), f"{job.facts()}: {job.messages}"
    return _completed(job.slurm.submit("finetune", *SMALL, RECIPE=os.environ["CASE_RECIPE"], RUN=str(run)))


def _succeeded(job: SlurmJob, run: Path) -> dict[str, str]:
    job.await_step(run, FAULT_STEP)
    job.slurm.run("scancel", "--signal=USR1", job.number)
    return _completed(_successor(job))


def _preempted(job: SlurmJob, run: Path) -> dict[str, str]:
    job.await_step(run, FAULT_STEP)
    job.slurm.run("sbatch", "--partition=high", "--nodes=4", "--exclusive", "--output=/dev/null", "--wrap=sleep 5")
    job.slurm.await_that(
        lambda: job.facts()["Restarts"] == "1" or len(job.slurm.jobs()) == 3, what="a restart, or a successor"
    )
    return _completed(job, restarts=1) if job.facts()["Restarts"] == "1" else _completed(_last(job))


def _last(job: SlurmJob) -> SlurmJob:
    return SlurmJob(job.slurm, job.slurm.jobs()[-1])


def _successor(job: SlurmJob) -> SlurmJob:
    """The job that a job submits when it ends."""
    job.slurm.await_that(lambda: len(job.slurm.jobs()) == 2, what=f"a successor: {job.messages[-2000:]}")
    assert job.await_end()["Restarts"] == "0"
    return _last(job)


def _cancelled(job: SlurmJob, run: Path) -> dict[str, str]:
    job.await_step(run, FAULT_STEP)
    job.slurm.run("scancel", job.number)
    facts = job.await_end()
    assert (facts["JobState"], facts["Restarts"], job.slurm.jobs()) == ("CANCELLED", "0", [job.number]), facts
    job.slurm.await_that(lambda: "idle" in set(job.slurm.node_states().values()), what="nodes idle")
    again = job.slurm.submit("finetune", *SMALL, RECIPE=os.environ["CASE_RECIPE"], RUN=str(run))
    return _completed(again)


def _refused(job: SlurmJob, _run: Path) -> dict[str, str]:
    facts = job.await_end()
    assert (facts["JobState"], facts["ExitCode"], facts["Restarts"]) == ("FAILED", "2:0", "0"), facts
    return facts


CASES = {
    "undisturbed": Case("nothing: 2 nodes × 1 task", _undisturbed),
    "four_ranks": Case(
        "nothing: `pretrain.sbatch`, 2 nodes × 2 tasks",
        _undisturbed,
        script="pretrain",
        options=("--nodes=2", "--ntasks-per-node=2", "--gpus-per-node=2"),
        gpus=2,
    ),
    "a_task_a_node": Case(
        "`scancel --signal=USR1`; 2 nodes × 1 task that starts 2 ranks",
        _signalled,
        options=("--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=2"),
        gpus=2,
    ),
    "drained": Case("the second node drained, `scancel --signal=USR1`", _drained),
    "signal": Case("`scancel --signal=USR1`", _signalled),
    "signal_to_all": Case("`scancel --full --signal=USR1`", _signalled_whole),
    "time_limit": Case(
        "the time limit", _limited, options=(*SMALL, "--signal=B:USR1@90"), said="stopping: the ranks save"
    ),
    "rank_killed": Case("a rank killed", _rank_killed),
    "node_lost": Case("the second node switched off", _node_lost(2)),
    "first_node_lost": Case("the first node switched off", _node_lost(1)),
    "cap_reached": Case(
        "`MAX_RESTARTS=1` and two signals, where `RequeueExit=75`; submitted again",
        _cap_reached,
        environment={"MAX_RESTARTS": "1"},
        settings=f"RequeueExit=75\n{PARTITION}",
        said="which is the most: submit it to go on",
    ),
    "requeue_off": Case(
        "`scancel --signal=USR1` where `JobRequeue=0` holds (`--no-requeue`)",
        _succeeded,
        options=(*SMALL, "--no-requeue"),
        settings=f"JobRequeue=0\n{PARTITION}",
        said="submits its successor, as it may not be requeued",
    ),
    "preempted": Case("preempted, `PreemptMode=CANCEL`, a time of grace", _preempted, settings=PREEMPTION),
    "preempted_at_once": Case(
        "preempted, `PreemptMode=CANCEL`, no time of grace",
        _preempted,
        settings=PREEMPTION.replace("GraceTime=60", "GraceTime=0"),
    ),
    "cancelled": Case("`scancel`; submitted again", _cancelled, said="stopping: the ranks save"),
    "refused": Case(
        "a recipe that cannot be trained",
        _refused,
        environment={"OVERRIDES": "schedule.peak_lr=-1"},
        said="schedule.peak_lr: Input should be greater than 0",
        is_whole=False,
    ),
    "few_gpus": Case(
        "2 tasks a node for 1 GPU",
        _refused,
        options=("--nodes=2", "--ntasks-per-node=2", "--gpus-per-node=1"),
        said="2 ranks on a node with 1 GPUs",
        is_whole=False,
    ),
}
