"""The formats that models are exported to, one file and one row each.

A new format is a file here whose `FORMAT` is an `ExportFormat`, the file's name as a row of `FORMATS`, and its test.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from deltalm_ds.errors import InputError, nearest

if TYPE_CHECKING:  # help texts name the formats, and are to come without heavy imports
    from deltalm_ds.generation.interface import Engine
    from deltalm_ds.model.deltalm import DeltaLM
    from deltalm_ds.vocabulary import Vocabulary

# The first is the default.
FORMATS = ("ctranslate2", "huggingface", "bart", "marian", "onnx", "fairseq")


@dataclass(frozen=True)
class ExportFormat:
    """A format that models are exported to.

    Attributes:
        title: its name for people.
        library: the distribution that loads it, whose version is recorded.
        write: writes a model, with its vocabulary (or None) and in a precision, into an existing directory. It raises
            an InputError for a model that the format cannot express.
        open: loads what was written, on the CPU.
        precisions: that it can be written in; float32 is exact.
        example, ids_example: Python programs that load it, for models with and without text. They go into the model
            card and are run by the tests as they stand there: `{directory}` is the export, `{tag}` a language tag and
            a space, or nothing.
        computed_as: what this CPU computes in, given a precision.
        note: what a user must know beside the example.
    """

    title: str
    library: str
    write: "Callable[[DeltaLM, Vocabulary | None, Path, str], None]"
    open: "Callable[[Path], Engine]"
    precisions: tuple[str, ...]
    example: str
    ids_example: str
    computed_as: Callable[[str], str] = str
    note: str = ""


def load_format(name: str) -> ExportFormat:
    """The format of a name of `FORMATS`; only then are the packages imported that it is written with.

    Raises:
        InputError: there is no such format. ModuleNotFoundError: a package is not installed.
    """
    if name not in FORMATS:
        raise InputError(
            f"There is no format {name!r} to export to: choose one of {', '.join(FORMATS)}; "
            f"the nearest is {nearest(name, FORMATS)!r}."
        )
    return import_module(f"{__name__}.{name}").FORMAT
