"""Opening a model directory, an export or a model that is not ours: its engine and its vocabulary."""

from difflib import get_close_matches
from pathlib import Path

from deltalm_ds.errors import InputError
from deltalm_ds.generation.engines import ENGINES, MODEL_DIRECTORY
from deltalm_ds.generation.exports import format_of
from deltalm_ds.generation.foreign.directories import foreign_format
from deltalm_ds.generation.foreign.vocabularies import load_foreign_vocabulary
from deltalm_ds.generation.interface import Engine, EngineOptions, ModelVocabulary
from deltalm_ds.threads import threads_to_take
from deltalm_ds.vocabulary import Vocabulary


def load_engine(
    directory: str | Path,
    engine: str | None = None,
    threads: int = 0,
    device: str | None = None,
    dtype: str | None = None,
    in_memory: bool = False,
) -> Engine:
    """Open a model directory, an export, or a model that is not ours, with the one of `ENGINES` that it is for.

    Args:
        engine: the one to take; without it the first of the table that opens this.
        threads: CPU threads; 0 takes what `threads_to_take` says.
        device: see `EngineOptions`.
        dtype: see `EngineOptions`.
        in_memory: see `EngineOptions`.

    Raises:
        InputError: the directory holds no model, or not one for this engine, or the engine cannot compute there or so.
        DataError: its files are damaged.
    """
    options = EngineOptions(device, dtype, threads or threads_to_take(), in_memory)
    if engine is not None and engine not in ENGINES:
        raise InputError(f"There is no engine {engine!r}: {_nearest(engine)}the engines are {', '.join(ENGINES)}.")
    found = format_of(Path(directory)) or foreign_format(Path(directory)) or MODEL_DIRECTORY
    able = [name for name, entry in ENGINES.items() if found in entry.formats]
    if not able:
        raise InputError(
            f"{directory} is an export to {found}, which no engine here runs; its README.md says what does."
        )
    if engine is not None and engine not in able:
        others = (
            "" if is_foreign(Path(directory)) else ", or make another export of the model with `deltalm export --to`"
        )
        raise InputError(f"{directory} is for {' or '.join(able)}, not for {engine}: leave --engine out{others}.")
    return ENGINES[engine or able[0]].open(Path(directory), options)


def load_vocabulary(directory: str | Path) -> ModelVocabulary:
    """What turns text into the ids of a model and back: a `Vocabulary`, or the tokenizer of a model that is not ours.

    Raises:
        InputError: there is none, or a package is missing. DataError: its files are damaged.
    """
    directory = Path(directory)
    return load_foreign_vocabulary(directory) if is_foreign(directory) else Vocabulary.load(directory)


def is_foreign(directory: Path) -> bool:
    """Whether it holds a model that is not ours."""
    return format_of(directory) is None and foreign_format(directory) is not None


def _nearest(name: str) -> str:
    matches = get_close_matches(name.lower(), ENGINES, n=1)
    return f"the nearest is {matches[0]!r}; " if matches else ""
