"""A run goes on under other circumstances: ranks, ZeRO stage, precision, accumulation, micro-batch, learning rate.

A checkpoint in the middle of one rank's run is gone on from; what is compared are the steps behind it.
"""

import pytest
from jobs import Job

from deltalm_ds.runs.metrics import read_metrics

OTHERS = {
    "stage 1": {"deepspeed": "fp32_zero1"},
    "stage 2, smaller micro-batches": {"deepspeed": "fp32_zero2", "batch": {"micro_batch_tokens": 100}},
    "stage 3, accumulation": {"deepspeed": "fp32_zero3", "batch": {"min_micro_batches": 4}},
}
STEPS, MIDDLE = 12, 6
TRAINING = {"max_steps": STEPS, "save_every": MIDDLE}
# Of float32 sums in another order; measured: at most 2e-8 in the losses of these steps, 1e-7 in the norm.
LOSS, NORM = 1e-7, 1e-6


def steps(run, key="loss"):
    """A value of the steps behind the checkpoint, by step."""
    return {one["step"]: one[key] for one in read_metrics(run) if one["kind"] == "train" and one["step"] > MIDDLE}


def largest_difference(run, expected, key="loss"):
    """Of these steps, relative."""
    found, wanted = steps(run, key), steps(expected, key)
    assert found.keys() == wanted.keys() == set(range(MIDDLE + 1, STEPS + 1))
    return max(abs(found[step] / wanted[step] - 1) for step in wanted)


@pytest.fixture(scope="module")
def runs(tmp_path_factory, make_run, run_on_ranks):
    """The run on one rank, and those on two ranks that go on from it; all of them got to their end."""
    directory = tmp_path_factory.mktemp("elastic")

    def job(name, resumes=None, **changes):
        return Job(make_run(directory / name, training=TRAINING, **changes), resumes and directory / resumes)

    assert run_on_ranks(directory, [job("still", batch={"micro_batch_tokens": 400})], 1) == [0]
    jobs = [job(name, "still", **changes) for name, changes in OTHERS.items()]
    for precision in ("bf16", "fp16"):
        engine = f"{precision}_zero2"
        jobs.append(job(f"to {precision}", "still", deepspeed=engine))
        jobs.append(job(precision, deepspeed=engine))
        jobs.append(job(f"from {precision}", precision, deepspeed="fp32_zero1"))
    jobs.append(job("slower", "still", schedule={"peak_lr": 1e-4}, optimizer={"weight_decay": 0.0}))
    assert run_on_ranks(directory, jobs, 2) == [0] * len(jobs)
    return directory


@pytest.mark.parametrize("name", OTHERS)
def test_in_float32_it_computes_the_same(name, runs):
    run, still = runs / name, runs / "still"
    assert 0 < largest_difference(run, still) <= LOSS
    assert largest_difference(run, still, "gradient_norm") <= NORM
    assert steps(run, "tokens_per_step") == steps(still, "tokens_per_step")


@pytest.mark.parametrize(("precision", "tolerance"), [("bf16", 2e-3), ("fp16", 3e-4)])
def test_precision_may_change_both_ways(precision, tolerance, runs):
    """Sixteen bits go on from float32 as far from it as ever; and float32 goes on from them, without a loss scale."""
    assert 0 < largest_difference(runs / f"to {precision}", runs / "still") <= tolerance
    assert 0 < largest_difference(runs / f"from {precision}", runs / precision) <= tolerance
    assert largest_difference(runs / f"from {precision}", runs / precision, "gradient_norm") <= 10 * tolerance


def test_another_learning_rate_is_taken(runs):
    rates = steps(runs / "slower", "learning_rate")
    assert rates == {step: pytest.approx(1e-4 * (5 / (step - 1)) ** 0.5) for step in range(MIDDLE + 1, STEPS + 1)}
