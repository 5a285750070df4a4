"""Export to CTranslate2, exact with its stock wheel [facts: CTranslate2]. Interleaved blocks: see `two_layers`."""

from pathlib import Path
from typing import Any

import ctranslate2
import torch
from ctranslate2.specs import (
    Activation,
    TransformerDecoderSpec,
    TransformerEncoderSpec,
    TransformerSpec,
)
from ctranslate2.specs.attention_spec import MultiHeadAttentionSpec
from ctranslate2.specs.model_spec import PyTorchVariable, visit_spec
from torch import Tensor, nn

from deltalm_ds.export.formats import ExportFormat
from deltalm_ds.export.int8 import int8_rows
from deltalm_ds.export.two_layers import split_norm
from deltalm_ds.generation.interface import Engine
from deltalm_ds.generation.loading import load_engine
from deltalm_ds.model.deltalm import DeltaLM
from deltalm_ds.model.layers import CrossAttention, Embedding, FeedForward, PostNorm, SelfAttention
from deltalm_ds.token_ids import SPECIAL_TOKENS
from deltalm_ds.vocabulary import Vocabulary

ALL_HEADS = 0  # attention is given as the mean of the last layer's heads
PRECISIONS = ("float32", "float16", "bfloat16", "int8", "int8_float32", "int8_float16", "int8_bfloat16")

EXAMPLE = """\
import ctranslate2
import sentencepiece

translator = ctranslate2.Translator("{directory}")
pieces = sentencepiece.SentencePieceProcessor("{directory}/spm.model")
source = [*"{tag}".split(), *pieces.encode("A dog is running.", out_type=str), "</s>"]
(result,) = translator.translate_batch([source], beam_size=5, max_input_length=0, suppress_sequences=[["<pad>"]])
print(pieces.decode(result.hypotheses[0]))
"""
IDS_EXAMPLE = """\
import json

import ctranslate2

translator = ctranslate2.Translator("{directory}")
with open("{directory}/shared_vocabulary.json") as file:
    tokens = json.load(file)
source = [tokens[token_id] for token_id in (4, 5, 6, 2)]
(result,) = translator.translate_batch([source], beam_size=5, max_input_length=0, suppress_sequences=[[tokens[1]]])
print(*result.hypotheses[0])
"""


def write_ctranslate2(model: DeltaLM, vocabulary: Vocabulary | None, directory: Path, precision: str) -> None:
    """Write a CTranslate2 model. Padding rows of the vocabulary are left out; they are never produced.

    Args:
        model: any DeltaLM.
        vocabulary: names the ids; None numbers them.
        directory: exists already.
        precision: one of `PRECISIONS`.
    """
    spec = build_spec(model, _token_names(vocabulary, model.config.vocabulary_size))
    spec.validate()
    if precision.startswith("int8"):
        _quantize(spec, precision)
    else:
        spec.optimize(precision)
    spec.save(str(directory))


def open_ctranslate2(directory: Path) -> Engine:
    """The model of a directory that `write_ctranslate2` wrote, as `deltalm translate` opens it on a CPU."""
    return load_engine(directory, threads=torch.get_num_threads(), device="cpu")


def _quantize(spec: TransformerSpec, precision: str) -> None:
    """What `spec.optimize(precision)` does, but with weights that no processor can overflow (see export/int8.py)."""
    _, _, dtype = precision.partition("_")

    def convert(part: Any, name: str, variable: Any) -> None:
        name = name.split("/")[-1]
        if not isinstance(variable, PyTorchVariable) or variable.is_scalar():
            return
        if hasattr(part, f"{name}_scale"):
            values, scales = int8_rows(variable.tensor)
            setattr(part, name, PyTorchVariable(values))
            setattr(part, f"{name}_scale", PyTorchVariable(1 / scales))
        else:
            setattr(part, name, variable.to(dtype or "float32"))

    spec.optimize()  # equal tensors are stored once
    visit_spec(spec, convert)


def computed_as(precision: str) -> str:
    """What this machine's CPU computes in when it is given a model of that precision."""
    supported = ctranslate2.get_supported_compute_types("cpu")
    if precision in supported:
        return precision
    return "int8_float32" if precision.startswith("int8") and "int8_float32" in supported else "float32"


def _token_names(vocabulary: Vocabulary | None, num_tokens: int) -> list[str]:
    """A name for each id; without a vocabulary (a model used with --ids only) its number."""
    if vocabulary is not None:
        return [vocabulary.token(token_id) for token_id in range(num_tokens)]
    return [*SPECIAL_TOKENS, *(str(token_id) for token_id in range(len(SPECIAL_TOKENS), num_tokens))]


def build_spec(model: DeltaLM, tokens: list[str]) -> TransformerSpec:
    """The model in CTranslate2's terms; `tokens` names its ids."""
    config = model.config
    layers_per_block = 2 if config.decoder == "interleaved" else 1
    stack: dict[str, Any] = {
        "num_heads": config.num_heads,
        "pre_norm": False,
        "activation": Activation.GELU,
        "layernorm_embedding": config.embedding_norm,
    }
    spec = TransformerSpec(
        TransformerEncoderSpec(config.num_encoder_layers, **stack),
        TransformerDecoderSpec(layers_per_block * config.num_decoder_blocks, **stack, alignment_heads=ALL_HEADS),
    )
    spec.config.add_attribute("alignment_heads", ALL_HEADS)  # what the engine knows of the line above
    spec.config.layer_norm_epsilon = config.layer_norm_eps
    spec.config.decoder_start_token = "</s>"
    spec.config.add_source_eos = False  # the caller appends it
    spec.register_source_vocabulary(tokens)
    spec.register_target_vocabulary(tokens)
    token_embedding = _copy(model.token_embedding.weight[: config.vocabulary_size])  # one for all three: it is large
    _set_embedding(spec.encoder, spec.encoder.embeddings[0], model.encoder.embedding, token_embedding)
    _set_embedding(spec.decoder, spec.decoder.embeddings, model.decoder.embedding, token_embedding)
    spec.decoder.projection.weight = token_embedding
    encoder_layers: Any = model.encoder.layers  # modules in a list have no type that mypy knows
    blocks: Any = model.decoder.blocks
    for layer, encoder_layer in zip(spec.encoder.layer, encoder_layers, strict=True):
        _set_self_attention(layer.self_attention, encoder_layer.self_attention)
        _set_ffn(layer.ffn, encoder_layer.ffn)
    for number, block in enumerate(blocks):
        layers = spec.decoder.layer[number * layers_per_block : (number + 1) * layers_per_block]
        if config.decoder == "interleaved":
            _set_interleaved_block(layers[0], layers[1], block)
        else:
            _set_self_attention(layers[0].self_attention, block.self_attention)
            _set_cross_attention(layers[0].attention, block.cross_attention)
            _set_ffn(layers[0].ffn, block.ffn)
    return spec


def _set_interleaved_block(layer_a: Any, layer_b: Any, block: Any) -> None:
    """The two CTranslate2 layers of one interleaved block (see `two_layers`)."""
    width, num_heads = len(block.ffn_1.norm.weight), block.self_attention.num_heads
    _set_self_attention(layer_a.self_attention, block.self_attention)
    layer_a.attention = _no_op_attention([(num_heads, width), (2 * num_heads, width), (width, num_heads)])
    _set_split_norm(layer_a.self_attention.layer_norm, layer_a.attention.layer_norm, block.self_attention.norm)
    _set_ffn(layer_a.ffn, block.ffn_1)
    layer_b.self_attention = _no_op_attention([(3 * num_heads, width), (width, num_heads)])
    _set_split_norm(layer_a.ffn.layer_norm, layer_b.self_attention.layer_norm, block.ffn_1.norm)
    _set_cross_attention(layer_b.attention, block.cross_attention)
    _set_ffn(layer_b.ffn, block.ffn_2)


def _no_op_attention(shapes: list[tuple[int, int]]) -> MultiHeadAttentionSpec:
    """An attention with heads of width 1 and zero weights: it adds nothing to the residual."""
    attention = MultiHeadAttentionSpec(self_attention=len(shapes) == 2, head_dim=1)
    for linear, shape in zip(attention.linear, shapes, strict=True):
        linear.weight = torch.zeros(shape)
    return attention


def _set_split_norm(first: Any, second: Any, norm: PostNorm) -> None:
    """Two LayerNorms that together are `norm`."""
    for spec, weights in zip((first, second), split_norm(norm), strict=True):
        spec.gamma, spec.beta = weights


def _set_embedding(stack: Any, table: Any, embedding: Embedding, token_embedding: Tensor) -> None:
    stack.scale_embeddings = False
    table.weight = token_embedding
    stack.position_encodings.encodings = _copy(embedding.positions)
    if embedding.norm is not None:
        _set_norm(stack.layernorm_embedding, embedding.norm)


def _set_self_attention(spec: Any, attention: SelfAttention) -> None:
    _set_linear(spec.linear[0], attention.query_key_value.weight, attention.query_key_value.bias)
    _set_linear(spec.linear[1], attention.output.weight, attention.output.bias)
    _set_norm(spec.layer_norm, attention.norm)


def _set_cross_attention(spec: Any, attention: CrossAttention) -> None:
    for linear, ours in zip(spec.linear, (attention.query, attention.key_value, attention.output), strict=True):
        _set_linear(linear, ours.weight, ours.bias)
    _set_norm(spec.layer_norm, attention.norm)


def _set_ffn(spec: Any, ffn: FeedForward) -> None:
    _set_linear(spec.linear_0, ffn.input.weight, ffn.input.bias)
    _set_linear(spec.linear_1, ffn.output.weight, ffn.output.bias)
    _set_norm(spec.layer_norm, ffn.norm)


def _set_linear(spec: Any, weight: Tensor, bias: Tensor | None = None) -> None:
    spec.weight = _copy(weight)
    if bias is not None:
        spec.bias = _copy(bias)


def _set_norm(spec: Any, norm: PostNorm | nn.LayerNorm) -> None:
    spec.gamma, spec.beta = _copy(norm.weight), _copy(norm.bias)


def _copy(weight: Tensor) -> Tensor:
    """CTranslate2 quantizes its tensors in place: without a copy it would spoil the model."""
    return weight.detach().clone()


FORMAT = ExportFormat(
    title="CTranslate2",
    library="ctranslate2",
    write=write_ctranslate2,
    open=open_ctranslate2,
    precisions=PRECISIONS,
    example=EXAMPLE,
    ids_example=IDS_EXAMPLE,
    computed_as=computed_as,
    note="`deltalm translate` and its kin take the directory as they take a model's.",
)
