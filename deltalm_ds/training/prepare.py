"""A run directory before the first step of a start: everything checked, the recipe in it, and what may have changed."""

import fnmatch
import sys
from pathlib import Path
from typing import Any

from deltalm_ds.errors import DataError, InputError
from deltalm_ds.files import atomic_file, locked, read_json, write_json
from deltalm_ds.recipe.loading import load_recipe, save_recipe
from deltalm_ds.recipe.schema import Recipe
from deltalm_ds.runs.checkpoints import find_fault, newest_whole_checkpoint, read_state
from deltalm_ds.runs.events import record_event
from deltalm_ds.training.checks import check_inputs
from deltalm_ds.training.inputs import Inputs, changed_inputs

INPUTS = "inputs.json"  # of a run directory: the identity of what it was prepared for
LOCK = ".lock"  # of a run directory: held by whoever writes to it
IN_USE = "Another process trains in {run}: wait for it, or name another directory."
# What may differ between the starts of a run without making it another experiment. Paths may, as what they hold is told
# by its content (`Inputs.identity`).
MAY_CHANGE = (
    *("name", "about.*", "deepspeed", "vocabulary", "initial_model", "data.train.*.path", "validation.*", "validation"),
    "phases.*.train.*.path",
    *("batch.micro_batch_tokens", "batch.min_micro_batches", "schedule.*", "training.clip_norm"),
    *("optimizer.betas.*", "optimizer.eps", "optimizer.weight_decay", "optimizer.no_decay", "optimizer.no_decay.*"),
    *("optimizer.layer_decay", "optimizer.definition"),
    *("optimizer.implementation",),
    *("training.max_steps", "training.save_every", "training.keep_last", "training.log_every"),
    *("training.keep_every", "training.keep_best.*", "training.patience", "training.max_unsaved_steps"),
    *("training.matmul_precision", "training.max_skipped_updates", "training.cuda_graphs"),
    *("training.limits.*", "training.spikes.*"),
    *("training.monitors", "training.monitors.*", "training.profile", "training.profile.*"),
    "launch.*",
)


def prepare_run(recipe: Recipe, run: Path, accept_changed_data: bool = False, trains_here: bool = True) -> Inputs:
    """Check everything, then write RUN/recipe.yaml with absolute paths; a run that exists must be of the same recipe.

    Args:
        recipe: the experiment.
        run: its directory, new or of a run to go on with.
        accept_changed_data: go on with data sets that are others than the run had so far. It is recorded.
        trains_here: whether this machine, and not others, is to train it.

    Raises:
        InputError, DataError: something does not hold, or somebody else trains there; nothing was written.
    """
    recipe = _with_absolute_paths(recipe)
    if not run.is_dir():
        inputs = check_inputs(recipe, trains_here=trains_here)
        run.mkdir(parents=True)
        _write(recipe, inputs, run, {})
        (run / LOCK).touch()
        return inputs
    with locked(run / LOCK, IN_USE.format(run=run)):
        changes = _changed_keys(recipe, run)
        checkpoint = newest_whole_checkpoint(run, _fault_of_what_is_opened)
        inputs = check_inputs(recipe, checkpoint, trains_here)
        if checkpoint is not None:
            changes |= _changed_data(inputs, run, checkpoint, accept_changed_data)
        _write(recipe, inputs, run, changes)
    return inputs


def _write(recipe: Recipe, inputs: Inputs, run: Path, changes: dict[str, tuple[Any, Any]]) -> None:
    if changes:
        for key, values in changes.items():
            before, now = (_brief(value) if isinstance(value, dict) else value for value in values)
            print(f"{run}: {key} was {before}, is {now}", file=sys.stderr)
        record_event(run, "changed", changes=changes)
    with atomic_file(run / "recipe.yaml") as file:
        save_recipe(recipe, file)
    write_json(run / INPUTS, inputs.identity)


def _changed_keys(recipe: Recipe, run: Path) -> dict[str, tuple[Any, Any]]:
    """The keys that differ from those of the run's own recipe, with both values; InputError if one must not."""
    path = run / "recipe.yaml"
    if not path.exists():
        return {}
    before, now = (_flat(one.model_dump(mode="json")) for one in (load_recipe(path), recipe))
    changes = {
        key: (before.get(key), now.get(key))
        for key in sorted(before.keys() | now.keys())
        if before.get(key) != now.get(key)
    }
    # Passes under a cap are spread over the steps of the run: with more steps, those done would have been others.
    fixed = "training.max_steps" if any(rule.max_passes is not None for rule in recipe.samplings) else None
    refused = [key for key in changes if key == fixed or not any(fnmatch.fnmatch(key, one) for one in MAY_CHANGE)]
    if refused:
        differences = "; ".join(f"{key} was {changes[key][0]}, is {changes[key][1]}" for key in refused)
        raise InputError(
            f"{run} holds a run of another recipe ({differences}): name another run directory, or give the recipe it "
            "was started with."
        )
    return changes


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested sections and lists as one table of dotted keys."""
    items = values.items() if isinstance(values, dict) else enumerate(values)
    table: dict[str, Any] = {}
    for key, value in items:
        if isinstance(value, dict | list):
            table |= _flat(value, f"{prefix}{key}.")
        else:
            table[f"{prefix}{key}"] = value
    return table


def _fault_of_what_is_opened(checkpoint: Path) -> str | None:
    """The optimizer's files, most of a checkpoint, are for the ranks to read, each its share."""
    return find_fault(checkpoint, lambda files: [name for name in files if not name.startswith("optimizer-")])


def _changed_data(inputs: Inputs, run: Path, checkpoint: Path, accept: bool) -> dict[str, tuple[Any, Any]]:
    """The data sets that are others than those of a checkpoint; DataError if that is not accepted."""
    before = read_state(checkpoint).inputs
    changes = changed_inputs(before, inputs.identity) if before else {}
    if changes and not accept:
        differences = "\n".join(f"  {key}: {_brief(was)}, now {_brief(now)}" for key, (was, now) in changes.items())
        raise DataError(
            f"{run} was trained on other data than the recipe names now:\n{differences}\n"
            "Give the data it had, start a new run (initial_model takes the weights), or go on all the same with "
            "--accept-changed-data."
        )
    return changes


def _brief(value: dict[str, Any] | None) -> str:
    return "none" if value is None else f"{value['rows']:,} rows, checksum {value['manifest'][:16]} ({value['path']})"


def check_prepared(inputs: Inputs, run: Path) -> None:
    """DataError if a rank finds other inputs than the run was prepared with."""
    path = run / INPUTS
    changes = changed_inputs(read_json(path), inputs.identity) if path.exists() else {}
    if changes:
        raise DataError(
            f"{', '.join(changes)} changed since {run} was prepared, or is another one on this host: start it again "
            "with `deltalm train`, which checks it."
        )


def _with_absolute_paths(recipe: Recipe) -> Recipe:
    """The same whatever the working directory."""
    content = recipe.model_dump(mode="python", exclude_none=True)
    for section in (content["data"], *content["phases"]):
        section["train"] = [{**group, "path": group["path"].absolute()} for group in section["train"]]
    content["vocabulary"] = recipe.vocabulary.absolute()
    if recipe.initial_model is not None:
        content["initial_model"] = recipe.initial_model.absolute()
    if recipe.validation is not None:
        paths = {name: path.absolute() for name in ("shards", "text") if (path := content["validation"].get(name))}
        content["validation"] = {**content["validation"], **paths}
    if recipe.deepspeed.endswith(".json"):
        content["deepspeed"] = str(Path(recipe.deepspeed).absolute())
    return Recipe.model_validate(content)
