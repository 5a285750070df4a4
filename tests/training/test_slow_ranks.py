"""A rank that does its own work slowly is named, though all ranks, which wait for it, take as long for a step."""

import pytest
from jobs import Job

TRAINING = {"max_steps": 12, "save_every": 12}
SLOW = (("fp32_zero1", "data"), ("fp32_zero2", "backward"), ("fp32_zero3", "forward"))


@pytest.fixture(scope="module")
def named(tmp_path_factory, make_run, run_on_ranks):
    """The ranks that were told to be slow where rank 1 is, by ZeRO stage and section."""
    directory = tmp_path_factory.mktemp("slow")
    jobs = [
        Job(make_run(directory / f"{engine}_{section}", deepspeed=engine, training=TRAINING, validation=None), None, f)
        for engine, section in SLOW
        for f in [f"slow {section}"]
    ]
    return dict(zip(SLOW, run_on_ranks(directory, jobs, 2), strict=True))


@pytest.mark.parametrize("case", SLOW, ids="-".join)
def test_the_slow_rank_alone_is_named(named, case):
    assert named[case] == "1"
