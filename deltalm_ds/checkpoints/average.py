"""The mean of several models' weights, one tensor after the other: memory of two tensors, not of N models."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deltalm_ds.checkpoints.directory import (
    WEIGHT_FILES,
    check_finite,
    check_fit,
    naming_checkpoint,
    open_weights,
    parameter_shapes,
    read_config,
    save_model,
)
from deltalm_ds.checkpoints.provenance import provenance
from deltalm_ds.checkpoints.tensor_files import open_tensors
from deltalm_ds.errors import DataError, InputError
from deltalm_ds.model.config import DeltaLMConfig
from deltalm_ds.runs.checkpoints import read_state
from deltalm_ds.vocabulary import Vocabulary

RUNNING_AVERAGE_FILES = "average-*.safetensors"  # of a checkpoint whose run keeps a running average of its weights
TRAINING_FIELDS = {"dropout", "attention_dropout", "activation_dropout", "activation_checkpointing"}


def average_models(directories: Sequence[Path], out: Path, running: bool = False) -> None:
    """Write the mean of model directories (checkpoints of a run, say) as a new one.

    With `running` of the checkpoints' running averages, which their run has kept beside the weights it trains.

    Sums are float64: the mean of equal weights is exactly that weight. What only matters in training (dropout) is
    taken from the last.

    Raises:
        InputError: a directory is named twice, is none, or has no running average. DataError: the models have not the
            same architecture and vocabulary, or are damaged, or a weight is NaN or infinite.
    """
    if len({directory.resolve() for directory in directories}) < len(directories):
        raise InputError("A model to be averaged is named twice.")
    last = directories[-1]
    config, vocabulary = read_config(last), Vocabulary.load(last)
    shapes = parameter_shapes(config)
    for directory in directories:
        _check_same(last, config, vocabulary, directory)
        with naming_checkpoint(directory):
            check_fit(shapes, open_weights(directory), str(directory))
    files = [_file_of_each_tensor(directory, running) for directory in directories]

    def mean(name: str) -> Tensor:
        total = torch.zeros(shapes[name], dtype=torch.float64)
        for file in files:
            weight = open_tensors(file[name])[name]  # opened anew, as what was read of a mapped file stays in memory
            check_finite(f"{name} in {file[name]}", weight)
            total += weight
        return (total / len(files)).float()

    weights = {name: partial(mean, name) for name in shapes}
    averaged = [_describe(directory) for directory in directories]
    save_model(out, config, weights, vocabulary, provenance("deltalm average", averaged=averaged))


def _file_of_each_tensor(directory: Path, running: bool) -> dict[str, Path]:
    """Where a model's weights are, or their running averages: what is frozen has none, as it is its own."""
    averages = sorted(directory.glob(RUNNING_AVERAGE_FILES)) if running else []
    if running and not averages:
        raise InputError(f"{directory} has no running average: its run keeps none (training.average in the recipe).")
    paths = (*sorted(directory.glob(WEIGHT_FILES)), *averages)  # the later ones count
    return {name: path for path in paths for name in open_tensors(path)}


def _describe(directory: Path) -> dict[str, Any]:
    """Path, and for a checkpoint of a run its step and validation metrics."""
    if not (directory / "state.json").is_file():
        return {"path": str(directory)}
    state = read_state(directory)
    return {"path": str(directory), "step": state.step, "validation": state.validation}


def _check_same(first: Path, config: DeltaLMConfig, vocabulary: Vocabulary, second: Path) -> None:
    """DataError naming both directories and the first thing in which they differ."""
    ours, theirs = (model.model_dump(exclude=TRAINING_FIELDS) for model in (config, read_config(second)))
    for name, value in ours.items():
        if theirs[name] != value:
            raise _different(first, second, f"{name} is {value} and {theirs[name]}")
    other = Vocabulary.load(second)
    if other.hash != vocabulary.hash:
        rows = range(min(vocabulary.size, other.size))
        row = next((row for row in rows if vocabulary.token(row) != other.token(row)), None)
        tokens = f"token {row} is {vocabulary.token(row)!r} and {other.token(row)!r}" if row is not None else None
        raise _different(first, second, tokens or "the vocabularies have other blocks or SentencePiece models")


def _different(first: Path, second: Path, difference: str) -> DataError:
    return DataError(f"{first} and {second} cannot be averaged: {difference}.")
