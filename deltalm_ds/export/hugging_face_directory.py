"""What the exports to Hugging Face transformers have in common: the files of a directory, precisions, examples."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deltalm_ds.checkpoints.safetensors_writer import write_safetensors
from deltalm_ds.export.tokenizer import write_tokenizer
from deltalm_ds.files import write_json
from deltalm_ds.generation.interface import SearchOptions
from deltalm_ds.model.config import DeltaLMConfig
from deltalm_ds.token_ids import BOS_ID, EOS_ID, PAD_ID
from deltalm_ds.vocabulary import Vocabulary

PRECISIONS = ("float32", "float16", "bfloat16")
SEARCH_NOTE = (
    "`generate` follows fairseq's rules: its best output is that of `deltalm translate`; the lower places of an n-best "
    "list may hold others. Decomposed text (NFD) should be brought into NFC first."
)
STOCK_SEARCH_NOTE = (
    f"{SEARCH_NOTE} An output that reaches the maximum length is ranked without the log-probability of its `</s>`."
)
# Programs for model cards (see `ExportFormat`); `{options}`: what `from_pretrained` needs besides the directory.
EXAMPLE = """\
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{directory}"{options})
model = AutoModelForSeq2SeqLM.from_pretrained("{directory}"{options})
batch = tokenizer(["{tag}A dog is running."], return_tensors="pt", padding=True)
print(*tokenizer.batch_decode(model.generate(**batch), skip_special_tokens=True), sep="\\n")
"""
IDS_EXAMPLE = """\
import torch
from transformers import AutoModelForSeq2SeqLM

model = AutoModelForSeq2SeqLM.from_pretrained("{directory}"{options})
print(model.generate(torch.tensor([[4, 5, 6, 2]])))
"""


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
        directory: exists already.
        config: the content of config.json.
        weights: the tensors by the names that the model's class gives them.
        vocabulary: None, or one without text, writes no tokenizer.
        precision: one of `PRECISIONS`.
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
    """The defaults of our own search [facts: beam search], which `generate` then follows (see `TransformersEngine`)."""
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
