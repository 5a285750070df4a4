"""Validation translates the same text to the same outputs on any number of ranks, at every ZeRO stage."""

import pytest
from jobs import Job

from deltalm_ds.runs.checkpoints import checkpoint_directories, read_state

ENGINES = ("fp32_zero1", "fp32_zero2", "fp32_zero3", "bf16_zero1", "bf16_zero2", "bf16_zero3")


@pytest.fixture(scope="module")
def scores(tmp_path_factory, make_run, run_on_ranks, text_changes):
    """What a validation of the same checkpoint measures of its text, by engine and number of ranks."""
    directory = tmp_path_factory.mktemp("runs")
    training = {"max_steps": 20, "save_every": 20, "average": {"decay": 0.9}}

    def job(name, engine, resumes=None, weights="trained"):
        changes = {"deepspeed": engine, "schedule": {"peak_lr": 1e-2}, "training": training, **text_changes}
        changes["validation"] = {**text_changes["validation"], "beam": 2, "weights": weights}
        run = make_run(directory / name, **changes)
        return Job(run, resumes and directory / resumes, resumes and "lost validation")

    assert run_on_ranks(directory, [job("trained", "fp32_zero1")], 2) == [0]
    jobs = {}
    for ranks in (1, 2, 3):
        of_ranks = {(engine, ranks): job(f"{engine}_{ranks}", engine, "trained") for engine in ENGINES}
        engine = "fp32_zero3" if ranks == 2 else "fp32_zero1"
        of_ranks["average", ranks] = job(f"average_{ranks}", engine, "trained", "average")
        assert set(run_on_ranks(directory, list(of_ranks.values()), ranks)) == {0}
        jobs |= of_ranks
    measured = {key: read_state(checkpoint_directories(one.run)[-1]).validation for key, one in jobs.items()}
    return {key: (found["bleu"], found["chrf"]) for key, found in measured.items()}


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "bf16", "average"])
def test_scores_are_equal_to_the_last_digit(precision, scores):
    found = {key: value for key, value in scores.items() if key[0].startswith(precision)}
    assert len(found) == (3 if precision == "average" else 9) and len(set(found.values())) == 1, found
    assert 5 < next(iter(found.values()))[1] < 95
