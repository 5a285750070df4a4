"""Model directories: `config.json`, `model*.safetensors` (float32 weights by name) and the vocabulary.

A checkpoint of a run is one too, with the optimizer's state beside it (training/state.py).
"""

from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from deltalm_ds.errors import DataError, InputError
from deltalm_ds.files import atomic_directory, read_json, write_json
from deltalm_ds.model.config import DeltaLMConfig
from deltalm_ds.model.deltalm import DeltaLM
from deltalm_ds.vocabulary import Vocabulary


def load_model(directory: str | Path, **overrides: Any) -> DeltaLM:
    """Read a model directory, float32, in evaluation mode; overrides replace fields of its config.

    Raises:
        InputError: a file is missing. DataError: a file is damaged, or tensors are missing, unknown or misshapen.
    """
    config = DeltaLMConfig.model_validate(read_config(directory).model_dump() | overrides)
    with torch.device("meta"):
        model = DeltaLM(config)
    load_weights(model, read_weights(directory), str(directory))
    return model.eval()


def save_model(
    directory: str | Path,
    config: DeltaLMConfig,
    weights: dict[str, Tensor],
    vocabulary: Vocabulary,
    provenance: dict[str, Any],
) -> None:
    """Write a model directory, complete or not at all.

    Raises:
        InputError: the directory exists and is not empty, or the weights cannot be written (a full disk, say).
    """
    with atomic_directory(directory) as temporary:
        contiguous = {name: tensor.contiguous() for name, tensor in weights.items()}
        try:
            save_file(contiguous, temporary / "model.safetensors", metadata={"format": "pt"})
        except SafetensorError as error:
            raise InputError(f"{directory} cannot be written: {error}.") from None
        vocabulary.save(temporary)
        write_json(temporary / "config.json", {"model": config.model_dump(), "provenance": provenance})


def read_config(directory: str | Path) -> DeltaLMConfig:
    """The `model` section of a model directory's config.json.

    Raises:
        InputError: there is none. DataError: it does not describe a DeltaLM.
    """
    path = Path(directory) / "config.json"
    if not path.is_file():
        raise InputError(f"{path} does not exist: give a model directory or a checkpoint of a run.")
    content = read_json(path)
    if not isinstance(content, dict) or "model" not in content:
        raise InputError(f"{path} has no 'model' section: is {directory} a DeltaLM model directory?")
    try:
        return DeltaLMConfig.model_validate(content["model"])
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        raise DataError(f"The 'model' section of {path} does not describe a DeltaLM: {faults}.") from None


def read_weights(directory: str | Path) -> dict[str, Tensor]:
    """All tensors of a model directory, by name; the model may be in one file or several.

    Raises:
        InputError: there is no such file. DataError: one cannot be read.
    """
    files = sorted(Path(directory).glob("model*.safetensors"))
    if not files:
        raise InputError(f"{directory} has no model.safetensors.")
    weights: dict[str, Tensor] = {}
    for file in files:
        try:
            weights |= load_file(file)
        except (SafetensorError, OSError) as error:
            raise DataError(f"{file} cannot be read as safetensors: {error}.") from error
    return weights


def load_weights(model: DeltaLM, weights: dict[str, Tensor], origin: str) -> None:
    """Put named tensors in place of the model's parameters, in float32; every name and shape must agree.

    Raises:
        DataError: naming the first tensors that are missing, unknown or of another shape.
    """
    wanted = dict(model.named_parameters())
    faults = [f"{name} is missing" for name in wanted if name not in weights]
    faults += [f"{name} is unknown" for name in weights if name not in wanted]
    for name in wanted:
        if name in weights and wanted[name].shape != weights[name].shape:
            shapes = f"{tuple(weights[name].shape)}, the model needs {tuple(wanted[name].shape)}"
            faults.append(f"{name} has shape {shapes}")
    if faults:
        more = f" (and {len(faults) - 3} more)" if len(faults) > 3 else ""
        raise DataError(f"{origin} does not fit the model: {'; '.join(faults[:3])}{more}.")
    model.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, assign=True)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
