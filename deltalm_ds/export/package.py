"""`deltalm export`: a model in another engine's format, written only if it gives what the model gives."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from deltalm_ds.checkpoints.directory import load_model
from deltalm_ds.checkpoints.initialise import unchanged_initialisation
from deltalm_ds.checkpoints.provenance import provenance
from deltalm_ds.checkpoints.sources import recognise
from deltalm_ds.errors import InputError
from deltalm_ds.export import ctranslate2, examples, fairseq, hugging_face, onnx
from deltalm_ds.export.bart import open_bart, write_bart
from deltalm_ds.export.model_card import model_card
from deltalm_ds.export.parity import ParityReport, check_parity
from deltalm_ds.files import atomic_directory, read_json, write_json
from deltalm_ds.generation.engines.pytorch import PyTorchEngine
from deltalm_ds.generation.interface import Engine, Ids
from deltalm_ds.generation.loading import load_engine
from deltalm_ds.model.deltalm import DeltaLM
from deltalm_ds.vocabulary import Vocabulary


@dataclass(frozen=True)
class ExportFormat:
    """A format that models are exported to.

    Attributes:
        title: its name for people. library: the distribution that loads it, whose version is recorded.
        write: writes a model (its vocabulary, or None; the precision) into an existing directory.
        open: loads what was written, on the CPU.
        precisions: that it can be written in; float32 is exact.
        example, ids_example: programs that load it, for models with and without text (see `examples`).
        computed_as: what this CPU computes in, given a precision.
        note: what a user must know beside the example.
    """

    title: str
    library: str
    write: Callable[[DeltaLM, Vocabulary | None, Path, str], None]
    open: Callable[[Path], Engine]
    precisions: tuple[str, ...]
    example: str
    ids_example: str
    computed_as: Callable[[str], str] = str
    note: str = ""


def _open_here(directory: Path) -> Engine:
    return load_engine(directory, threads=torch.get_num_threads())


def _open_fairseq(directory: Path) -> Engine:
    return PyTorchEngine(unchanged_initialisation(recognise(directory / fairseq.CHECKPOINT)).model())


_SEARCH_NOTE = (
    "`generate` follows fairseq's rules: its best output is that of `deltalm translate`; the lower places of an n-best "
    "list may hold others. Decomposed text (NFD) should be brought into NFC first."
)

FORMATS = {
    "ctranslate2": ExportFormat(
        title="CTranslate2",
        library="ctranslate2",
        write=ctranslate2.write_ctranslate2,
        open=_open_here,
        precisions=ctranslate2.PRECISIONS,
        example=examples.CTRANSLATE2,
        ids_example=examples.CTRANSLATE2_IDS,
        computed_as=ctranslate2.computed_as,
        note="`deltalm translate` and its kin take the directory as they take a model's.",
    ),
    "huggingface": ExportFormat(
        title="Hugging Face transformers, by code of its own",
        library="transformers",
        write=hugging_face.write_huggingface,
        open=hugging_face.open_huggingface,
        precisions=hugging_face.PRECISIONS,
        example=examples.HUGGING_FACE,
        ids_example=examples.HUGGING_FACE_IDS,
        note=_SEARCH_NOTE,
    ),
    "bart": ExportFormat(
        title="Hugging Face transformers, as a BART",
        library="transformers",
        write=write_bart,
        open=open_bart,
        precisions=hugging_face.PRECISIONS,
        example=examples.BART,
        ids_example=examples.BART_IDS,
        note=f"{_SEARCH_NOTE} An output that reaches the maximum length is ranked without the log-probability of its "
        "`</s>`.",
    ),
    "onnx": ExportFormat(
        title="ONNX Runtime",
        library="onnxruntime",
        write=onnx.write_onnx,
        open=_open_here,
        precisions=onnx.PRECISIONS,
        example=examples.DELTALM,
        ids_example=examples.DELTALM_IDS,
        note="What the two graphs take and give stands at the head of `deltalm_ds/export/onnx.py`.",
    ),
    "fairseq": ExportFormat(
        title="fairseq and Microsoft's DeltaLM code",
        library="torch",
        write=fairseq.write_fairseq,
        open=_open_fairseq,
        precisions=tuple(fairseq.DTYPES),
        example=examples.FAIRSEQ,
        ids_example=examples.FAIRSEQ,
        note="In fairseq: `--path` with `finetuned.pt`, `--user-dir` as for any DeltaLM, and `dict.txt` for both "
        "languages.",
    ),
}


def export(
    model_directory: str | Path,
    out: str | Path,
    to: str = "ctranslate2",
    precision: str = "float32",
    check_sources: Sequence[Ids] | None = None,
) -> ParityReport:
    """Write a model in one of `FORMATS`, if that gives what the model gives.

    The directory stands on its own: it also holds the vocabulary, `deltalm.json` (origin, versions, sizes, parity) and
    a model card, README.md. A model without vocabulary (used with ids only) can be exported too.

    Args:
        check_sources: ids of sentences to check with (language tags included, no `</s>`); None takes random ones.

    Raises:
        InputError: unknown format or precision, a model that the format cannot express, a package is missing, or `out`
            is not empty.
        CheckError: the export does not agree with the model; nothing is left at `out`.
    """
    if to not in FORMATS:
        raise InputError(f"There is no format {to!r} to export to: choose one of {', '.join(FORMATS)}.")
    way = FORMATS[to]
    if precision not in way.precisions:
        raise InputError(f"{way.title} has no precision {precision!r}: choose one of {', '.join(way.precisions)}.")
    model = load_model(model_directory)
    has_vocabulary = (Path(model_directory) / "vocabulary.json").exists()
    vocabulary = Vocabulary.load(model_directory) if has_vocabulary else None
    ours = PyTorchEngine(model)
    with atomic_directory(out) as directory:
        try:
            if precision != "float32":
                # rounding could hide a wrong tensor: before it, the export must be exact
                with TemporaryDirectory(dir=directory) as exact:
                    exported = _write(way, to, model, vocabulary, Path(exact), "float32")
                    check_parity(ours, exported, check_sources, is_exact=True)
            exported = _write(way, to, model, vocabulary, directory, precision)
        except ModuleNotFoundError as error:
            raise InputError(
                f"Exporting to {to} needs the package {error.name}: pip install 'deltalm-ds[export]'."
            ) from None
        parity = check_parity(ours, exported, check_sources, is_exact=precision == "float32")
        about = read_json(directory / "deltalm.json") | {
            "title": way.title,
            "library": way.library,
            "versions": {package: version(package) for package in sorted({way.library, "torch"})},
            "computed_as": way.computed_as(precision),
            "source": str(Path(model_directory).resolve()),
            "provenance": read_json(Path(model_directory) / "config.json").get("provenance", {}),
            "model": model.config.model_dump(),
            "parameters": model.num_parameters(),
            "languages": list(vocabulary.languages) if vocabulary else [],
            "parity": parity.as_dict(),
            **provenance("deltalm export"),
        }
        write_json(directory / "deltalm.json", about)
        example = _example(way, Path(out).name, vocabulary, check_sources)
        card = model_card(about, Path(out).name, directory, parity, example, way.note)
        (directory / "README.md").write_text(card, encoding="utf-8")
    return parity


def _write(
    way: ExportFormat, to: str, model: DeltaLM, vocabulary: Vocabulary | None, directory: Path, precision: str
) -> Engine:
    """Write the files of the format, the vocabulary, and what `load_engine` must know; open them."""
    way.write(model, vocabulary, directory, precision)
    if vocabulary is not None:
        vocabulary.save(directory)
    sizes = {"vocabulary_size": model.config.vocabulary_size, "max_positions": model.config.max_positions}
    write_json(directory / "deltalm.json", {"format": to, "precision": precision, **sizes})
    return way.open(directory)


def _example(way: ExportFormat, name: str, vocabulary: Vocabulary | None, sources: Sequence[Ids] | None) -> str:
    """The program that loads the export, to be run beside it; with the language of the first sentence checked."""
    if vocabulary is None or not vocabulary.has_text:
        return way.ids_example.format(directory=name)
    tags = vocabulary.blocks["languages"]
    first = vocabulary.token(sources[0][0]) if sources else ""
    tag = first if first in tags else tags[-1] if tags else ""
    return way.example.format(directory=name, tag=f"{tag} " if tag else "")
