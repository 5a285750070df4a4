"""A run directory before its first step: the recipe resolved and everything it names opened and checked."""

import sys
from pathlib import Path

import yaml

from deltalm_ds.data.shards import ShardDataset
from deltalm_ds.errors import InputError
from deltalm_ds.files import atomic_file
from deltalm_ds.recipe.loading import save_recipe
from deltalm_ds.recipe.schema import Recipe
from deltalm_ds.training.deepspeed_config import deepspeed_config
from deltalm_ds.training.inputs import open_inputs

# what may differ between the first start of a run and a later one, without making it another experiment
_MAY_CHANGE = {"about", "deepspeed"}


CHECKED_BYTES = 4 << 30  # data sets up to this size are read whole before training: some seconds


def check_shards(recipe: Recipe) -> None:
    """Compare the checksums of every data set of the recipe that is not too large for it, and name the others.

    Raises:
        InputError, DataError: a data set is missing or damaged.
    """
    paths = {group.path for group in recipe.data.train}
    paths |= {recipe.validation.shards} if recipe.validation else set()
    for path in sorted(paths):
        dataset = ShardDataset.open(path)
        num_bytes = sum(corpus.num_bytes for corpus in dataset.manifest.corpora)
        if num_bytes <= CHECKED_BYTES:
            dataset.check_content()
        else:
            print(f"{path}: {num_bytes / 1e9:.0f} GB not read; `deltalm data verify {path}` does.", file=sys.stderr)


def prepare_run(recipe: Recipe, run: Path) -> None:
    """Check all inputs, then write RUN/recipe.yaml; a run that exists must be of the same recipe.

    Raises:
        InputError, DataError: something does not hold; nothing was written.
    """
    deepspeed_config(recipe)
    open_inputs(recipe)
    check_shards(recipe)
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
