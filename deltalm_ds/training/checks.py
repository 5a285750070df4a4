"""All that can be known of a recipe before training, by opening what it names once."""

import sys
from pathlib import Path

import numpy as np

from deltalm_ds.data.stream import evaluation_batch
from deltalm_ds.errors import InputError
from deltalm_ds.evaluation.translation import make_scorer
from deltalm_ds.model.empty import empty_model
from deltalm_ds.processor import check_precision
from deltalm_ds.recipe.schema import Recipe
from deltalm_ds.training.deepspeed_config import deepspeed_config, precision
from deltalm_ds.training.initial_model import check_finite, starting_model
from deltalm_ds.training.inputs import Inputs, open_inputs
from deltalm_ds.training.monitors import check_monitors
from deltalm_ds.training.parameter_groups import freeze, parameter_groups
from deltalm_ds.training.r_drop import check_r_drop

CHECKED_BYTES = 4 << 30  # data sets up to this size are read whole: some seconds
LOOKED_AT_STEPS = 64
MOST_EMPTY_STEPS = 0.05  # a share of them


def check_inputs(recipe: Recipe, checkpoint: Path | None = None, trains_here: bool = True) -> Inputs:
    """Open what a recipe names and check all that can be known before training.

    Args:
        recipe: the experiment.
        checkpoint: what a run goes on from.
        trains_here: whether this machine has to be able to train it.

    Raises:
        InputError, DataError: something is missing, damaged, does not belong together, or could not be learned from.
    """
    if trains_here:
        check_precision(precision(deepspeed_config(recipe)), recipe.training.matmul_precision)
    check_monitors(recipe)
    inputs = open_inputs(recipe, checkpoint)
    _check_content(inputs)
    _check_steps(recipe, inputs)
    _check_modes(recipe, inputs)
    if inputs.validation is not None:
        evaluation_batch(inputs.validation)  # raises where there is nothing to validate with
    for test in inputs.tests:
        assert recipe.validation is not None
        # raises where a tokenizer's package is missing, say
        make_scorer(test, recipe.validation.metrics, inputs.vocabulary.languages)
    if inputs.start is not None:
        check_finite(starting_model(inputs.start, inputs.model_config), inputs.start)
    return inputs


def _check_content(inputs: Inputs) -> None:
    """Compare the checksums of every data set that is not too large for it, and name the others."""
    for dataset in {dataset.directory: dataset for dataset in inputs.datasets.values()}.values():
        num_bytes = sum(corpus.num_bytes for corpus in dataset.manifest.corpora)
        if num_bytes <= CHECKED_BYTES:
            dataset.check_content()
        else:
            directory = dataset.directory
            print(
                f"{directory}: {num_bytes / 1e9:.0f} GB not read; `deltalm data verify {directory}` does.",
                file=sys.stderr,
            )


def _check_steps(recipe: Recipe, inputs: Inputs) -> None:
    """InputError where so few sequences are drawn, or so few of them can be used, that many steps have none."""
    last = recipe.training.max_steps - 1
    steps = np.unique(np.linspace(0, last, min(LOOKED_AT_STEPS, last + 1)).astype(np.int64)).tolist()
    batches = [inputs.stream.global_batch(step) for step in steps]
    empty = sum(not len(batch.rows) for batch in batches)
    if empty > MOST_EMPTY_STEPS * len(steps):
        overlong, short = sum(b.num_overlong for b in batches), sum(b.num_too_short for b in batches)
        raise InputError(
            f"{empty} of {len(steps)} steps looked at have no sequence to learn from (left out: {overlong} too long, "
            f"{short} too short): raise batch.tokens_per_step, now {recipe.batch.tokens_per_step}, or the maximum "
            "lengths in data."
        )


def _check_modes(recipe: Recipe, inputs: Inputs) -> None:
    """InputError for parameters that the model has not got, and for a mode that needs dropout."""
    model = empty_model(inputs.model_config)
    freeze(model, recipe.optimizer)
    parameter_groups(model, recipe.optimizer)
    check_r_drop(recipe.training.r_drop, inputs.model_config)
