"""Which checkpoints a recipe may keep."""

import pytest
from pydantic import ValidationError

from deltalm_ds.recipe.schema import Recipe


def recipe_of(training, validation=None):
    content = {
        "name": "test",
        "vocabulary": "v",
        "model": {"preset": "tiny"},
        "data": {"train": [{"path": "d"}]},
        "batch": {"tokens_per_step": 1000, "micro_batch_tokens": 1000},
        "schedule": {"peak_lr": 1e-3, "warmup_steps": 1},
        "training": {"max_steps": 100, "save_every": 10, **training},
    }
    return Recipe.model_validate(content | ({"validation": validation} if validation else {}))


def test_the_best_are_those_by_what_is_measured():
    text = {"shards": "s", "text": "t", "metrics": ["bleu", "chrf"]}
    assert recipe_of({"keep_best": {"count": 3, "metric": "chrf"}}, text).training.keep_best.count == 3
    assert recipe_of({"keep_best": {"metric": "nll"}}).training.keep_best.metric == "nll"
    with pytest.raises(ValidationError, match=r"metric=blue is not measured.*nearest that is: bleu \(of loss, nll, bl"):
        recipe_of({"keep_best": {"metric": "blue"}}, text)
    with pytest.raises(ValidationError, match=r"metric=bleu is not measured.*\(of loss, nll\)"):
        recipe_of({"keep_best": {"metric": "bleu"}}, {"shards": "s"})
    with pytest.raises(ValidationError, match="metric=length_ratio has no better end, so that nothing is ranked by it"):
        recipe_of({"keep_best": {"metric": "length_ratio"}}, text | {"metrics": ["length_ratio"]})


def test_permanent_ones_are_ones_that_are_written():
    assert recipe_of({"keep_every": 50}).training.keep_every == 50
    with pytest.raises(ValidationError, match="25 is no multiple of save_every=10: there are no such checkpoints"):
        recipe_of({"keep_every": 25})
