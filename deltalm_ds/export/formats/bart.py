"""Export to Hugging Face's stock BART, no code of ours: any engine that runs BART then runs DeltaLM [facts: BART]."""

from pathlib import Path

from deltalm_ds.errors import InputError
from deltalm_ds.export.formats import ExportFormat
from deltalm_ds.export.hugging_face_directory import EXAMPLE, IDS_EXAMPLE, PRECISIONS, STOCK_SEARCH_NOTE
from deltalm_ds.export.stock_transformers import check_epsilon, stock_weights, write_stock_model
from deltalm_ds.export.transformers_engine import TransformersEngine
from deltalm_ds.model.deltalm import DeltaLM
from deltalm_ds.vocabulary import Vocabulary


def write_bart(model: DeltaLM, vocabulary: Vocabulary | None, directory: Path, precision: str) -> None:
    """Write a directory for `BartForConditionalGeneration`; padding rows of the vocabulary are left out.

    Args:
        model: one with embedding norm and BART's epsilon.
        vocabulary: None, or one without text, writes no tokenizer.
        directory: exists already.
        precision: one of `PRECISIONS`.

    Raises:
        InputError: the model is one that BART cannot express.
    """
    if not model.config.embedding_norm:
        raise InputError(
            "BART always norms its embeddings, and this model, like DeltaLM large, does not: export it to marian."
        )
    check_epsilon(model, "BART")
    names = {"model_type": "bart", "architectures": ["BartForConditionalGeneration"]}
    write_stock_model(names, stock_weights(model), model, vocabulary, directory, precision)


def open_bart(directory: Path) -> TransformersEngine:
    """The model of a directory that `write_bart` wrote."""
    from transformers import BartForConditionalGeneration

    return TransformersEngine.load(BartForConditionalGeneration, directory)


FORMAT = ExportFormat(
    title="Hugging Face transformers, as a BART",
    library="transformers",
    write=write_bart,
    open=open_bart,
    precisions=PRECISIONS,
    example=EXAMPLE.replace("{options}", ""),
    ids_example=IDS_EXAMPLE.replace("{options}", ""),
    note=STOCK_SEARCH_NOTE,
)
