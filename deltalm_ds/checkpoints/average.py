"""The mean of several checkpoints' weights, read one after the other: memory of two models, not of N."""

from pathlib import Path

import torch

from deltalm_ds.checkpoints.directory import load_model, read_config, save_model
from deltalm_ds.checkpoints.run import checkpoint_directories
from deltalm_ds.errors import DataError, InputError
from deltalm_ds.vocabulary import Vocabulary


def average_checkpoints(run: Path, last: int, out: Path) -> list[Path]:
    """Write the mean of a run's `last` newest checkpoints as a model directory; returns those averaged.

    Raises:
        InputError: the run has fewer checkpoints. DataError: they are of different shapes or vocabularies.
    """
    checkpoints = checkpoint_directories(run)[-last:]
    if not checkpoints:
        raise InputError(f"{run} has no checkpoints: is it the directory of a run?")
    if len(checkpoints) < last:
        raise InputError(f"{run} has {len(checkpoints)} checkpoints, not {last}: give --last {len(checkpoints)}.")
    config, vocabulary = read_config(checkpoints[-1]), Vocabulary.load(checkpoints[-1])
    total: dict[str, torch.Tensor] = {}
    for checkpoint in checkpoints:
        if read_config(checkpoint) != config or Vocabulary.load(checkpoint).hash != vocabulary.hash:
            raise DataError(f"{checkpoint} has another shape or vocabulary than {checkpoints[-1]}.")
        for name, tensor in load_model(checkpoint).state_dict().items():
            # float64 sums: the mean of equal weights is exactly that weight
            total[name] = total[name].add_(tensor) if name in total else tensor.double()
    weights = {name: (tensor / last).float() for name, tensor in total.items()}
    provenance = {"made_by": "deltalm average", "averaged": [str(path) for path in checkpoints]}
    save_model(out, config, weights, vocabulary, provenance)
    return checkpoints
