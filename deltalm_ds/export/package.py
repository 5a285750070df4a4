"""`deltalm export`: a model in another engine's format, written only if it gives what the model gives."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from deltalm_ds.checkpoints.directory import check_finite, load_model
from deltalm_ds.checkpoints.provenance import provenance
from deltalm_ds.errors import InputError
from deltalm_ds.export.formats import FORMATS, ExportFormat, load_format
from deltalm_ds.export.model_card import model_card
from deltalm_ds.export.parity import ParityReport, check_parity
from deltalm_ds.files import atomic_directory, read_json, write_json
from deltalm_ds.generation.engines.pytorch import PyTorchEngine
from deltalm_ds.generation.exports import FILE_NAME
from deltalm_ds.generation.interface import Engine, Ids
from deltalm_ds.model.deltalm import DeltaLM
from deltalm_ds.vocabulary import Vocabulary


def export(
    model_directory: str | Path,
    out: str | Path,
    to: str = FORMATS[0],
    precision: str = "float32",
    check_sources: Sequence[Ids] | None = None,
) -> ParityReport:
    """Write a model in one of `FORMATS`, if that gives what the model gives.

    The directory stands on its own: it also holds the vocabulary, `deltalm.json` (origin, versions, sizes, parity) and
    a model card, README.md. A model without vocabulary (used with ids only) can be exported too.

    Args:
        model_directory: a model directory, or a checkpoint of a run.
        out: a new directory.
        to: one of `FORMATS`.
        precision: one of the format's.
        check_sources: ids of sentences to check with (language tags included, no `</s>`); None takes random ones.

    Raises:
        InputError: unknown format or precision, a model that the format cannot express, a package is missing, or `out`
            is not empty.
        DataError: the model is damaged, or a weight is NaN or infinite.
        CheckError: the export does not agree with the model; nothing is left at `out`.
    """
    with _naming_missing_package(to):
        export_format = load_format(to)
    if precision not in export_format.precisions:
        known = ", ".join(export_format.precisions)
        raise InputError(f"{export_format.title} has no precision {precision!r}: choose one of {known}.")
    model = load_model(model_directory)
    for name, weight in model.named_parameters():
        check_finite(f"{name} in {model_directory}", weight.detach())
    has_vocabulary = (Path(model_directory) / "vocabulary.json").exists()
    vocabulary = Vocabulary.load(model_directory) if has_vocabulary else None
    ours = PyTorchEngine(model)
    with atomic_directory(out) as directory:
        with _naming_missing_package(to):
            if precision != "float32":
                # rounding could hide a wrong tensor: before it, the export must be exact
                with TemporaryDirectory(dir=directory) as exact:
                    exported = _write(export_format, to, model, vocabulary, Path(exact), "float32")
                    check_parity(ours, exported, check_sources, is_exact=True)
            exported = _write(export_format, to, model, vocabulary, directory, precision)
        parity = check_parity(ours, exported, check_sources, is_exact=precision == "float32")
        about = _describe(export_format, Path(model_directory), directory, model, vocabulary, parity)
        write_json(directory / FILE_NAME, about)
        example = _example(export_format, Path(out).name, vocabulary, check_sources)
        card = model_card(about, Path(out).name, directory, parity, example, export_format.note)
        (directory / "README.md").write_text(card, encoding="utf-8")
    return parity


@contextmanager
def _naming_missing_package(to: str) -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise InputError(
            f"Exporting to {to} needs the package {error.name}: pip install 'deltalm-ds[export]'."
        ) from None


def _describe(
    export_format: ExportFormat,
    model_directory: Path,
    directory: Path,
    model: DeltaLM,
    vocabulary: Vocabulary | None,
    parity: ParityReport,
) -> dict[str, Any]:
    """The content of deltalm.json: what `_write` put there, and where the export comes from and how exact it is."""
    written = read_json(directory / FILE_NAME)
    return written | {
        "title": export_format.title,
        "library": export_format.library,
        "versions": {package: version(package) for package in sorted({export_format.library, "torch"})},
        "computed_as": export_format.computed_as(written["precision"]),
        "source": str(model_directory.resolve()),
        "provenance": read_json(model_directory / "config.json").get("provenance", {}),
        "model": model.config.model_dump(),
        "parameters": model.num_parameters(),
        "languages": list(vocabulary.languages) if vocabulary else [],
        "parity": parity.as_dict(),
        **provenance("deltalm export"),
    }


def _write(
    export_format: ExportFormat,
    to: str,
    model: DeltaLM,
    vocabulary: Vocabulary | None,
    directory: Path,
    precision: str,
) -> Engine:
    """Write the files of the format, the vocabulary, and what `load_engine` must know; open them."""
    export_format.write(model, vocabulary, directory, precision)
    if vocabulary is not None:
        vocabulary.save(directory)
    sizes = {"vocabulary_size": model.config.vocabulary_size, "max_positions": model.config.max_positions}
    write_json(directory / FILE_NAME, {"format": to, "precision": precision, **sizes})
    return export_format.open(directory)


def _example(
    export_format: ExportFormat, name: str, vocabulary: Vocabulary | None, sources: Sequence[Ids] | None
) -> str:
    """The program that loads the export, to be run beside it; with the language of the first sentence checked."""
    if vocabulary is None or not vocabulary.has_text:
        return export_format.ids_example.format(directory=name)
    tags = vocabulary.blocks["languages"]
    if not tags:
        return export_format.example.format(directory=name, tag="")
    first = vocabulary.token(sources[0][0]) if sources else None
    tag = first if first in tags else tags[-1]
    return export_format.example.format(directory=name, tag=f"{tag} ")
