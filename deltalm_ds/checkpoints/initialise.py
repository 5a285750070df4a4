"""A new model from any checkpoint: every weight of it has a stated origin [facts: layer map].

None is random, but for new tokens and for the cross-attention where that is asked for.

How each weight is made is decided and checked before anything is written; then tensors are read, made and written one
after the other.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import ValidationError
from torch import Tensor

from deltalm_ds.arrays.counter_rng import hash_counters, name_key
from deltalm_ds.checkpoints.directory import check_finite, load_weights, parameter_shapes, save_model
from deltalm_ds.checkpoints.layer_map import LayerMap, make_layer_map
from deltalm_ds.checkpoints.origin_table import grouped
from deltalm_ds.checkpoints.provenance import provenance
from deltalm_ds.checkpoints.source import TABLE, SourceCheckpoint
from deltalm_ds.checkpoints.surgery import RowMap, fit_positions, map_rows, new_table
from deltalm_ds.errors import InputError
from deltalm_ds.model.config import DeltaLMConfig
from deltalm_ds.model.deltalm import DeltaLM, reset_layer_parameter
from deltalm_ds.model.empty import empty_model
from deltalm_ds.token_ids import ROW_MULTIPLE
from deltalm_ds.vocabulary import Vocabulary

PADDED_TO = (8, 16, 32, 64, 128, 256, 512, 1024)  # multiples that tables are padded to for speed
NUM_NAMES = 20  # of new and dropped tokens in a summary

FitPositions = Literal["truncate", "extend"]


@dataclass(frozen=True)
class Initialisation:
    """How each weight of a new model is made from a source; nothing is read yet."""

    source: SourceCheckpoint
    config: DeltaLMConfig
    layer_map: LayerMap
    rows: RowMap
    fit: FitPositions | None = None
    seed: int = 1

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Our parameters, in the order in which they are written."""
        return tuple(parameter_shapes(self.config))

    @property
    def weights(self) -> dict[str, Callable[[], Tensor]]:
        """Our parameters by name, each as the function that makes it, in float32.

        Such a function raises a DataError that names the source's tensor if a number is NaN or infinite.
        """
        return {name: partial(self._make, name) for name in self.names}

    def _make(self, name: str) -> Tensor:
        if self.layer_map.is_fresh(name):
            return self._fresh(name)
        origin = self.layer_map.origin(name)
        tensor = self.source.read(origin.name)
        if name == TABLE:
            tensor = new_table(tensor[: self.rows.num_source_rows], self.rows, self.seed)
        elif name.endswith(".positions"):
            tensor = fit_positions(tensor, self.config.max_positions, self.fit)
        elif origin.stop is not None:
            tensor = tensor[origin.start * self.config.hidden_size : origin.stop * self.config.hidden_size]
        check_finite(f"{self.source.origins[origin.name]} in {self.source.path}", tensor)
        return tensor

    def _fresh(self, name: str) -> Tensor:
        """A weight as a new model has it, by (seed, name) alone."""
        weight = torch.empty(parameter_shapes(self.config)[name])
        generator = torch.Generator().manual_seed(int(hash_counters(self.seed, name_key(name))))
        reset_layer_parameter(name, weight, generator)
        return weight

    def model(self, **overrides: Any) -> DeltaLM:
        """The new model in memory, in evaluation mode; overrides replace fields of its config."""
        model = empty_model(self.config.model_copy(update=overrides))
        copies = {name: make().clone() for name, make in self.weights.items()}  # two may be made of the same tensor
        load_weights(model, copies, str(self.source.path))
        return model.eval()

    @property
    def origins(self) -> dict[str, str]:
        """For each of our parameters the source's tensors that make it, as text."""
        texts = {}
        for name in self.names:
            if self.layer_map.is_fresh(name):
                texts[name] = f"nothing: as in a fresh model, by seed {self.seed}"
                continue
            origin, width = self.layer_map.origin(name), self.config.hidden_size
            rows = "" if origin.stop is None else f"[{origin.start * width}:{origin.stop * width}]"
            texts[name] = f"{self.source.origins[origin.name]}{rows}"
        return texts

    @property
    def unused(self) -> dict[str, str]:
        """Every tensor of the source that makes none of ours, with the reason."""
        taken = {self.layer_map.origin(name).name for name in self.names if not self.layer_map.is_fresh(name)}
        used = {part for name in taken for part in self.source.origins[name].tensors}
        reasons = {
            part: "left out by the layer map"
            for origin in self.source.origins.values()
            for part in origin.tensors
            if part not in used
        }
        reasons |= dict.fromkeys(self.source.unused, "DeltaLM has no use for it")
        for name in self.source.copies:
            differs = name in self.source.differing_copies
            reasons[name] = "a token table that differs from the one taken" if differs else "a copy of the token table"
        return dict(sorted(reasons.items()))


def make_initialisation(
    source: SourceCheckpoint,
    layer_map: LayerMap,
    rows: RowMap,
    vocabulary_size: int,
    num_heads: int | None = None,
    max_positions: int | None = None,
    fit: FitPositions | None = None,
    seed: int = 1,
) -> Initialisation:
    """Decide the shape of the new model and where each of its weights comes from.

    Args:
        source: where the weights come from.
        layer_map: which of its layers each layer starts from.
        rows: which row of its token table each row starts from; `vocabulary_size` of them are tokens.
        num_heads: needed where the source does not say it and no preset has its width.
        max_positions: of the new model, the source's if None; `fit` allows for a difference (`fit_positions`).
        seed: of new rows of the token table, and of random cross-attention.

    Raises:
        InputError: the heads are unknown or contradict the source, or the positions differ without leave.
    """
    sizes = source.sizes
    if num_heads is None and sizes.num_heads is None:
        raise InputError(
            f"{source.path} is {sizes.hidden_size} wide, which no official size is: give the number of heads (--heads)."
        )
    if None not in (num_heads, sizes.num_heads) and num_heads != sizes.num_heads:
        raise InputError(f"{source.path} has {sizes.num_heads} heads, not {num_heads}: leave out --heads.")
    shape = {
        "vocabulary_size": vocabulary_size,
        "num_heads": num_heads or sizes.num_heads,
        "num_encoder_layers": len(layer_map.encoder),
        "num_decoder_blocks": len(layer_map.decoder),
        "decoder": layer_map.form,
        "max_positions": max_positions or sizes.max_positions,
    }
    config = _new_config(source, shape)
    for stack in ("encoder", "decoder"):
        table = layer_map.origin(f"{stack}.embedding.positions").name
        fit_positions(torch.empty(source.num_rows(table), 0), config.max_positions, fit)  # refuses in time
    return Initialisation(source, config, layer_map, rows, fit, seed)


def _new_config(source: SourceCheckpoint, shape: dict[str, Any]) -> DeltaLMConfig:
    """The config of a model of this shape; a model directory of ours keeps its other settings (dropout, say)."""
    own_settings = source.config.model_dump() if source.config else {}
    try:
        return source.sizes.config(**(own_settings | shape))
    except ValidationError as error:
        faults = "; ".join(fault["msg"].removeprefix("Value error, ") for fault in error.errors())
        raise InputError(f"{source.path} cannot be a DeltaLM: {faults} (the heads are given by --heads).") from None


def unchanged_initialisation(
    source: SourceCheckpoint, num_heads: int | None = None, vocabulary_size: int | None = None
) -> Initialisation:
    """The source as a DeltaLM whose token ids mean what they mean in the source; an encoder gets its usual decoder.

    vocabulary_size: the rows that are tokens, all if None.
    """
    num_tokens = vocabulary_size or source.sizes.num_rows
    num_rows = -(-num_tokens // ROW_MULTIPLE) * ROW_MULTIPLE
    kept = {row: row for row in range(num_tokens)}
    rows = RowMap(kept, {}, {}, (), 0, num_source_rows=num_tokens, num_rows=num_rows)
    return make_initialisation(source, make_layer_map(source.sizes), rows, num_tokens, num_heads)


def own_vocabulary(source: SourceCheckpoint, dict_file: Path | None = None, spm_file: Path | None = None) -> Vocabulary:
    """The vocabulary that a source's rows are named by: from the files given, or else from what stands beside it.

    Raises:
        InputError: there is none, or a file is malformed.
    """
    files_given = dict_file is not None or spm_file is not None
    if source.config is not None and files_given:
        raise InputError(f"{source.path} has a vocabulary of its own: leave out --dict and --spm.")
    if source.vocabulary is not None and not files_given:
        return Vocabulary.load(source.vocabulary)
    dict_file, spm_file = dict_file or source.dict_file, spm_file or source.spm_file
    if spm_file is not None:
        return Vocabulary.from_spm(spm_file, dict_file, num_sentinels=0)
    if dict_file is not None:
        return Vocabulary.from_dict(dict_file, num_sentinels=0)
    raise InputError(f"There is no vocabulary beside {source.path}: give its dict.txt (--dict) or spm model (--spm).")


def source_tokens(source: SourceCheckpoint, vocabulary: Vocabulary) -> list[str | None]:
    """The name of each row of a source's token table, None for rows behind its dictionary that nothing names.

    XLM-R's last token, `<mask>`, is in no dictionary; behind it there can only be padding. A released DeltaLM has rows
    of which nobody says what they are.

    Raises:
        InputError: the table has not the rows that the vocabulary needs: it is not the checkpoint's.
    """
    tokens: list[str | None] = [vocabulary.token(row) for row in range(vocabulary.num_tokens)]
    if source.config is not None:
        return tokens
    num_rows = source.sizes.num_rows
    if source.last_token is not None and num_rows > len(tokens) and source.last_token not in tokens:
        tokens.append(source.last_token)
    if num_rows < len(tokens) or (source.last_token is not None and not _is_padded(source, len(tokens))):
        raise InputError(
            f"{source.path} has {num_rows:,} embedding rows, its dictionary {len(tokens):,} tokens: "
            "wrong dict.txt or SentencePiece model?"
        )
    return tokens + [None] * (num_rows - len(tokens))


def _is_padded(source: SourceCheckpoint, num_tokens: int) -> bool:
    """Whether all rows behind those of the tokens can be padding: zeros, or as many as make a round number of rows.

    Tables without padding seldom have a round number of rows (XLM-R's 250,002 is none): a dictionary that is too short
    is still found.
    """
    num_rows = source.sizes.num_rows
    if any(num_rows == -(-num_tokens // multiple) * multiple for multiple in PADDED_TO):
        return True
    (table,) = source.origins[TABLE].parts
    return not source.tensors[table][num_tokens:].any()


def initialise(
    source: SourceCheckpoint,
    out: Path,
    layer_map: LayerMap,
    own: Vocabulary,
    vocabulary: Vocabulary | None = None,
    copies: Mapping[str, str] | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Write a model directory from a source; returns the whole report, for people (see `summary`) and scripts.

    Args:
        source: where the weights come from.
        out: a new directory.
        layer_map: which of the source's layers each layer starts from.
        own: the source's vocabulary, which names its rows. vocabulary: the new model's, `own` if None.
        copies: new token -> the source's token whose row it starts from.
        options: as `make_initialisation`.

    Raises:
        InputError, DataError: as `map_rows`, `make_initialisation` and `save_model`; nothing is left behind.
    """
    vocabulary = vocabulary or own
    rows = map_rows(source_tokens(source, own), vocabulary, copies or {})
    initialisation = make_initialisation(source, layer_map, rows, vocabulary.num_tokens, **options)
    report = report_origins(initialisation, vocabulary)
    save_model(
        out, initialisation.config, initialisation.weights, vocabulary, provenance("deltalm init", **summary(report))
    )
    return {"directory": str(out)} | report


def report_origins(initialisation: Initialisation, vocabulary: Vocabulary) -> dict[str, Any]:
    """Everything about an initialisation: each tensor's origin, rows kept by number, tokens new or dropped."""
    source, rows = initialisation.source, initialisation.rows
    source_rows = {
        name: source.num_rows(initialisation.layer_map.origin(name).name)
        for name in initialisation.names
        if name.endswith(".positions")
    }
    return {
        "source": str(source.path),
        "kind": source.kind,
        "model": initialisation.config.model_dump(),
        "parameters": empty_model(initialisation.config).num_parameters(),
        "encoder_layers": list(initialisation.layer_map.encoder),
        "layer_map": [list(item) if isinstance(item, tuple) else item for item in initialisation.layer_map.decoder],
        "ffn_order": initialisation.layer_map.ffn_order,
        "decoder": initialisation.layer_map.form,
        "cross_attention": initialisation.layer_map.cross_attention,
        "tensors": initialisation.origins,
        "unused": initialisation.unused,
        "positions": {
            "source": source_rows,
            "model": initialisation.config.max_positions,
            "fit": initialisation.fit,
        },
        "rows": {
            "source": source.sizes.num_rows,
            "kept": len(rows.kept),
            "copied": [vocabulary.token(row) for row in rows.copied],
            "new": list(rows.new.values()),
            "dropped": list(rows.dropped),
            "unnamed_dropped": rows.num_unnamed,
        },
        "seed": initialisation.seed,
    }


def summary(report: Mapping[str, Any]) -> dict[str, Any]:
    """A report with the tensors of all layers in one line, and of new and dropped tokens the number and first names."""
    rows = dict(report["rows"])
    for name in ("new", "dropped", "copied"):
        rows[name], rows[f"first_{name}"] = len(rows[name]), rows[name][:NUM_NAMES]
    left_out = ("model", "tensors", "unused", "rows")
    return {name: value for name, value in report.items() if name not in left_out} | {
        "rows": rows,
        "tensors": grouped(report["tensors"]),
        "unused": grouped(report["unused"]),
    }
