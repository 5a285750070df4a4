"""Export to Hugging Face transformers: weights, configuration, tokenizer and the code of the model.

The names of tensors are those of fairseq and of Hugging Face's BART. The code in `hugging_face_files` goes with the
weights; `from_pretrained(directory, trust_remote_code=True)` loads it.
"""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deltalm_ds.checkpoints.safetensors_writer import write_safetensors
from deltalm_ds.export.fairseq_weights import TOKEN_TABLE, fairseq_weights
from deltalm_ds.export.tokenizer import write_tokenizer
from deltalm_ds.export.transformers_engine import TransformersEngine
from deltalm_ds.files import write_json
from deltalm_ds.generation.interface import SearchOptions
from deltalm_ds.model.config import DeltaLMConfig
from deltalm_ds.model.deltalm import DeltaLM
from deltalm_ds.token_ids import BOS_ID, EOS_ID, PAD_ID
from deltalm_ds.vocabulary import Vocabulary

PRECISIONS = ("float32", "float16", "bfloat16")
MODEL_CODE = Path(__file__).parent / "hugging_face_files"


def write_huggingface(model: DeltaLM, vocabulary: Vocabulary | None, directory: Path, precision: str) -> None:
    """Write a directory for `AutoModelForSeq2SeqLM` and `AutoTokenizer`, one of `PRECISIONS`.

    Padding rows of the vocabulary are left out. Without text vocabulary there is no tokenizer.
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


def common_config(config: DeltaLMConfig, precision: str) -> dict[str, Any]:
    """The part of config.json that BART's and our own have in common."""
    return {
        "vocab_size": config.vocabulary_size,
        "d_model": config.hidden_size,
        "encoder_layers": config.num_encoder_layers,
        "encoder_attention_heads": config.num_heads,
        "decoder_attention_heads": config.num_heads,
        "encoder_ffn_dim": config.ffn_size,
        "decoder_ffn_dim": config.ffn_size,
        "max_position_embeddings": config.max_positions,
        "dropout": config.dropout,
        "attention_dropout": config.attention_dropout,
        "activation_dropout": config.activation_dropout,
        "is_encoder_decoder": True,
        "bos_token_id": BOS_ID,
        "pad_token_id": PAD_ID,
        "eos_token_id": EOS_ID,
        "decoder_start_token_id": EOS_ID,
        "dtype": precision,
    }


def write_model(
    directory: Path,
    config: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    vocabulary: Vocabulary | None,
    precision: str,
    **generation: Any,
) -> None:
    """Write what transformers loads: config.json, generation_config.json, model.safetensors, tokenizer.

    Args:
        **generation: settings of generation_config.json beside those of our search.
    """
    write_json(directory / "config.json", config)
    search = {**_generation_config(config["max_position_embeddings"]), **generation}
    write_json(directory / "generation_config.json", search)
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    write_safetensors(directory / "model.safetensors", shapes, weights.__getitem__, getattr(torch, precision))
    if vocabulary is not None and vocabulary.has_text:
        write_tokenizer(vocabulary, directory, config["max_position_embeddings"])


def _generation_config(max_positions: int) -> dict[str, Any]:
    """The defaults of our own search [FACTS §1], which `generate` then follows (see `TransformersEngine`)."""
    search = SearchOptions()
    return {
        "num_beams": search.beam,
        "early_stopping": True,
        "length_penalty": search.length_penalty,
        "min_new_tokens": search.min_length,
        "max_length": min(search.max_length + 1, max_positions) + 1,  # with the first and the last </s>
        "suppress_tokens": [PAD_ID],
        "bos_token_id": BOS_ID,
        "pad_token_id": PAD_ID,
        "eos_token_id": EOS_ID,
        "decoder_start_token_id": EOS_ID,
    }
