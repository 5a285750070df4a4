"""Microsoft's DeltaLM files into ours: the released pre-trained form and fairseq's fine-tuned form [FACTS §1].

Names of the released form are first turned into fairseq's, then fairseq's into ours; query, key and value become
one matrix, the two unused rows in front of every position table are dropped, and the token table gets padding rows.
"""

import argparse
import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError
from torch import Tensor

from deltalm_ds.checkpoints.directory import load_weights, save_model
from deltalm_ds.errors import DataError, InputError
from deltalm_ds.model.config import PRESETS, DeltaLMConfig
from deltalm_ds.model.deltalm import DeltaLM
from deltalm_ds.vocabulary import Vocabulary

POSITION_OFFSET = 2  # fairseq's first real token reads row 2

# our sub-layers of an encoder layer and an interleaved block, with fairseq's names of the attention or FFN and norm
_Sublayers = dict[str, tuple[str | tuple[str, str], str]]
_ENCODER_SUBLAYERS: _Sublayers = {
    "self_attention": ("self_attn", "self_attn_layer_norm"),
    "ffn": (("fc1", "fc2"), "final_layer_norm"),
}
_BLOCK_SUBLAYERS: _Sublayers = {
    "self_attention": ("self_attn", "self_attn_layer_norm"),
    "ffn_1": (("fc3", "fc4"), "ffn_layer_norm"),
    "cross_attention": ("encoder_attn", "encoder_attn_layer_norm"),
    "ffn_2": (("fc1", "fc2"), "final_layer_norm"),
}
_RELEASED_TO_FAIRSEQ = (
    (r"^src_embedding\.", "encoder."),
    (r"^tgt_embedding\.", "decoder."),
    (r"\.emb_layer_norm\.", ".layernorm_embedding."),
    (r"\.ffn_1\.fc1\.", ".fc3."),
    (r"\.ffn_1\.fc2\.", ".fc4."),
    (r"\.ffn_2\.(fc[12])\.", r".\1."),
    (r"\.ffn\.(fc[12])\.", r".\1."),
)


@dataclass(frozen=True)
class OfficialModel:
    """A model read from an official file: its shape, our weights by name, and what was left out, in sentences."""

    config: DeltaLMConfig
    weights: dict[str, Tensor]
    remarks: tuple[str, ...]


def load_official(path: str | Path, num_dictionary_tokens: int | None, num_heads: int | None = None) -> OfficialModel:
    """Read a released (`weights`) or fine-tuned (`model`) DeltaLM file.

    Args:
        num_dictionary_tokens: ids the dictionary gives, specials included; surplus rows of the table are left out.
            None takes every row as a token.
        num_heads: needed where no preset has the model's width.

    Raises:
        InputError: the file is missing, the heads are unknown, or the table has fewer rows than the dictionary.
        DataError: the file is no DeltaLM file, needs arbitrary unpickling, or lacks tensors.
    """
    state = _fairseq_state(path)
    rows = len(_tensor(state, "decoder.embed_tokens.weight", path))
    vocabulary_size = num_dictionary_tokens or rows
    if rows < vocabulary_size:
        raise InputError(
            f"{path} has {rows:,} embedding rows, its dictionary {vocabulary_size:,} tokens: wrong dict.txt?"
        )
    config = _config_of(state, vocabulary_size, num_heads, path)
    names = fairseq_names(config)
    weights = {
        ours: torch.cat([_tensor(state, name, path) for name in theirs]).float() for ours, theirs in names.items()
    }
    weights["token_embedding.weight"] = _with_padding_rows(weights["token_embedding.weight"], config)
    for name in ("encoder.embedding.positions", "decoder.embedding.positions"):
        weights[name] = weights[name][POSITION_OFFSET:].clone()
    used = {name for theirs in names.values() for name in theirs}
    return OfficialModel(config, weights, tuple(_remarks(state, used, rows, vocabulary_size, path)))


def _fairseq_state(path: str | Path) -> dict[str, Tensor]:
    """The file's tensors under fairseq's names."""
    if not Path(path).is_file():
        raise InputError(f"{path} does not exist or is not a file.")
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            # files of torch before 1.6 are no zip archives and cannot be mapped
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # reading a damaged pickle raises almost anything
        raise DataError(
            f"{path} cannot be read as a PyTorch checkpoint of tensors (it is damaged, or holds other classes, which "
            f"are not loaded for safety): {_first_sentence(error)}"
        ) from error
    if isinstance(content, Mapping) and isinstance(content.get("weights"), Mapping):
        return {_fairseq_name(name): tensor for name, tensor in content["weights"].items()}
    if isinstance(content, Mapping) and isinstance(content.get("model"), Mapping):
        return dict(content["model"])
    raise DataError(f"{path} holds neither 'weights' (released DeltaLM) nor 'model' (fairseq fine-tuned).")


def _first_sentence(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _fairseq_name(released: str) -> str:
    for pattern, replacement in _RELEASED_TO_FAIRSEQ:
        released = re.sub(pattern, replacement, released)
    return released


def _config_of(
    state: dict[str, Tensor], vocabulary_size: int, num_heads: int | None, path: str | Path
) -> DeltaLMConfig:
    """Sizes and the embedding norm as the tensors have them; heads from the preset of that width, or given."""
    hidden_size = _tensor(state, "decoder.embed_tokens.weight", path).shape[1]
    if num_heads is None:
        widths = {preset["hidden_size"]: preset["num_heads"] for name, preset in PRESETS.items() if name != "tiny"}
        if hidden_size not in widths:
            raise InputError(
                f"{path} is {hidden_size} wide, which no official size is: give the number of heads (--heads)."
            )
        num_heads = widths[hidden_size]
    positions = _tensor(state, "encoder.embed_positions.weight", path)
    try:
        return DeltaLMConfig(
            vocabulary_size=vocabulary_size,
            hidden_size=hidden_size,
            ffn_size=len(_tensor(state, "encoder.layers.0.fc1.weight", path)),
            num_heads=num_heads,
            num_encoder_layers=_count_layers(state, "encoder"),
            num_decoder_blocks=_count_layers(state, "decoder"),
            max_positions=len(positions) - POSITION_OFFSET,
            embedding_norm="encoder.layernorm_embedding.weight" in state,
        )
    except ValidationError as error:
        faults = "; ".join(fault["msg"].removeprefix("Value error, ") for fault in error.errors())
        raise InputError(f"{path} cannot be a DeltaLM: {faults} (the number of heads is given by --heads).") from None


def _count_layers(state: dict[str, Tensor], stack: str) -> int:
    numbers = [int(match[1]) for name in state if (match := re.match(rf"{stack}\.layers\.(\d+)\.", name))]
    return max(numbers, default=-1) + 1


def _tensor(state: dict[str, Tensor], name: str, path: str | Path) -> Tensor:
    if name not in state:
        raise DataError(f"{path} has no tensor {name}: it is not a DeltaLM model, or not a complete one.")
    return state[name]


def fairseq_names(config: DeltaLMConfig) -> dict[str, list[str]]:
    """For each of our parameters the fairseq tensors that make it, to be laid one below the other."""
    names = {"token_embedding.weight": ["decoder.embed_tokens.weight"]}
    stacks = (
        ("encoder", "layers", config.num_encoder_layers, _ENCODER_SUBLAYERS),
        ("decoder", "blocks", config.num_decoder_blocks, _BLOCK_SUBLAYERS),
    )
    for stack, layers, num_layers, sublayers in stacks:
        names[f"{stack}.embedding.positions"] = [f"{stack}.embed_positions.weight"]
        for kind in ("weight", "bias"):
            if config.embedding_norm:
                names[f"{stack}.embedding.norm.{kind}"] = [f"{stack}.layernorm_embedding.{kind}"]
            for i in range(num_layers):
                for ours, (theirs, norm) in sublayers.items():
                    sublayer = _sublayer_names(ours, theirs, norm, kind)
                    for name, parts in sublayer.items():
                        names[f"{stack}.{layers}.{i}.{name}"] = [f"{stack}.layers.{i}.{part}" for part in parts]
    return names


def _sublayer_names(ours: str, theirs: str | tuple[str, str], norm: str, kind: str) -> dict[str, list[str]]:
    names = {f"{ours}.norm.{kind}": [f"{norm}.{kind}"]}
    if isinstance(theirs, tuple):
        return names | {
            f"{ours}.input.{kind}": [f"{theirs[0]}.{kind}"],
            f"{ours}.output.{kind}": [f"{theirs[1]}.{kind}"],
        }
    q, k, v, out = (f"{theirs}.{projection}_proj.{kind}" for projection in ("q", "k", "v", "out"))
    names[f"{ours}.output.{kind}"] = [out]
    if ours == "self_attention":
        return names | {f"{ours}.query_key_value.{kind}": [q, k, v]}
    return names | {f"{ours}.query.{kind}": [q], f"{ours}.key_value.{kind}": [k, v]}


def _with_padding_rows(table: Tensor, config: DeltaLMConfig) -> Tensor:
    padded = table.new_zeros(config.num_embedding_rows, config.hidden_size)
    padded[: config.vocabulary_size] = table[: config.vocabulary_size]
    return padded


def _remarks(state: dict[str, Tensor], used: set[str], rows: int, vocabulary_size: int, path: str | Path) -> list[str]:
    """What the file holds and the model does not take; any other unused tensor is an error."""
    remarks = []
    if rows > vocabulary_size:
        remarks.append(f"{rows - vocabulary_size} embedding rows behind the dictionary's {vocabulary_size:,} left out")
    tied = {"encoder.embed_tokens.weight", "decoder.output_projection.weight"}
    shared = state["decoder.embed_tokens.weight"]
    for name in sorted(tied & state.keys()):
        if not torch.equal(state[name], shared):
            remarks.append(f"{name} differs from the decoder's table, which is the one taken")
    unused = sorted(state.keys() - used - tied - {"encoder.version", "decoder.version"})
    if unused:
        raise DataError(f"{path} holds tensors that DeltaLM has no place for: {', '.join(unused[:5])}.")
    return remarks


def convert_official(
    path: Path, dict_path: Path, spm_path: Path | None, num_heads: int | None, out: Path
) -> dict[str, object]:
    """Write an official file as a model directory; returns a summary for the user.

    Raises:
        InputError, DataError: as `load_official`, or `out` exists.
    """
    if spm_path is None:
        vocabulary = Vocabulary.from_dict(dict_path, num_sentinels=0)
    else:
        vocabulary = Vocabulary.from_spm(spm_path, dict_path, num_sentinels=0)
    official = load_official(path, vocabulary.num_tokens, num_heads)
    with torch.device("meta"):
        model = DeltaLM(official.config)
    load_weights(model, official.weights, str(path))  # checks every shape
    provenance = {"made_by": "deltalm init", "source": str(path), "remarks": list(official.remarks)}
    save_model(out, official.config, official.weights, vocabulary, provenance)
    return {
        "directory": str(out),
        "model": official.config.model_dump(),
        "parameters": f"{model.num_parameters():,} (before padding rows)",
        "remarks": "; ".join(official.remarks) or "every tensor found its place",
    }
