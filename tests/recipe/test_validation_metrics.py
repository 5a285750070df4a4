"""What a recipe's validation may name as metrics of translations."""

import pytest

from deltalm_ds.errors import InputError
from deltalm_ds.recipe.loading import load_recipe, recipe_path


def test_a_recipe_names_metrics_of_the_table():
    path = recipe_path("demo_finetune")
    assert load_recipe(path).validation.metrics == ("bleu",)
    assert load_recipe(path, ["validation.metrics=[chrf++, ter]"]).validation.metrics == ("chrf++", "ter")
    for wrong, message in (("[blue]", "nearest is 'bleu'"), ("[]", "at least one"), ("[ter, ter]", "once")):
        with pytest.raises(InputError, match=f"validation.metrics: .*{message}"):
            load_recipe(path, [f"validation.metrics={wrong}"])
