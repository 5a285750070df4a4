"""Export to Hugging Face's stock Marian, no code of ours: the counterpart of BART for models without embedding norm,
such as DeltaLM large [facts: Marian].

Marian's positions are sinusoids that transformers computes where a checkpoint has none. One that has them is read as
it stands, so that learned positions are loaded; `save_pretrained` would leave them out again, without a word.
"""

from pathlib import Path

from deltalm_ds.checkpoints.names import POSITION_OFFSET
from deltalm_ds.errors import InputError
from deltalm_ds.export.formats import ExportFormat
from deltalm_ds.export.hugging_face_directory import EXAMPLE, IDS_EXAMPLE, PRECISIONS, STOCK_SEARCH_NOTE
from deltalm_ds.export.stock_transformers import check_epsilon, stock_weights, write_stock_model
from deltalm_ds.export.transformers_engine import TransformersEngine
from deltalm_ds.model.deltalm import DeltaLM
from deltalm_ds.vocabulary import Vocabulary

POSITIONS = tuple(f"model.{stack}.embed_positions.weight" for stack in ("encoder", "decoder"))


def write_marian(model: DeltaLM, vocabulary: Vocabulary | None, directory: Path, precision: str) -> None:
    """Write a directory for `MarianMTModel`; padding rows of the vocabulary are left out.

    Args:
        model: one without embedding norm and with Marian's epsilon.
        vocabulary: None, or one without text, writes no tokenizer.
        directory: exists already.
        precision: one of `PRECISIONS`.

    Raises:
        InputError: the model is one that Marian cannot express.
    """
    if model.config.embedding_norm:
        raise InputError(
            "Marian does not norm its embeddings, and this model, like DeltaLM base, does: export it to bart."
        )
    check_epsilon(model, "Marian")
    weights = stock_weights(model)
    weights |= {name: weights[name][POSITION_OFFSET:] for name in POSITIONS}
    names = {
        "model_type": "marian",
        "architectures": ["MarianMTModel"],
        "decoder_vocab_size": model.config.vocabulary_size,
        "share_encoder_decoder_embeddings": True,
        "tie_word_embeddings": True,
    }
    write_stock_model(names, weights, model, vocabulary, directory, precision)


def open_marian(directory: Path) -> TransformersEngine:
    """The model of a directory that `write_marian` wrote."""
    from transformers import MarianMTModel

    return TransformersEngine.load(MarianMTModel, directory)


FORMAT = ExportFormat(
    title="Hugging Face transformers, as a Marian",
    library="transformers",
    write=write_marian,
    open=open_marian,
    precisions=PRECISIONS,
    example=EXAMPLE.replace("{options}", ""),
    ids_example=IDS_EXAMPLE.replace("{options}", ""),
    note=f"{STOCK_SEARCH_NOTE} The positions are learned, and Marian takes them for sinusoids: training leaves them as "
    "they are, and `save_pretrained` leaves them out unless you set `model._keys_to_ignore_on_save = None` before it.",
)
