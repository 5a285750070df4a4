"""What a checkpoint is, told from its content: its kind, its sizes, and which of its tensors make each of ours.

A source is checked whole when it is recognised: every tensor that its structure needs is there with the right shape,
and every other tensor is on the list of those without use. V_s rows of the token table, M model dim, P positions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path

import torch
from torch import Tensor

from deltalm_ds.checkpoints import names
from deltalm_ds.checkpoints.directory import open_weights, parameter_shapes, read_config
from deltalm_ds.checkpoints.names import Kind, NamingScheme, fairseq_names, format_of
from deltalm_ds.checkpoints.sizes import Sizes, own_name, read_settings, read_sizes, table_name
from deltalm_ds.checkpoints.tensor_files import FLOATING_DTYPES, TensorFile, open_tensors
from deltalm_ds.errors import DataError, InputError
from deltalm_ds.files import read_json
from deltalm_ds.model.config import DeltaLMConfig
from deltalm_ds.runs.checkpoints import model_directory

TABLE = "token_embedding.weight"
_WEIGHT_FILES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
    "model.pt",
)
_SPM_FILES = ("sentencepiece.bpe.model", "spm.model")


@dataclass(frozen=True)
class Origin:
    """How a tensor of ours is made from a source's: parts laid one below the other, rows `[first_row:]` of that.

    added: a tensor whose row 0 is added to every row.
    """

    parts: tuple[str, ...]
    first_row: int = 0
    added: str | None = None

    def __str__(self) -> str:
        text = self.parts[0]
        if len(self.parts) > 1:  # a.q_proj, a.k_proj -> a.{q,k}_proj
            start = _common_length(self.parts)
            end = _common_length([part[start:][::-1] for part in self.parts])
            middles = ",".join(part[start : len(part) - end] for part in self.parts)
            text = f"{text[:start]}{{{middles}}}{text[len(text) - end :]}"
        text += f"[{self.first_row}:]" if self.first_row else ""
        return f"{text} + {self.added}[0]" if self.added else text


def _common_length(texts: Sequence[str]) -> int:
    """How many characters all texts begin with."""
    return sum(1 for _ in takewhile(lambda letters: len(set(letters)) == 1, zip(*texts, strict=False)))


@dataclass(frozen=True)
class SourceCheckpoint:
    """A checkpoint that DeltaLM can start from.

    Attributes:
        kind, path, sizes, tensors: what it is, where, how large, and its tensors by its own names.
        origins: for each parameter of a DeltaLM of the source's own structure (of its encoder, if there is no decoder)
            the tensors that make it.
        unused: tensors that DeltaLM has no use for, by the list of their kind.
        copies: further copies of the token table; `differing_copies`: those that are not equal to the one taken.
        dict_file, spm_file: the vocabulary's files beside the source, where there are any.
    """

    kind: Kind
    path: Path
    tensors: TensorFile
    sizes: Sizes
    origins: Mapping[str, Origin]
    unused: tuple[str, ...] = ()
    copies: tuple[str, ...] = ()
    differing_copies: tuple[str, ...] = ()
    dict_file: Path | None = None
    spm_file: Path | None = None

    def read(self, name: str) -> Tensor:
        """One of our parameters in float32, made from the source's tensors; token and position tables as they are."""
        origin = self.origins[name]
        parts = [self.tensors[part].float() for part in origin.parts]
        tensor = (parts[0] if len(parts) == 1 else torch.cat(parts))[origin.first_row :]
        return tensor if origin.added is None else tensor + self.tensors[origin.added][0].float()

    def num_rows(self, name: str) -> int:
        """How many rows `read` gives, without reading."""
        origin = self.origins[name]
        return sum(self.tensors.shape(part)[0] for part in origin.parts) - origin.first_row


def recognise(path: str | Path) -> SourceCheckpoint:
    """Tell what a file or directory is, from its content, and check that it is complete.

    Knows Hugging Face directories and weight files of XLM-R, InfoXLM and DeltaLM, fairseq's XLM-R and InfoXLM files,
    Microsoft's released and fine-tuned DeltaLM files, and our own model directories and runs [FACTS §1].

    Raises:
        InputError: there is nothing, or more than one thing, to take.
        DataError: damaged, incomplete or misshapen files, or none of these kinds.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path} does not exist.")
    if path.is_dir() and _is_ours(path := model_directory(path)):
        return _our_directory(path)
    file = _weight_file(path) if path.is_dir() else path
    tensors = open_tensors(file)
    form = format_of(tensors, tensors.section)
    if form is None:
        first = ", ".join(list(tensors)[:3]) or "nothing"
        raise DataError(f"{path} is neither an XLM-R nor a DeltaLM checkpoint: it holds {first} …")
    if form.kind == "deltalm":
        return _our_directory(file.parent)
    return _foreign(path, tensors, form, file.parent)


def _is_ours(directory: Path) -> bool:
    config = directory / "config.json"
    content = read_json(config) if config.is_file() else None
    return isinstance(content, dict) and "model" in content


def _our_directory(directory: Path) -> SourceCheckpoint:
    config = read_config(directory)
    tensors = open_weights(directory)
    sizes = {name: value for name, value in config.model_dump().items() if name in Sizes.__annotations__}
    origins = {name: Origin((name,)) for name in parameter_shapes(config)}
    source = SourceCheckpoint(
        "deltalm", directory, tensors, Sizes(num_rows=config.num_embedding_rows, **sizes), origins
    )
    if missing := sorted(origins.keys() - tensors.keys()):
        raise DataError(f"{directory} has no tensor {missing[0]}: it is not a complete model.")
    if unknown := sorted(tensors.keys() - origins.keys()):
        raise DataError(f"{directory} holds tensors that DeltaLM has no place for: {', '.join(unknown[:5])}.")
    _check_shapes(source)
    return source


def _weight_file(directory: Path) -> Path:
    """The file of a foreign directory: one of the usual names, or the only file that could hold tensors."""
    found = [directory / name for name in _WEIGHT_FILES if (directory / name).is_file()]
    if not found:
        found = [file for file in sorted(directory.iterdir()) if file.suffix in (".pt", ".bin", ".safetensors")]
        if len(found) != 1:
            amount = f"{len(found)} files" if found else "no file"
            raise InputError(f"{directory} has {amount} that could be the model: name the file itself.")
    return found[0]


def _foreign(path: Path, tensors: TensorFile, form: NamingScheme, directory: Path) -> SourceCheckpoint:
    name_of = _fairseq_names(path, tensors, form)
    sizes = read_sizes(path, tensors, name_of, form, read_settings(tensors, directory))
    origins = _origins(path, name_of, sizes)
    used = {part for origin in origins.values() for part in (*origin.parts, origin.added)}
    copies = tuple(name_of[table] for table in names.TABLES if table in name_of and name_of[table] not in used)
    unused = tuple(name for fairseq, name in name_of.items() if form.is_unused(fairseq))
    if unknown := sorted(tensors.keys() - used - {*copies, *unused}):
        raise DataError(f"{path} holds tensors that DeltaLM has no place for: {', '.join(unknown[:5])}.")
    source = SourceCheckpoint(form.kind, path, tensors, sizes, origins, unused, copies)
    _check_shapes(source)
    return replace(
        source,
        differing_copies=_differing_copies(source, name_of),
        dict_file=next((file for file in [directory / "dict.txt"] if file.is_file()), None),
        spm_file=next((file for name in _SPM_FILES if (file := directory / name).is_file()), None),
    )


def _fairseq_names(path: Path, tensors: TensorFile, form: NamingScheme) -> dict[str, str]:
    """The file's own name of each tensor by fairseq's name."""
    name_of: dict[str, str] = {}
    for name in tensors:
        fairseq = form.fairseq_name(name)
        if fairseq in name_of:
            raise DataError(f"{path} holds the same tensor twice: {name_of[fairseq]} and {name}.")
        name_of[fairseq] = name
    return name_of


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


def _check_shapes(source: SourceCheckpoint) -> None:
    """Every tensor that is used has numbers of the right kind and shape; token and position rows may be any number."""
    shapes = parameter_shapes(_shape_config(source.sizes))
    for ours, origin in source.origins.items():
        for part in origin.parts:
            found, wanted = source.tensors.shape(part), shapes[ours]
            wanted = (wanted[0] // len(origin.parts), *wanted[1:])
            if source.kind != "deltalm" and ours.endswith((TABLE, ".positions")) and found[0:1] > (origin.first_row,):
                wanted = found[:1] + wanted[1:]
            _check_tensor(source, part, wanted)
        if origin.added is not None:
            _check_tensor(source, origin.added, (1, source.sizes.hidden_size))


def _check_tensor(source: SourceCheckpoint, name: str, wanted: tuple[int, ...]) -> None:
    found, dtype = source.tensors.shape(name), source.tensors.dtype(name)
    if found != wanted:
        raise DataError(f"{name} in {source.path} has shape {found}, its model needs {wanted}.")
    if dtype not in FLOATING_DTYPES:
        raise DataError(f"{name} in {source.path} holds {dtype}, not floating-point numbers.")


def _differing_copies(source: SourceCheckpoint, name_of: Mapping[str, str]) -> tuple[str, ...]:
    """Copies of the token table that are not equal to it; of an output layer of its own no model could be made."""
    (table,) = source.origins[TABLE].parts
    differing = tuple(copy for copy in source.copies if not _equal(source.tensors[copy], source.tensors[table]))
    output = name_of.get(names.OUTPUT_PROJECTION)
    bias = name_of.get(names.OUTPUT_BIAS)
    if output in differing or (bias is not None and source.tensors[bias].any()):
        what = output if output in differing else bias
        raise DataError(f"{source.path} has an output layer of its own ({what}); DeltaLM's is the token table.")
    return differing


def _equal(left: Tensor, right: Tensor) -> bool:
    return left.shape == right.shape and torch.equal(left.float(), right.float())
