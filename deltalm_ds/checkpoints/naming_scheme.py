"""A kind of foreign checkpoint: how it is recognised, what its tensors are called, what it states of itself.

A checkpoint is checked whole when it is read: every tensor that its structure needs is there with the right shape,
and every other tensor is on the list of those without use. M model dim.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deltalm_ds.checkpoints import names
from deltalm_ds.checkpoints.directory import parameter_shapes
from deltalm_ds.checkpoints.names import fairseq_names
from deltalm_ds.checkpoints.sizes import Sizes, StatedSize, own_name, read_settings, read_sizes, table_name
from deltalm_ds.checkpoints.source import TABLE, Origin, SourceCheckpoint
from deltalm_ds.checkpoints.tensor_files import FLOATING_DTYPES, TensorFile
from deltalm_ds.errors import DataError
from deltalm_ds.model.config import DeltaLMConfig

_SPM_FILES = ("sentencepiece.bpe.model", "spm.model")


@dataclass(frozen=True)
class NamingScheme:
    """A kind of foreign checkpoint, a `SourceKind`.

    Attributes:
        kind, title: its name for scripts and for people.
        recognises: tells tensors of this kind by their names and their place in the file.
        has_decoder: whether it is an encoder-decoder.
        renames: patterns and replacements that make fairseq's names of a DeltaLM (of its encoder, for an encoder),
            applied in turn.
        unused: patterns of fairseq names that DeltaLM has no use for.
        sizes: settings (of config.json or fairseq's arguments) and which of our sizes each one states.
        required: settings that change the computation, with the only value DeltaLM has.
        last_token: see `SourceCheckpoint`.
    """

    kind: str
    title: str
    recognises: Callable[[TensorFile], bool]
    has_decoder: bool
    renames: tuple[tuple[str, str], ...] = ()
    unused: tuple[str, ...] = ()
    sizes: Mapping[str, str] = field(default_factory=dict)
    required: Mapping[str, Any] = field(default_factory=dict)
    last_token: str | None = None

    def fairseq_name(self, name: str) -> str:
        """The fairseq name of a tensor."""
        for pattern, replacement in self.renames:
            name = re.sub(pattern, replacement, name)
        return name

    def is_unused(self, fairseq_name: str) -> bool:
        """Whether the tensor is on the list of those that DeltaLM has no use for."""
        return any(re.match(pattern, fairseq_name) for pattern in self.unused)

    def stated_sizes(self, path: Path, settings: Mapping[str, Any]) -> list[StatedSize]:
        """Every size that is stated.

        Raises:
            DataError: the settings are those of another computation, or a size is no positive whole number.
        """
        for name, wanted in self.required.items():
            found = settings.get(name, wanted)
            if type(found) is not type(wanted) or found != wanted:  # 0 is equal to False
                raise DataError(f"{path} has {name}={found!r}, DeltaLM only {wanted!r}: it cannot be converted.")
        stated = [
            StatedSize(setting, size, settings[setting]) for setting, size in self.sizes.items() if setting in settings
        ]
        for setting, _, value in stated:
            if type(value) is not int or value < 1:
                raise DataError(f"{path} states {setting}={value!r} where a positive whole number must be.")
        return stated

    def read(self, path: Path, tensors: TensorFile) -> SourceCheckpoint:
        """See `SourceKind`."""
        directory = path if path.is_dir() else path.parent
        name_of = self._fairseq_names(path, tensors)
        settings = read_settings(tensors, directory)
        sizes = read_sizes(path, tensors, name_of, self.has_decoder, settings, self.stated_sizes(path, settings))
        origins = _origins(path, name_of, sizes)
        used = {part for origin in origins.values() for part in origin.tensors}
        copies = tuple(name_of[table] for table in names.TABLES if table in name_of and name_of[table] not in used)
        unused = tuple(name for fairseq, name in name_of.items() if self.is_unused(fairseq))
        if unknown := sorted(tensors.keys() - used - {*copies, *unused}):
            raise DataError(f"{path} holds tensors that DeltaLM has no place for: {', '.join(unknown[:5])}.")
        _check_shapes(path, tensors, origins, sizes)
        return SourceCheckpoint(
            self.kind,
            path,
            tensors,
            sizes,
            origins,
            unused,
            copies,
            differing_copies=_differing_copies(path, tensors, origins[TABLE].parts[0], copies, name_of),
            dict_file=_first_file([directory / "dict.txt"]),
            spm_file=_first_file(directory / name for name in _SPM_FILES),
            vocabulary=directory if (directory / "vocabulary.json").is_file() else None,
            last_token=self.last_token,
        )

    def _fairseq_names(self, path: Path, tensors: TensorFile) -> dict[str, str]:
        """The file's own name of each tensor by fairseq's name."""
        name_of: dict[str, str] = {}
        for name in tensors:
            fairseq = self.fairseq_name(name)
            if fairseq in name_of:
                raise DataError(f"{path} holds the same tensor twice: {name_of[fairseq]} and {name}.")
            name_of[fairseq] = name
        return name_of


def has_name(tensors: TensorFile, pattern: str) -> bool:
    """Whether a tensor has a name in which the pattern is found."""
    return any(re.search(pattern, name) for name in tensors)


def _first_file(paths: Iterable[Path]) -> Path | None:
    return next((path for path in paths if path.is_file()), None)


def _origins(path: Path, name_of: Mapping[str, str], sizes: Sizes) -> dict[str, Origin]:
    origins = {}
    for ours, wanted in fairseq_names(_shape_config(sizes)).items():
        if sizes.decoder is None and ours.startswith("decoder."):
            continue
        fused = wanted[0].replace(".q_proj.", ".in_proj_")  # query, key and value in one, as before fairseq 0.8
        parts = [fused] if fused in name_of and len(wanted) == 3 else wanted
        if ours == TABLE:
            parts = [table_name(path, name_of)]
        is_positions = ours.endswith(".positions")
        origins[ours] = Origin(
            tuple(own_name(path, name_of, part) for part in parts),
            first_row=names.POSITION_OFFSET if is_positions else 0,
            added=name_of.get(names.TOKEN_TYPES) if is_positions else None,
        )
    return origins


def _shape_config(sizes: Sizes) -> DeltaLMConfig:
    """For names and shapes, which do not depend on the number of heads; with a decoder, for there is always one."""
    return sizes.config(num_heads=1, num_decoder_blocks=max(1, sizes.num_decoder_blocks))


def _check_shapes(path: Path, tensors: TensorFile, origins: Mapping[str, Origin], sizes: Sizes) -> None:
    """Every tensor that is used has numbers of the right kind and shape; token and position rows may be any number."""
    shapes = parameter_shapes(_shape_config(sizes))
    for ours, origin in origins.items():
        for part in origin.parts:
            num_rows, *others = shapes[ours]
            wanted = (num_rows // len(origin.parts), *others)
            if ours == TABLE or ours.endswith(".positions"):
                found = tensors.shape(part)
                if found and found[0] > origin.first_row:
                    wanted = (found[0], *others)
            _check_tensor(path, tensors, part, wanted)
        if origin.added is not None:
            _check_tensor(path, tensors, origin.added, (1, sizes.hidden_size))


def _check_tensor(path: Path, tensors: TensorFile, name: str, wanted: tuple[int, ...]) -> None:
    found, dtype = tensors.shape(name), tensors.dtype(name)
    if found != wanted:
        raise DataError(f"{name} in {path} has shape {found}, its model needs {wanted}.")
    if dtype not in FLOATING_DTYPES:
        raise DataError(f"{name} in {path} holds {dtype}, not floating-point numbers.")


def _differing_copies(
    path: Path, tensors: TensorFile, table: str, copies: Iterable[str], name_of: Mapping[str, str]
) -> tuple[str, ...]:
    """Copies of the token table that are not equal to it; of an output layer of its own no model could be made.

    Args:
        table: the file's name of the table that is taken. copies: those of its copies.
        name_of: the file's own name of each tensor by fairseq's name.
    """
    differing = tuple(copy for copy in copies if not _equal(tensors[copy], tensors[table]))
    output = name_of.get(names.OUTPUT_PROJECTION)
    bias = name_of.get(names.OUTPUT_BIAS)
    if output in differing or (bias is not None and tensors[bias].any()):
        what = output if output in differing else bias
        raise DataError(f"{path} has an output layer of its own ({what}); DeltaLM's is the token table.")
    return differing


def _equal(left: Tensor, right: Tensor) -> bool:
    return left.shape == right.shape and torch.equal(left.float(), right.float())
