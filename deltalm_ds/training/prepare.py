"""A run directory before its first step: the recipe resolved and everything it names opened and checked."""

from pathlib import Path

import yaml

from deltalm_ds.config import Recipe, save_recipe
from deltalm_ds.errors import InputError
from deltalm_ds.files import atomic_file
from deltalm_ds.training.engine_config import engine_config
from deltalm_ds.training.inputs import open_inputs

# what may differ between the first start of a run and a later one, without making it another experiment
_MAY_CHANGE = {"about", "engine"}


def prepare_run(recipe: Recipe, run: Path) -> None:
    """Check all inputs, then write RUN/recipe.yaml; a run that exists must be of the same recipe.

    Raises:
        InputError, DataError: something does not hold; nothing was written.
    """
    engine_config(recipe)
    open_inputs(recipe)
    path = run / "recipe.yaml"
    if path.exists():
        before = yaml.safe_load(path.read_text(encoding="utf-8"))
        now = recipe.model_dump(mode="json", exclude_none=True)
        keys = (before.keys() | now.keys()) - _MAY_CHANGE
        changed = sorted(key for key in keys if before.get(key) != now.get(key))
        if changed:
            raise InputError(
                f"{run} holds a run of another recipe (sections {', '.join(changed)} differ): "
                "name another run directory, or give the recipe it was started with."
            )
    run.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        save_recipe(recipe, file)
