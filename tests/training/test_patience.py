"""Which validations count as better, and after how many others a run ends."""

import pytest
from pydantic import ValidationError

from deltalm_ds.recipe.training_section import BestCheckpoints, TrainingSection
from deltalm_ds.runs.checkpoints import BestValidation, TrainingState
from deltalm_ds.training.patience import count_validation, reason_to_end

NAN = float("nan")


def counted(metric, values):
    """The best of values measured at steps 10, 20, …"""
    state = TrainingState()
    for number, value in enumerate(values, start=1):
        state.step, state.validation = 10 * number, {metric: value}
        count_validation(state, metric)
    return state.best and (state.best.value, state.best.step, state.best.later)


@pytest.mark.parametrize(
    ("metric", "values", "best"),
    [
        ("loss", [3.0, 2.0, 2.5, 2.0], (2.0, 20, 2)),
        ("bleu", [3.0, 4.0, 4.0, 5.0, 1.0], (5.0, 40, 1)),
        ("ter", [90.0, 80.0, 85.0], (80.0, 20, 1)),
        ("loss", [NAN, 2.0, NAN, 1.0, NAN, NAN], (1.0, 40, 2)),
        ("loss", [NAN], None),
    ],
)
def test_the_better_end_is_the_metrics(metric, values, best):
    assert counted(metric, values) == best


def test_another_metric_begins_anew():
    state = TrainingState(30, validation={"loss": 2.0, "chrf": 40.0}, best=BestValidation("loss", 1.0, 10, 7))
    count_validation(state, "chrf")
    assert state.best == BestValidation("chrf", 40.0, 30)


@pytest.mark.parametrize(("patience", "later", "ends"), [(None, 9, False), (3, 2, False), (3, 3, True), (3, 4, True)])
def test_the_end(patience, later, ends):
    training = TrainingSection(max_steps=100, save_every=10, patience=patience, keep_best=BestCheckpoints(metric="nll"))
    state = TrainingState(50, best=BestValidation("nll", 1.0, 10, later))
    assert (reason_to_end(state, training) is not None) == ends
    state.best = BestValidation("loss", 1.0, 10, later)  # what it was kept by before
    assert reason_to_end(state, training) is None


def test_patience_needs_validations(make_recipe):
    with pytest.raises(ValidationError, match="patience needs a validation"):
        make_recipe(validation=None, training={"patience": 2})
