"""Export to CTranslate2, exact with its stock wheel [FACTS §5], guarded by a parity check.

An interleaved block (self-attention, FFN 1, cross-attention, FFN 2) becomes two CTranslate2 decoder layers, each of
which always has self-attention, cross-attention and FFN:

    layer A: the self-attention,           a no-op cross-attention, FFN 1
    layer B: a no-op self-attention,       the cross-attention,     FFN 2

A no-op attention has zero weights, so its sub-layer is LayerNorm(x + 0): one LayerNorm too many. It is cancelled by
splitting the LayerNorm before it in two: the first normalises and scales by a small g, the second restores gamma
and beta. The two together are exactly one LayerNorm with epsilon ε · (ε/g²) / (1 + ε/g²), 0.994 ε at g = 2⁻¹².
"""

import math
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from ctranslate2.specs import (
    Activation,
    TransformerDecoderSpec,
    TransformerEncoderSpec,
    TransformerSpec,
)
from ctranslate2.specs.attention_spec import MultiHeadAttentionSpec
from torch import Tensor, nn

from deltalm_ds.checkpoints.directory import load_model
from deltalm_ds.errors import InputError
from deltalm_ds.export.parity import ParityReport, check_parity
from deltalm_ds.files import atomic_directory, write_json
from deltalm_ds.generation.engine import CTranslate2Engine, PyTorchEngine
from deltalm_ds.model.deltalm import DeltaLM
from deltalm_ds.model.layers import CrossAttention, Embedding, FeedForward, PostNorm, SelfAttention
from deltalm_ds.vocabulary import SPECIAL_TOKENS, Vocabulary

QUANTIZATIONS = ("float32", "float16", "bfloat16", "int8", "int8_float32", "int8_float16", "int8_bfloat16")
SPLIT_GAIN = 2.0**-12  # representable in float16, and small enough to leave 99.4 % of epsilon


def export_ctranslate2(
    model_directory: str | Path,
    out_directory: str | Path,
    quantization: str = "float32",
    check_sources: Sequence[Sequence[int]] | None = None,
) -> ParityReport:
    """Write a model as a CTranslate2 directory, if that gives what the model gives.

    The directory stands on its own: it also holds the vocabulary and `deltalm.json` (origin, versions, parity).
    Padding rows of the vocabulary are left out; they are never produced.

    Args:
        check_sources: ids of sentences to check with (language tags included, no `</s>`); None takes random ones.

    Raises:
        InputError: unknown quantization, or `out_directory` is not empty.
        CheckError: the export does not agree with the model; nothing is left at `out_directory`.
    """
    if quantization not in QUANTIZATIONS:
        raise InputError(f"There is no quantization {quantization!r}: choose one of {', '.join(QUANTIZATIONS)}.")
    model = load_model(model_directory)
    has_vocabulary = (Path(model_directory) / "vocabulary.json").exists()
    vocabulary = Vocabulary.load(model_directory) if has_vocabulary else None
    about: dict[str, Any] = {
        "format": "ctranslate2",
        "source": str(Path(model_directory).resolve()),
        "quantization": quantization,
        "vocabulary_size": model.config.vocabulary_size,
        "max_positions": model.config.max_positions,
        "versions": {package: version(package) for package in ("ctranslate2", "torch")},
    }
    ours = PyTorchEngine(model)
    with atomic_directory(out_directory) as directory:
        if quantization != "float32":
            # rounding could hide a wrong tensor: before it, the export must be exact
            with TemporaryDirectory(dir=directory) as exact:
                exported = _write(model, vocabulary, "float32", about, Path(exact))
                check_parity(ours, exported, check_sources, is_exact=True)
        exported = _write(model, vocabulary, quantization, about, directory)
        report = check_parity(ours, exported, check_sources, is_exact=quantization == "float32")
        write_json(directory / "deltalm.json", about | {"parity": report.as_dict()})
    return report


def _write(
    model: DeltaLM, vocabulary: Vocabulary | None, quantization: str, about: dict[str, Any], directory: Path
) -> CTranslate2Engine:
    """Write all files into an existing directory and open it."""
    spec = build_spec(model, _token_names(vocabulary, model.config.vocabulary_size))
    spec.validate()
    spec.optimize(quantization)
    spec.save(str(directory))
    if vocabulary is not None:
        vocabulary.save(directory)
    write_json(directory / "deltalm.json", about)
    return CTranslate2Engine(directory, torch.get_num_threads())


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
        TransformerDecoderSpec(layers_per_block * config.num_decoder_blocks, **stack),
    )
    spec.config.layer_norm_epsilon = config.layer_norm_eps
    spec.config.decoder_start_token = "</s>"
    spec.config.add_source_eos = False  # the caller appends it
    spec.register_source_vocabulary(tokens)
    spec.register_target_vocabulary(tokens)
    token_embedding = model.token_embedding.weight[: config.vocabulary_size]
    _set_embedding(spec.encoder, spec.encoder.embeddings[0], model.encoder.embedding, token_embedding)
    _set_embedding(spec.decoder, spec.decoder.embeddings, model.decoder.embedding, token_embedding)
    _set_linear(spec.decoder.projection, token_embedding)
    encoder_layers: Any = model.encoder.layers  # modules in a list have no type that mypy knows
    blocks: Any = model.decoder.blocks
    for layer, encoder_layer in zip(spec.encoder.layer, encoder_layers, strict=True):
        _set_self_attention(layer.self_attention, encoder_layer.self_attention)
        _set_ffn(layer.ffn, encoder_layer.ffn)
    for number, block in enumerate(blocks):
        layers = spec.decoder.layer[number * layers_per_block : (number + 1) * layers_per_block]
        if config.decoder == "interleaved":
            _set_interleaved_block(layers[0], layers[1], block, config.layer_norm_eps)
        else:
            _set_self_attention(layers[0].self_attention, block.self_attention)
            _set_cross_attention(layers[0].attention, block.cross_attention)
            _set_ffn(layers[0].ffn, block.ffn)
    return spec


def _set_interleaved_block(layer_a: Any, layer_b: Any, block: Any, eps: float) -> None:
    """The two CTranslate2 layers of one interleaved block (see the head of this file)."""
    width, num_heads = len(block.ffn_1.norm.weight), block.self_attention.num_heads
    _set_self_attention(layer_a.self_attention, block.self_attention)
    layer_a.attention = _no_op_attention([(num_heads, width), (2 * num_heads, width), (width, num_heads)])
    _split_norm(layer_a.self_attention.layer_norm, layer_a.attention.layer_norm, block.self_attention.norm, eps)
    _set_ffn(layer_a.ffn, block.ffn_1)
    layer_b.self_attention = _no_op_attention([(3 * num_heads, width), (width, num_heads)])
    _split_norm(layer_a.ffn.layer_norm, layer_b.self_attention.layer_norm, block.ffn_1.norm, eps)
    _set_cross_attention(layer_b.attention, block.cross_attention)
    _set_ffn(layer_b.ffn, block.ffn_2)


def _no_op_attention(shapes: list[tuple[int, int]]) -> MultiHeadAttentionSpec:
    """An attention with heads of width 1 and zero weights: it adds nothing to the residual."""
    attention = MultiHeadAttentionSpec(self_attention=len(shapes) == 2, head_dim=1)
    for linear, shape in zip(attention.linear, shapes, strict=True):
        linear.weight = torch.zeros(shape)
    return attention


def _split_norm(first: Any, second: Any, norm: PostNorm, eps: float) -> None:
    """Two LayerNorms that together are `norm` (see the head of this file)."""
    first.gamma = torch.full(norm.weight.shape, SPLIT_GAIN)
    first.beta = torch.zeros(norm.bias.shape)
    second.gamma = _copy(norm.weight) * math.sqrt(1.0 + eps / SPLIT_GAIN**2)
    second.beta = _copy(norm.bias)


def _set_embedding(stack: Any, table: Any, embedding: Embedding, token_embedding: Tensor) -> None:
    stack.scale_embeddings = False
    table.weight = _copy(token_embedding)
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
