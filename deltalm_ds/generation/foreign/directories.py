"""What a directory holds that is not ours, and whether all of it is there."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deltalm_ds.errors import DataError, InputError
from deltalm_ds.files import read_json
from deltalm_ds.generation.foreign.families import MODEL_TYPES, Family, family_of_model

TRANSFORMERS, CTRANSLATE2 = "transformers", "ctranslate2"  # formats of directories
LFS_POINTER = b"version https://git-lfs.github.com/spec/"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # each also as several files, which an index names
# By the end of an architecture's name what a model is that is no encoder with a decoder.
OTHER_KINDS = {
    "ForCausalLM": "a decoder alone (a language model)",
    "LMHeadModel": "a decoder alone (a language model)",
    "ForMaskedLM": "an encoder alone",
    "ForPreTraining": "an encoder alone",
    "Classification": "a classifier",
    "ForQuestionAnswering": "a model that answers questions from a text",
    "ForSpeechSeq2Seq": "a model of speech",
    "ForCTC": "a model of speech",
}


def foreign_format(directory: Path) -> str | None:
    """`TRANSFORMERS` or `CTRANSLATE2`, or None where a directory without deltalm.json is neither.

    Raises:
        DataError: a download has not come to its end.
    """
    content = read_config(directory)
    if "model" in content:
        return None
    is_ctranslate2 = (directory / "model.bin").exists() or any(directory.glob("*_vocabulary.json"))
    if not is_ctranslate2 and "model_type" not in content:
        return None
    _check_downloaded(directory)
    return CTRANSLATE2 if is_ctranslate2 and "model_type" not in content else TRANSFORMERS


def _check_downloaded(directory: Path) -> None:
    """Refuse what a download has left half-way, or git has not fetched.

    Raises:
        DataError: there is such a file.
    """
    for path in sorted(directory.rglob("*.incomplete")):
        raise DataError(f"{directory} is an unfinished download ({path.name}): let it go on to its end.")
    for path in sorted(directory.iterdir()):
        if path.is_file() and path.stat().st_size < 1_000 and path.read_bytes().startswith(LFS_POINTER):
            raise DataError(f"{path} is only git-lfs's pointer to the file: run `git lfs pull` in {directory}.")


def transformers_config(directory: Path) -> tuple[dict[str, Any], Family]:
    """The config.json of a model of transformers that can translate, and its family.

    Raises:
        InputError: it is another kind of model, or of no known family. DataError: its weights are missing.
    """
    content = read_config(directory)
    model_type, architecture = content.get("model_type"), next(iter(content.get("architectures") or []), "")
    family = family_of_model(content, tokenizer_class(directory) or content.get("tokenizer_class") or "")
    other = next((kind for end, kind in OTHER_KINDS.items() if architecture.endswith(end)), None)
    if other or (family is None and not content.get("is_encoder_decoder")):
        what = other or "no encoder with a decoder"
        raise InputError(
            f"{directory} is {what}: {architecture or model_type}; translation needs an encoder and a decoder."
        )
    if family is None:
        raise InputError(
            f"{directory} is a {model_type}: how it is told languages is not known here; models may be "
            f"{', '.join(MODEL_TYPES)} (a row of deltalm_ds/generation/foreign/families.py adds one)."
        )
    missing = next(_missing_weights(directory), None)
    if missing:
        raise DataError(f"{directory} has no {missing}: the download is not finished, or the weights are elsewhere.")
    return content, family


def tokenizer_class(directory: Path) -> str:
    """What tokenizer_config.json names; empty where there is none."""
    path = directory / "tokenizer_config.json"
    content = read_json(path) if path.exists() else {}
    return content.get("tokenizer_class") or "" if isinstance(content, dict) else ""


def read_config(directory: Path) -> dict[str, Any]:
    """What config.json says; nothing where there is none, as in models of CTranslate2 2."""
    path = directory / "config.json"
    content = read_json(path) if path.is_file() else {}
    return content if isinstance(content, dict) else {}


def _missing_weights(directory: Path) -> Iterator[str]:
    """Files that should be there, the first that an index names."""
    for name in WEIGHTS:
        if (directory / name).is_file():
            return
        index = directory / f"{name}.index.json"
        if index.is_file():
            parts = sorted(set(read_json(index)["weight_map"].values()))
            yield from (part for part in parts if not (directory / part).is_file())
            return
    yield WEIGHTS[0]
