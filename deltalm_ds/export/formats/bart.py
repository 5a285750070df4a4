"""Export to Hugging Face's stock BART, no code of ours: any engine that runs BART then runs DeltaLM [facts: BART].

BART's decoder layers are self-attention, cross-attention, FFN: interleaved blocks become two each (see `two_layers`).
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deltalm_ds.errors import InputError
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
from deltalm_ds.export.two_layers import split_norm
from deltalm_ds.model.deltalm import DeltaLM
from deltalm_ds.token_ids import EOS_ID
from deltalm_ds.vocabulary import Vocabulary

LAYER_NORM_EPS = 1e-5  # BART has no other
# What of an interleaved block is in layer A of `two_layers`, and its name there; layer B has the rest.
FIRST_LAYER = {
    "self_attn": "self_attn",
    "self_attn_layer_norm": "self_attn_layer_norm",
    "fc3": "fc1",
    "fc4": "fc2",
    "ffn_layer_norm": "final_layer_norm",
}


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
    config = model.config
    if not config.embedding_norm:
        raise InputError(
            "BART always norms its embeddings, and this model, like DeltaLM large, does not: export it to another "
            "format, such as huggingface."
        )
    if config.layer_norm_eps != LAYER_NORM_EPS:
        raise InputError(
            f"BART's LayerNorm has epsilon {LAYER_NORM_EPS:g} and this model's {config.layer_norm_eps:g}: export it to "
            "another format."
        )
    weights = fairseq_weights(model)
    token_table = weights.pop(TOKEN_TABLE)
    layers_per_block = 1
    if config.decoder == "interleaved":
        layers_per_block = 2
        weights = {_layer_name(name): tensor for name, tensor in weights.items()}
        for number in range(config.num_decoder_blocks):
            weights |= _no_op_weights(model, number)
    weights = {f"model.{name}": tensor for name, tensor in weights.items()}
    weights["model.shared.weight"] = token_table
    weights["final_logits_bias"] = torch.zeros(1, config.vocabulary_size)
    about = common_config(config, precision) | {
        "model_type": "bart",
        "architectures": ["BartForConditionalGeneration"],
        "decoder_layers": layers_per_block * config.num_decoder_blocks,
        "activation_function": "gelu",
        "scale_embedding": False,
        "forced_eos_token_id": None,
    }
    write_model(directory, about, weights, vocabulary, precision, forced_eos_token_id=EOS_ID)


def open_bart(directory: Path) -> TransformersEngine:
    """The model of a directory that `write_bart` wrote."""
    from transformers import BartForConditionalGeneration

    return TransformersEngine.load(BartForConditionalGeneration, directory)


def _layer_name(name: str) -> str:
    """The name in one of the two layers of an interleaved block's tensor; other tensors keep theirs."""
    stack, kind, number, *rest = name.split(".")
    if (stack, kind) != ("decoder", "layers"):
        return name
    module, *tensor = rest
    layer = 2 * int(number)
    if module in FIRST_LAYER:
        module = FIRST_LAYER[module]
    else:
        layer += 1
    return ".".join([stack, kind, str(layer), module, *tensor])


def _no_op_weights(model: DeltaLM, number: int) -> dict[str, Tensor]:
    """The attentions of a block's two layers that add nothing, and the norms that make up for theirs."""
    block: Any = model.decoder.blocks[number]
    first, second = (f"decoder.layers.{2 * number + offset}" for offset in (0, 1))
    width = model.config.hidden_size
    matrix, vector = torch.zeros(width, width), torch.zeros(width)
    weights: dict[str, Tensor] = {}
    for attention in (f"{first}.encoder_attn", f"{second}.self_attn"):
        for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
            weights |= {f"{attention}.{projection}.weight": matrix, f"{attention}.{projection}.bias": vector}
    for norm, names in (
        (block.self_attention.norm, (f"{first}.self_attn_layer_norm", f"{first}.encoder_attn_layer_norm")),
        (block.ffn_1.norm, (f"{first}.final_layer_norm", f"{second}.self_attn_layer_norm")),
    ):
        for name, (gamma, beta) in zip(names, split_norm(norm), strict=True):
            weights |= {f"{name}.weight": gamma, f"{name}.bias": beta}
    return weights


FORMAT = ExportFormat(
    title="Hugging Face transformers, as a BART",
    library="transformers",
    write=write_bart,
    open=open_bart,
    precisions=PRECISIONS,
    example=EXAMPLE.replace("{options}", ""),
    ids_example=IDS_EXAMPLE.replace("{options}", ""),
    note=f"{SEARCH_NOTE} An output that reaches the maximum length is ranked without the log-probability of its "
    "`</s>`.",
)
