"""What any file or directory is, for people and scripts: told from its content, as `deltalm inspect` prints it."""

from collections.abc import Callable, Iterable
from math import prod
from pathlib import Path
from typing import Any

from deltalm_ds.checkpoints.directory import check_fit, open_weights, parameter_shapes, read_config
from deltalm_ds.checkpoints.sources import SOURCES, kind_of, recognise
from deltalm_ds.checkpoints.sources.model_directory import MODEL_DIRECTORY
from deltalm_ds.checkpoints.tensor_files import TensorFile, open_tensors
from deltalm_ds.errors import InputError
from deltalm_ds.files import read_json
from deltalm_ds.model.empty import empty_model
from deltalm_ds.runs.checkpoints import best_checkpoint, checkpoint_directories, read_state
from deltalm_ds.vocabulary import Vocabulary

Description = dict[str, Any]

NUM_NAMES = 5


def describe(path: Path) -> Description:
    """Kind, architecture, exact number of weights, dtypes, vocabulary blocks, provenance: whatever applies.

    Raises:
        InputError: nothing there, or nothing known. DataError: it is of a known kind, and damaged or incomplete.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist.")
    if path.is_file():
        return {"path": str(path), **_describe_file(path)}
    for mark, describe_directory in _DIRECTORIES.items():
        if (path / mark).exists():
            return {"path": str(path), **describe_directory(path)}
    if any(path.glob("*.pt")) or any(path.glob("*.bin")) or any(path.glob("*.safetensors*")):
        return {"path": str(path), **_describe_source(path)}
    raise InputError(
        f"{path} is nothing that deltalm knows: it has none of {', '.join(_DIRECTORIES)} and no .pt, .bin or "
        ".safetensors file."
    )


def _describe_config(directory: Path) -> Description:
    """A config.json is ours or Hugging Face's."""
    content = read_json(directory / "config.json")
    is_ours = isinstance(content, dict) and "model" in content
    return _describe_model(directory) if is_ours else _describe_source(directory)


def _describe_model(directory: Path) -> Description:
    """Raises: InputError, DataError: it is not a model directory, or a damaged one."""
    config, vocabulary, weights = read_config(directory), Vocabulary.load(directory), open_weights(directory)
    model = empty_model(config)
    check_fit(parameter_shapes(config), weights, str(directory))
    description: Description = {
        "kind": MODEL_DIRECTORY.title,
        "model": config.model_dump(),
        "parameters": model.num_parameters(),
        "parameters_with_padding_rows": model.num_parameters(padding_rows=True),
        "dtypes": _dtypes(weights),
        **_describe_vocabulary(vocabulary),
        "provenance": read_json(directory / "config.json").get("provenance", {}),
    }
    if not (directory / "state.json").is_file():
        return description
    state = read_state(directory)
    description |= {"kind": "checkpoint of a run", "step": state.step, "validation": state.validation}
    return description


def _describe_vocabulary(vocabulary: Vocabulary) -> Description:
    return {
        "vocabulary": {name: len(tokens) for name, tokens in vocabulary.blocks.items()},
        "vocabulary_has_text": vocabulary.has_text,
        "languages": list(vocabulary.languages),
        "vocabulary_hash": vocabulary.hash,
    }


def _describe_run(run: Path) -> Description:
    checkpoints, best = checkpoint_directories(run), best_checkpoint(run)
    description: Description = {
        "kind": "run directory",
        "checkpoints": [checkpoint.name for checkpoint in checkpoints],
        "best": best and best.name,
    }
    if checkpoints:
        newest = _describe_model(checkpoints[-1])
        description["newest"] = {name: newest[name] for name in ("step", "validation", "model", "parameters")}
    return description


def _describe_export(directory: Path) -> Description:
    content = read_json(directory / "deltalm.json")
    if not isinstance(content, dict) or "format" not in content:
        raise InputError(f"{directory / 'deltalm.json'} does not say the format of an export.")
    return {"kind": f"export to {content['format']}", **content}


def _describe_data_set(directory: Path) -> Description:
    return {"kind": "shard data set", "see": f"deltalm data inspect {directory}"}


def _describe_source(path: Path) -> Description:
    source = recognise(path)
    tensors = source.tensors
    counted = tensors.keys() - {*source.unused, *source.copies}
    titles = {kind.kind: kind.title for kind in SOURCES}
    return {
        "kind": titles[source.kind],
        "model": vars(source.sizes),
        "parameters": _count(tensors, counted),
        "dtypes": _dtypes(tensors),
        "unused": list(source.unused),
        "copies_of_the_token_table": list(source.copies),
        "differing_copies": list(source.differing_copies),
        "dict_file": source.dict_file and str(source.dict_file),
        "spm_file": source.spm_file and str(source.spm_file),
    }


def _describe_file(path: Path) -> Description:
    """A checkpoint in one file, or tensors of no known model."""
    tensors = open_tensors(path)
    kind = kind_of(tensors)
    if kind not in (None, MODEL_DIRECTORY):
        return _describe_source(path)
    return {
        "kind": f"part of a {kind.title}" if kind else "tensors of no known model",
        "tensors": len(tensors),
        "parameters": _count(tensors, tensors),
        "dtypes": _dtypes(tensors),
        "first": {name: str(tensors.shape(name)) for name in list(tensors)[:NUM_NAMES]},
    }


def _count(tensors: TensorFile, names: Iterable[str]) -> int:
    return sum(prod(tensors.shape(name)) for name in names)


def _dtypes(tensors: TensorFile) -> list[str]:
    return sorted({tensors.dtype(name) for name in tensors})


# the file or folder that marks each kind of directory, the most telling first
_DIRECTORIES: dict[str, Callable[[Path], Description]] = {
    "deltalm.json": _describe_export,
    "checkpoints": _describe_run,
    "recipe.yaml": _describe_run,
    "manifest.json": _describe_data_set,
    "config.json": _describe_config,
    "vocabulary.json": lambda path: {"kind": "vocabulary", **_describe_vocabulary(Vocabulary.load(path))},
}
