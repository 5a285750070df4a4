"""The kinds of checkpoints that DeltaLM can start from, one file and one row each.

A new kind is a file with a `NamingScheme` (or another `SourceKind`), its row here, and its test.
"""

from pathlib import Path

from deltalm_ds.checkpoints.source import SourceCheckpoint, SourceKind
from deltalm_ds.checkpoints.sources.deltalm_finetuned import DELTALM_FINETUNED
from deltalm_ds.checkpoints.sources.deltalm_huggingface import DELTALM_HUGGINGFACE
from deltalm_ds.checkpoints.sources.deltalm_released import DELTALM_RELEASED
from deltalm_ds.checkpoints.sources.model_directory import MODEL_DIRECTORY
from deltalm_ds.checkpoints.sources.xlm_roberta_fairseq import XLM_ROBERTA_FAIRSEQ
from deltalm_ds.checkpoints.sources.xlm_roberta_huggingface import XLM_ROBERTA_HUGGINGFACE
from deltalm_ds.checkpoints.tensor_files import TensorFile, open_directory, open_tensors
from deltalm_ds.errors import DataError, InputError
from deltalm_ds.runs.checkpoints import model_directory

SOURCES: tuple[SourceKind, ...] = (
    XLM_ROBERTA_HUGGINGFACE,
    XLM_ROBERTA_FAIRSEQ,
    DELTALM_RELEASED,
    DELTALM_FINETUNED,
    DELTALM_HUGGINGFACE,
    MODEL_DIRECTORY,
)


def recognise(path: str | Path) -> SourceCheckpoint:
    """Tell what a file or directory is, from its content, and check that it is complete.

    Of a run directory it is the newest checkpoint.

    Raises:
        InputError: there is nothing, or more than one thing, to take.
        DataError: damaged, incomplete or misshapen files, or none of the kinds of `SOURCES`.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path} does not exist.")
    if path.is_dir():
        path = model_directory(path)
    tensors = open_directory(path) if path.is_dir() else open_tensors(path)
    source = kind_of(tensors)
    if source is None:
        first = f"tensors such as {', '.join(list(tensors)[:3])}" if tensors else "nothing"
        known = "; ".join(source.title for source in SOURCES)
        raise DataError(f"{path} is no checkpoint of a known kind: it holds {first}. Known are {known}.")
    return source.read(path, tensors)


def kind_of(tensors: TensorFile) -> SourceKind | None:
    """The kind that recognises the tensors, if one does."""
    return next((source for source in SOURCES if source.recognises(tensors)), None)
