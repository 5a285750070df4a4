"""Model directories: `config.json`, `model*.safetensors` (float32 weights by name) and the vocabulary.

A checkpoint of a run is one too, with the optimizer's state beside it (training/state.py).
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor

from deltalm_ds.checkpoints.safetensors_writer import write_safetensors
from deltalm_ds.checkpoints.tensor_files import TensorFile
from deltalm_ds.errors import DataError, InputError
from deltalm_ds.files import atomic_directory, read_json, write_json
from deltalm_ds.model.config import DeltaLMConfig
from deltalm_ds.model.deltalm import DeltaLM
from deltalm_ds.model.empty import empty_model
from deltalm_ds.runs.checkpoints import damaged
from deltalm_ds.vocabulary import Vocabulary

WEIGHT_FILES = "model*.safetensors"

Shape = tuple[int, ...]


def load_model(directory: str | Path, **overrides: Any) -> DeltaLM:
    """Read a model directory, float32, in evaluation mode; overrides replace fields of its config.

    Float32 weights are mapped from the files, not copied.

    Raises:
        InputError: a file is missing. DataError: a file is damaged, or tensors are missing, unknown or misshapen.
    """
    with naming_checkpoint(Path(directory)):
        config = DeltaLMConfig.model_validate(read_config(directory).model_dump() | overrides)
        model = empty_model(config)
        load_weights(model, open_weights(directory), str(directory))
    return model.eval()


@contextmanager
def naming_checkpoint(directory: Path) -> Iterator[None]:
    """What is wrong with a checkpoint of a run, whatever file it is, ends in the hint how to go on without it.

    Raises:
        DataError: instead of the InputError or DataError of the block, if the directory is a checkpoint of a run.
    """
    try:
        yield
    except InputError as error:
        if not (directory / "state.json").is_file():
            raise
        raise damaged(directory, str(error).rstrip(".")) from None


def save_model(
    directory: str | Path,
    config: DeltaLMConfig,
    weights: Mapping[str, Tensor | Callable[[], Tensor]],
    vocabulary: Vocabulary,
    provenance: dict[str, Any],
) -> None:
    """Write a model directory, float32, complete or not at all.

    Args:
        directory: a new one.
        config: of the model.
        weights: every parameter by its name. One may be a function that makes it: it is called when the tensor is to
            be written, so that a model can be converted with one tensor in memory at a time.
        vocabulary: names the rows of the token table.
        provenance: where the model comes from (see `provenance`).

    Raises:
        InputError: the directory exists and is not empty.
        DataError: a weight is missing, unknown or misshapen, or the vocabulary is of another size.
    """
    if vocabulary.num_tokens != config.vocabulary_size:
        sizes = f"{vocabulary.num_tokens:,} tokens, the model's {config.vocabulary_size:,}"
        raise DataError(f"{directory} cannot be written: the vocabulary has {sizes}.")
    shapes = parameter_shapes(config)
    # the shape of a tensor still to be made is checked when it is written
    known = {
        name: weight if isinstance(weight, Tensor) else torch.empty(shapes.get(name, ()), device="meta")
        for name, weight in weights.items()
    }
    check_fit(shapes, known, str(directory))

    def read(name: str) -> Tensor:
        weight = weights[name]
        return weight if isinstance(weight, Tensor) else weight()

    with atomic_directory(directory) as temporary:
        write_safetensors(temporary / "model.safetensors", shapes, read)
        vocabulary.save(temporary)
        write_json(temporary / "config.json", {"model": config.model_dump(), "provenance": provenance})


def parameter_shapes(config: DeltaLMConfig) -> dict[str, Shape]:
    """The shape of every parameter by its name, in the order in which they are written."""
    return {name: tuple(parameter.shape) for name, parameter in empty_model(config).named_parameters()}


def check_fit(wanted: Mapping[str, Shape], found: Mapping[str, Tensor], origin: str) -> None:
    """Check that named tensors are those of a model.

    Raises:
        DataError: naming `origin` and the first tensors that are missing, unknown, of another shape or no real numbers.
    """
    faults = [f"{name} is missing" for name in wanted if name not in found]
    faults += [f"{name} is unknown" for name in found if name not in wanted]
    for name in [name for name in wanted if name in found]:
        shape, dtype = tuple(found[name].shape), found[name].dtype
        if shape != wanted[name]:
            faults.append(f"{name} has shape {shape}, the model needs {wanted[name]}")
        elif not dtype.is_floating_point:
            faults.append(f"{name} holds {dtype}, not real numbers")
    if faults:
        more = f" (and {len(faults) - 3} more)" if len(faults) > 3 else ""
        raise DataError(f"{origin} does not fit the model: {'; '.join(faults[:3])}{more}.")


def is_finite(tensor: Tensor) -> bool:
    """Whether all numbers of a weight are finite, in one pass and without memory."""
    return not tensor.numel() or all(map(torch.isfinite, tensor.aminmax()))  # the least and the greatest of NaN are NaN


def check_finite(name: str, tensor: Tensor) -> None:
    """Check that all numbers of a weight are finite.

    Raises:
        DataError: naming the weight; `name` says where it stands, too.
    """
    if not is_finite(tensor):
        raise DataError(
            f"{name} holds NaN or infinite numbers: the training it comes from diverged, or the file is damaged. Take "
            "an earlier checkpoint."
        )


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


def open_weights(directory: str | Path) -> TensorFile:
    """The tensors of a model directory by name, mapped from its files; the model may be in one file or several.

    Raises:
        InputError: there is no such file. DataError: one cannot be read, or two hold the same tensor.
    """
    files = sorted(Path(directory).glob(WEIGHT_FILES))
    if not files:
        raise InputError(f"{directory} has no model.safetensors.")
    return TensorFile.joined(Path(directory), files)


def load_weights(model: DeltaLM, weights: Mapping[str, Tensor], origin: str) -> None:
    """Put named tensors in place of the model's parameters, in float32; DataError as `check_fit`."""
    check_fit(parameter_shapes(model.config), weights, origin)
    model.load_state_dict({name: tensor.float() for name, tensor in weights.items()}, assign=True)
    for parameter in model.parameters():
        parameter.requires_grad_(True)
