"""Export to ONNX Runtime: `encoder.onnx`, `decoder.onnx` (one step, with its cache) and the weights of both.

    encoder   tokens [B, S] int64, mask [B, S] bool        -> cross_keys_i, cross_values_i [B, H, S, D] of every block
    decoder   tokens [N] int64, mask [B, S], past_keys_i, past_values_i [N, H, L, D], cross_…
                                                           -> logits [N, V], present_keys_i, … [N, H, L + 1, D],
                                                              attention [N, S] of the last block, mean of the heads

N = B · beam rows, the beams of a sentence side by side; the mask is true at tokens; L is 0 at the first step.

The graphs are written node by node. torch's exporter would copy and scale all keys at every step, and put the token
table into each of the two files. Here every weight stands once in `weights.bin`, to which the graphs refer (ONNX's
external data): they stay small at any size of the model, and ONNX Runtime maps the file into memory.

int8: the weights of all matrix products and the token table (looked up and multiplied with) are int8 with one scale
an output, or token (see export/int8.py); activations are quantized at run time with one scale a row. ONNX Runtime's own
tool takes one scale for all rows: with that, a sentence's output would depend on the others of its batch. On random
products with one heavy input, a scale a row has a third of the error for a fifth more time.

Legend: B sentences, N rows, H heads, S source, L past, D head dim, M model dim, V vocabulary.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from deltalm_ds.export.formats import ExportFormat
from deltalm_ds.generation.interface import Engine
from deltalm_ds.generation.loading import load_engine
from deltalm_ds.model.deltalm import DeltaLM
from deltalm_ds.model.layers import CrossAttention, Embedding, FeedForward, InterleavedBlock, SelfAttention
from deltalm_ds.vocabulary import Vocabulary

if TYPE_CHECKING:
    from deltalm_ds.export.onnx_graph import Graph

PRECISIONS = ("float32", "int8")
WEIGHTS = "weights.bin"
ALIGNMENT_BYTES = 64  # of a tensor in the file: what the widest loads want

EXAMPLE = """\
from deltalm_ds.generation.interface import SearchOptions
from deltalm_ds.generation.loading import load_engine
from deltalm_ds.generation.translate import generate
from deltalm_ds.vocabulary import Vocabulary

engine, vocabulary = load_engine("{directory}"), Vocabulary.load("{directory}")
tags = [vocabulary.language_id(tag.strip("_")) for tag in "{tag}".split()]
((best,),) = generate(engine, [[*tags, *vocabulary.encode("A dog is running.")]], SearchOptions())
print(vocabulary.decode(best.ids))
"""
IDS_EXAMPLE = """\
from deltalm_ds.generation.interface import SearchOptions
from deltalm_ds.generation.loading import load_engine
from deltalm_ds.generation.translate import generate

((best,),) = generate(load_engine("{directory}"), [[4, 5, 6]], SearchOptions())
print(*best.ids)
"""


def write_onnx(model: DeltaLM, vocabulary: Vocabulary | None, directory: Path, precision: str) -> None:
    """Write the two graphs and their weights. Padding rows of the vocabulary are left out; they are never produced.

    Args:
        model: any DeltaLM.
        vocabulary: not needed: the graphs take and give ids.
        directory: exists already.
        precision: one of `PRECISIONS`.
    """
    import onnx

    from deltalm_ds.export.onnx_graph import Graph, Int8Graph

    weights: dict[str, Tensor] = {}
    graph_type = Int8Graph if precision == "int8" else Graph
    graphs = {"encoder": graph_type(model, weights), "decoder": graph_type(model, weights)}
    with torch.no_grad():
        _build_encoder(graphs["encoder"])
        _build_decoder(graphs["decoder"])
    places = _write_weights(directory / WEIGHTS, weights)
    for name, graph in graphs.items():
        onnx.save(graph.to_model(name, WEIGHTS, places), directory / f"{name}.onnx")


def open_onnx(directory: Path) -> Engine:
    """The model of a directory that `write_onnx` wrote, as `deltalm translate` opens it."""
    return load_engine(directory, threads=torch.get_num_threads())


def _write_weights(path: Path, weights: dict[str, Tensor]) -> dict[str, tuple[int, int]]:
    """Write the bytes of all tensors; returns the first byte and the number of bytes of each."""
    places = {}
    with open(path, "wb") as file:
        for name, tensor in weights.items():
            file.write(bytes(-file.tell() % ALIGNMENT_BYTES))
            places[name] = file.tell(), tensor.nbytes
            file.write(tensor.numpy().data)
    return places


def _build_encoder(graph: "Graph") -> None:
    model, config = graph.model, graph.config
    tokens, bias = graph.input("tokens", np.int64, ["B", "S"]), _attention_bias(graph)
    length = graph.op("Shape", tokens, start=1, end=2)
    positions = graph.op("Slice", graph.positions(model.encoder.embedding), graph.constant([0]), length)
    x = graph.op("Add", graph.look_up(tokens), positions)
    x = graph.op("Reshape", x, graph.constant([-1, config.hidden_size]))  # [B · S, M], as all that follows
    x = _embedding_norm(graph, x, model.encoder.embedding)
    heads = graph.constant([config.num_heads, config.head_dim])
    by_head = graph.op("Concat", graph.op("Shape", tokens), heads, axis=0)  # [B, S, H, D]
    encoder_layers: Any = model.encoder.layers  # modules in a list have no type that mypy knows
    for layer in encoder_layers:
        attention = layer.self_attention
        q, k, v = _heads(graph, graph.linear(x, attention.query_key_value), 3, by_head)
        x = _end_of_attention(graph, _attend(graph, q, k, v, bias), attention, x)
        x = _feed_forward(graph, x, layer.ffn)
    blocks: Any = model.decoder.blocks
    for index, block in enumerate(blocks):
        parts = graph.split(graph.linear(x, block.cross_attention.key_value), 2)
        for side, part in zip(("keys", "values"), parts, strict=True):
            shaped = graph.op("Reshape", part, by_head)
            graph.output(f"cross_{side}_{index}", _cache_shape(graph, "B", "S"), "Transpose", shaped, perm=[0, 2, 1, 3])


def _build_decoder(graph: "Graph") -> None:
    model, config = graph.model, graph.config
    tokens, bias = graph.input("tokens", np.int64, ["N"]), _attention_bias(graph)
    shapes = {"past": _cache_shape(graph, "N", "L"), "cross": _cache_shape(graph, "B", "S")}
    for index in range(config.num_decoder_blocks):
        for kind, shape in shapes.items():
            graph.input(f"{kind}_keys_{index}", np.float32, shape)
            graph.input(f"{kind}_values_{index}", np.float32, shape)
    position = graph.op("Shape", "past_keys_0", start=2, end=3)  # [1]
    x = graph.op("Add", graph.look_up(tokens), graph.op("Gather", graph.positions(model.decoder.embedding), position))
    x = _embedding_norm(graph, x, model.decoder.embedding)
    num_sentences = graph.op("Shape", "mask", start=0, end=1)
    beams = graph.constant([-1, config.num_heads, config.head_dim])
    by_beam = graph.op("Concat", num_sentences, beams, axis=0)  # [B, beam, H, D]
    blocks: Any = model.decoder.blocks
    for index, block in enumerate(blocks):
        x = _self_attention_step(graph, x, block.self_attention, index)
        if isinstance(block, InterleavedBlock):
            x = _feed_forward(graph, x, block.ffn_1)
        cross = block.cross_attention
        (q,) = _heads(graph, graph.linear(x, cross.query), 1, by_beam)  # [B, H, beam, D]
        attention = _attention(graph, q, f"cross_keys_{index}", bias)  # [B, H, beam, S]
        out = _weighted(graph, attention, f"cross_values_{index}")
        x = _end_of_attention(graph, out, cross, x)
        x = _feed_forward(graph, x, block.ffn_2 if isinstance(block, InterleavedBlock) else block.ffn)
    mean = graph.op("ReduceMean", attention, graph.constant([1]), keepdims=0)
    flat = graph.op("Concat", graph.constant([-1]), graph.op("Shape", "mask", start=1, end=2), axis=0)
    graph.output("attention", ["N", "S"], "Reshape", mean, flat)
    graph.logits(x)


def _self_attention_step(graph: "Graph", x: str, attention: SelfAttention, index: int) -> str:
    """One new position a row; the keys and values with it are outputs."""
    one_position = graph.constant([-1, 1, attention.num_heads, attention.head_dim])
    q, k, v = _heads(graph, graph.linear(x, attention.query_key_value), 3, one_position)  # [N, H, 1, D]
    shape = _cache_shape(graph, "N", "L + 1")
    keys = graph.output(f"present_keys_{index}", shape, "Concat", f"past_keys_{index}", k, axis=2)
    values = graph.output(f"present_values_{index}", shape, "Concat", f"past_values_{index}", v, axis=2)
    return _end_of_attention(graph, _attend(graph, q, keys, values), attention, x)


def _cache_shape(graph: "Graph", rows: str, positions: str) -> list[int | str]:
    return [rows, graph.config.num_heads, positions, graph.config.head_dim]


def _attention_bias(graph: "Graph") -> str:
    """The input `mask` as what is added to the scores, [B, 1, 1, S]."""
    mask = graph.op("Unsqueeze", graph.input("mask", np.bool_, ["B", "S"]), graph.constant([1, 2]))
    lowest = np.finfo(np.float32).min
    return graph.op("Where", mask, graph.constant(np.float32(0)), graph.constant(np.float32(lowest)))


def _embedding_norm(graph: "Graph", x: str, embedding: Embedding) -> str:
    return x if embedding.norm is None else graph.norm(x, embedding.norm)


def _heads(graph: "Graph", x: str, num_parts: int, shape: str) -> list[str]:
    """[rows, parts · M] -> each part as [., H, ., D]; shape: the same with H behind."""
    parts = graph.split(x, num_parts) if num_parts > 1 else [x]
    return [graph.op("Transpose", graph.op("Reshape", part, shape), perm=[0, 2, 1, 3]) for part in parts]


def _attend(graph: "Graph", q: str, k: str, v: str, bias: str | None = None) -> str:
    """softmax(q kᵀ / √D + bias) v, heads put side by side again: [rows, M]."""
    return _weighted(graph, _attention(graph, q, k, bias), v)


def _attention(graph: "Graph", q: str, k: str, bias: str | None) -> str:
    """softmax(q kᵀ / √D + bias)."""
    scaled = graph.op("Mul", q, graph.constant(np.float32(graph.config.head_dim**-0.5)))
    scores = graph.op("MatMul", scaled, graph.op("Transpose", k, perm=[0, 1, 3, 2]))  # ONNX Runtime makes them one
    if bias is not None:
        scores = graph.op("Add", scores, bias)
    return graph.op("Softmax", scores, axis=-1)


def _weighted(graph: "Graph", attention: str, v: str) -> str:
    """attention v, heads put side by side again: [rows, M]."""
    out = graph.op("Transpose", graph.op("MatMul", attention, v), perm=[0, 2, 1, 3])
    return graph.op("Reshape", out, graph.constant([-1, graph.config.hidden_size]))


def _end_of_attention(graph: "Graph", x: str, attention: SelfAttention | CrossAttention, residual: str) -> str:
    return graph.norm(graph.op("Add", graph.linear(x, attention.output), residual), attention.norm)


def _feed_forward(graph: "Graph", x: str, ffn: FeedForward) -> str:
    hidden = graph.op("Gelu", graph.linear(x, ffn.input))
    return graph.norm(graph.op("Add", graph.linear(hidden, ffn.output), x), ffn.norm)


FORMAT = ExportFormat(
    title="ONNX Runtime",
    library="onnxruntime",
    write=write_onnx,
    open=open_onnx,
    precisions=PRECISIONS,
    example=EXAMPLE,
    ids_example=IDS_EXAMPLE,
    note="What the two graphs take and give stands at the head of `deltalm_ds/export/formats/onnx.py`.",
)
