"""What the exports to transformers' stock BART and Marian have in common.

The layers of their decoders are self-attention, cross-attention, FFN: interleaved blocks become two each (see
`two_layers`).
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deltalm_ds.errors import InputError
from deltalm_ds.export.fairseq_weights import TOKEN_TABLE, fairseq_weights
from deltalm_ds.export.hugging_face_directory import common_config, write_model
from deltalm_ds.export.two_layers import split_norm
from deltalm_ds.model.deltalm import DeltaLM
from deltalm_ds.token_ids import EOS_ID
from deltalm_ds.vocabulary import Vocabulary

LAYER_NORM_EPS = 1e-5  # BART and Marian have no other
# What of an interleaved block is in layer A, by fairseq's name and by that of BART's layers; layer B has the rest.
FIRST_LAYER = {
    "self_attn": "self_attn",
    "self_attn_layer_norm": "self_attn_layer_norm",
    "fc3": "fc1",
    "fc4": "fc2",
    "ffn_layer_norm": "final_layer_norm",
}


def check_epsilon(model: DeltaLM, name: str) -> None:
    """InputError where a model's norms have another epsilon than the stock model called `name`."""
    eps = model.config.layer_norm_eps
    if eps != LAYER_NORM_EPS:
        raise InputError(
            f"{name}'s LayerNorm has epsilon {LAYER_NORM_EPS:g} and this model's {eps:g}: export it to another format, "
            "such as huggingface."
        )


def write_stock_model(
    names: dict[str, Any],
    weights: dict[str, Tensor],
    model: DeltaLM,
    vocabulary: Vocabulary | None,
    directory: Path,
    precision: str,
) -> None:
    """Write a directory for a stock class of transformers.

    Args:
        names: `model_type` and `architectures`, for config.json.
        weights: `stock_weights`, where the class wants them otherwise changed.
        model: whose weights they are.
        vocabulary: None, or one without text, writes no tokenizer.
        directory: exists already.
        precision: one of `PRECISIONS`.
    """
    about = common_config(model.config, precision) | names
    about |= {
        "decoder_layers": _num_decoder_layers(model),
        "activation_function": "gelu",
        "scale_embedding": False,
        "forced_eos_token_id": None,
    }
    write_model(directory, about, weights, vocabulary, precision, forced_eos_token_id=EOS_ID)


def stock_weights(model: DeltaLM) -> dict[str, Tensor]:
    """The tensors by name. Positions begin at row `POSITION_OFFSET`; the token table has no padding rows."""
    weights = fairseq_weights(model)
    token_table = weights.pop(TOKEN_TABLE)
    if model.config.decoder == "interleaved":
        weights = {_layer_name(name): tensor for name, tensor in weights.items()}
        for number in range(model.config.num_decoder_blocks):
            weights |= _no_op_weights(model, number)
    weights = {f"model.{name}": tensor for name, tensor in weights.items()}
    weights["model.shared.weight"] = token_table
    weights["final_logits_bias"] = torch.zeros(1, model.config.vocabulary_size)
    return weights


def _num_decoder_layers(model: DeltaLM) -> int:
    return model.config.num_decoder_blocks * (2 if model.config.decoder == "interleaved" else 1)


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
