"""Export to Hugging Face transformers: weights, configuration, tokenizer and the code of the model.

The names of tensors are those of fairseq and of Hugging Face's BART. The code in `hugging_face_files` goes with the
weights; `from_pretrained(directory, trust_remote_code=True)` loads it.
"""

import shutil
from pathlib import Path

from deltalm_ds.export.fairseq_weights import TOKEN_TABLE, fairseq_weights
from deltalm_ds.export.formats import ExportFormat
from deltalm_ds.export.hugging_face_directory import (
    EXAMPLE,
    IDS_EXAMPLE,
    PRECISIONS,
    SEARCH_NOTE,
    common_config,
    write_model,
)
from deltalm_ds.export.transformers_engine import TransformersEngine
from deltalm_ds.model.deltalm import DeltaLM
from deltalm_ds.vocabulary import Vocabulary

MODEL_CODE = Path(__file__).parents[1] / "hugging_face_files"
TRUST = ", trust_remote_code=True"


def write_huggingface(model: DeltaLM, vocabulary: Vocabulary | None, directory: Path, precision: str) -> None:
    """Write a directory for `AutoModelForSeq2SeqLM` and `AutoTokenizer`, one of `PRECISIONS`.

    Padding rows of the vocabulary are left out.

    Args:
        model: any DeltaLM.
        vocabulary: None, or one without text, writes no tokenizer.
        directory: exists already.
        precision: one of `PRECISIONS`.
    """
    config = model.config
    about = common_config(config, precision) | {
        "model_type": "deltalm",
        "architectures": ["DeltaLMForConditionalGeneration"],
        "auto_map": {
            "AutoConfig": "configuration_deltalm.DeltaLMConfig",
            "AutoModel": "modeling_deltalm.DeltaLMModel",
            "AutoModelForSeq2SeqLM": "modeling_deltalm.DeltaLMForConditionalGeneration",
        },
        "decoder_layers": config.num_decoder_blocks,
        "interleaved_decoder": config.decoder == "interleaved",
        "embedding_norm": config.embedding_norm,
        "layer_norm_eps": config.layer_norm_eps,
    }
    weights = fairseq_weights(model)
    weights["encoder.embed_tokens.weight"] = weights.pop(TOKEN_TABLE)
    weights = {f"model.{name}": tensor for name, tensor in weights.items()}
    write_model(directory, about, weights, vocabulary, precision)
    for path in MODEL_CODE.glob("*.py"):
        shutil.copyfile(path, directory / path.name)


def open_huggingface(directory: Path) -> TransformersEngine:
    """The model of a directory that `write_huggingface` wrote, run by the code that was copied into it."""
    from deltalm_ds.export.hugging_face_files.modeling_deltalm import DeltaLMForConditionalGeneration

    return TransformersEngine.load(DeltaLMForConditionalGeneration, directory)


FORMAT = ExportFormat(
    title="Hugging Face transformers, by code of its own",
    library="transformers",
    write=write_huggingface,
    open=open_huggingface,
    precisions=PRECISIONS,
    example=EXAMPLE.replace("{options}", TRUST),
    ids_example=IDS_EXAMPLE.replace("{options}", TRUST),
    note=SEARCH_NOTE,
)
