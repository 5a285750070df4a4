"""What a model directory holds, for people and scripts."""

from pathlib import Path
from typing import Any

import torch

from deltalm_ds.checkpoints.directory import load_weights, read_config, read_weights
from deltalm_ds.files import read_json
from deltalm_ds.model.deltalm import DeltaLM
from deltalm_ds.vocabulary import Vocabulary


def describe_model(directory: Path) -> dict[str, Any]:
    """Shape, exact number of weights (with and without padding rows), dtypes, vocabulary blocks, provenance.

    Raises:
        InputError, DataError: it is not a model directory, or a damaged one.
    """
    config, vocabulary = read_config(directory), Vocabulary.load(directory)
    with torch.device("meta"):
        model = DeltaLM(config)
    weights = read_weights(directory)
    load_weights(model, weights, str(directory))
    return {
        "directory": str(directory),
        "model": config.model_dump(),
        "parameters": model.num_parameters(),
        "parameters_with_padding_rows": model.num_parameters(padding_rows=True),
        "dtypes": sorted({str(tensor.dtype).removeprefix("torch.") for tensor in weights.values()}),
        "vocabulary": {name: len(tokens) for name, tokens in vocabulary.blocks.items()},
        "vocabulary_hash": vocabulary.hash,
        "provenance": read_json(directory / "config.json").get("provenance", {}),
    }
