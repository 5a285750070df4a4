"""What the directory of an export says of itself, in deltalm.json."""

from pathlib import Path
from typing import Any

from deltalm_ds.errors import DataError
from deltalm_ds.files import read_json

FILE_NAME = "deltalm.json"


def format_of(directory: Path) -> str | None:
    """The format of an export; None where there is no deltalm.json, as in a model directory.

    Raises:
        DataError: the file does not say it.
    """
    return _value(directory, "format", str) if (directory / FILE_NAME).exists() else None


def sizes_of(directory: Path) -> tuple[int, int]:
    """`vocabulary_size` and `max_positions` of the exported model (see `Engine`).

    Raises:
        InputError: there is no deltalm.json. DataError: it does not say them.
    """
    return _value(directory, "vocabulary_size", int), _value(directory, "max_positions", int)


def precision_of(directory: Path) -> str:
    """The precision that an export was written in.

    Raises:
        InputError: there is no deltalm.json. DataError: it does not say it.
    """
    return _value(directory, "precision", str)


def _value(directory: Path, key: str, kind: type) -> Any:
    content = read_json(directory / FILE_NAME)
    value = content.get(key) if isinstance(content, dict) else None
    if not isinstance(value, kind):
        raise DataError(f"{directory / FILE_NAME} does not say the {key} of an export: export the model again.")
    return value
