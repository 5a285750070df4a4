"""The structure of a foreign checkpoint: sizes as its tensors have them, checked against what it states of itself."""

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from deltalm_ds.checkpoints import names
from deltalm_ds.checkpoints.tensor_files import TensorFile
from deltalm_ds.errors import DataError
from deltalm_ds.files import read_json
from deltalm_ds.model.config import PRESETS, DeltaLMConfig
from deltalm_ds.token_ids import SPECIAL_TOKENS

# fairseq's arguments of an encoder, and which of our sizes each one states
FAIRSEQ_ENCODER_SIZES = {
    "encoder_embed_dim": "hidden_size",
    "encoder_ffn_embed_dim": "ffn_size",
    "encoder_attention_heads": "num_heads",
    "encoder_layers": "num_encoder_layers",
}


@dataclass(frozen=True)
class Sizes:
    """The structure of a source; `decoder` is None and `num_decoder_blocks` 0 where there is only an encoder.

    num_rows: of the token table. num_heads: None where neither the file nor a preset of that width says it.
    """

    num_rows: int
    hidden_size: int
    ffn_size: int
    num_heads: int | None
    num_encoder_layers: int
    num_decoder_blocks: int
    decoder: Literal["interleaved", "vanilla"] | None
    max_positions: int
    embedding_norm: bool
    layer_norm_eps: float = 1e-5

    @classmethod
    def of(cls, config: DeltaLMConfig) -> "Sizes":
        """The structure of a DeltaLM; padding rows count."""
        return cls(
            num_rows=config.num_embedding_rows,
            hidden_size=config.hidden_size,
            ffn_size=config.ffn_size,
            num_heads=config.num_heads,
            num_encoder_layers=config.num_encoder_layers,
            num_decoder_blocks=config.num_decoder_blocks,
            decoder=config.decoder,
            max_positions=config.max_positions,
            embedding_norm=config.embedding_norm,
            layer_norm_eps=config.layer_norm_eps,
        )

    def config(self, **overrides: Any) -> DeltaLMConfig:
        """A DeltaLM of these sizes; an encoder alone gets the decoder that `overrides` states."""
        fields = {name: value for name, value in vars(self).items() if name != "num_rows" and value is not None}
        return DeltaLMConfig(**({"vocabulary_size": self.num_rows} | fields | overrides))


def read_settings(tensors: TensorFile, directory: Path) -> dict[str, Any]:
    """What a checkpoint states of itself: fairseq's model arguments, or the config.json beside a plain file.

    Raises:
        InputError, DataError: config.json cannot be read, or the arguments are not written as fairseq writes them.
    """
    cfg = tensors.content.get("cfg")
    for arguments in (cfg.get("model") if isinstance(cfg, Mapping) else None, tensors.content.get("args")):
        if isinstance(arguments, argparse.Namespace):
            return vars(arguments)
        if isinstance(arguments, Mapping):
            return dict(arguments)
        if arguments is not None:
            raise DataError(f"The model's arguments in {tensors.path} are a {type(arguments).__name__}, not fairseq's.")
    if tensors.section or not (directory / "config.json").is_file():
        return {}
    content = read_json(directory / "config.json")
    if not isinstance(content, dict):
        raise DataError(f"{directory / 'config.json'} is not a JSON object.")
    return content


class StatedSize(NamedTuple):
    """A size that a checkpoint states: the setting's name, which field of `Sizes` it is, and the value."""

    setting: str
    size: str
    value: int


def read_sizes(
    path: Path,
    tensors: TensorFile,
    name_of: Mapping[str, str],
    has_decoder: bool,
    settings: Mapping[str, Any],
    stated: Sequence[StatedSize],
) -> Sizes:
    """Sizes as the tensors have them; heads as the settings say it, or else a preset of that width.

    Args:
        path: for messages.
        tensors: those of the checkpoint.
        name_of: the file's own name of each tensor by fairseq's name.
        has_decoder: whether it is of a kind that has one.
        settings: what it states of itself; `stated`: the sizes among that.

    Raises:
        DataError: a table is missing or misshapen, or the settings are not those of these tensors or of a DeltaLM.
    """

    def matrix(name: str) -> tuple[int, int]:
        shape = tensors.shape(own_name(path, name_of, name))
        if len(shape) != 2 or 0 in shape:
            raise DataError(f"{name_of[name]} in {path} has shape {shape}: a matrix is needed there.")
        return shape[0], shape[1]

    num_rows, hidden_size = matrix(table_name(path, name_of))
    preset_heads = {preset["hidden_size"]: preset["num_heads"] for preset in (PRESETS["base"], PRESETS["large"])}
    stated_heads = [value for _, size, value in stated if size == "num_heads"]
    sizes = Sizes(
        num_rows=num_rows,
        hidden_size=hidden_size,
        ffn_size=matrix("encoder.layers.0.fc1.weight")[0],
        num_heads=stated_heads[0] if stated_heads else preset_heads.get(hidden_size),
        num_encoder_layers=_count_layers(name_of, "encoder"),
        num_decoder_blocks=_count_layers(name_of, "decoder") if has_decoder else 0,
        decoder="interleaved" if has_decoder else None,
        max_positions=matrix("encoder.embed_positions.weight")[0] - names.POSITION_OFFSET,
        embedding_norm="encoder.layernorm_embedding.weight" in name_of,
        layer_norm_eps=_epsilon(path, settings),
    )
    _check_sizes(path, sizes, stated)
    return sizes


def _check_sizes(path: Path, sizes: Sizes, stated: Sequence[StatedSize]) -> None:
    for setting, size, value in stated:
        if value != getattr(sizes, size):
            raise DataError(f"{path} states {setting}={value}, but has {getattr(sizes, size)}: is it complete?")
    if sizes.num_heads is not None and sizes.hidden_size % sizes.num_heads:
        raise DataError(f"{path} states {sizes.num_heads} heads, which do not divide its width {sizes.hidden_size}.")
    has_empty_decoder = sizes.decoder is not None and not sizes.num_decoder_blocks
    if sizes.num_rows <= len(SPECIAL_TOKENS) or sizes.max_positions < 1 or has_empty_decoder:
        raise DataError(f"{path} is not a complete checkpoint: it has no tokens, no positions or no decoder.")


def _epsilon(path: Path, settings: Mapping[str, Any]) -> float:
    value = settings.get("layer_norm_eps", 1e-5)
    if type(value) is not float or not 0 < value < 1:
        raise DataError(f"{path} states layer_norm_eps={value!r} where a small number must be.")
    return value


def own_name(path: Path, name_of: Mapping[str, str], fairseq: str) -> str:
    """The file's own name of a tensor that must be there; DataError if it is not."""
    if fairseq not in name_of:
        raise DataError(f"{path} has no tensor for {fairseq} (fairseq's name): it is not a complete checkpoint.")
    return name_of[fairseq]


def table_name(path: Path, name_of: Mapping[str, str]) -> str:
    """fairseq's name of the token table that is taken; DataError if there is none."""
    found = next((table for table in names.TABLES if table in name_of), None)
    if found is None:
        raise DataError(f"{path} has no table of token embeddings: it is not a complete checkpoint.")
    return found


def _count_layers(name_of: Mapping[str, str], stack: str) -> int:
    numbers = [int(match[1]) for name in name_of if (match := re.match(rf"{stack}\.layers\.(\d{{1,4}})\.", name))]
    return max(numbers, default=-1) + 1
