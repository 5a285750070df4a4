"""Files of named tensors in every form that checkpoints come in, read one tensor at a time and without running code.

safetensors files and PyTorch's zip files stay on disk (memory-mapped) until a tensor is asked for; PyTorch files from
before 1.6 are read whole. The form is told from a file's content, never from its name.
"""

import argparse
import re
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from deltalm_ds.errors import DataError, InputError
from deltalm_ds.files import read_json

# The tensors of a directory are in one of these, the first that is there; an index names files beside it.
_USUAL_FILES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
    "model.pt",
)
_PARTS = "model-*.safetensors"  # of a checkpoint that each rank wrote its part of, without an index
_SUFFIXES = (".pt", ".bin", ".safetensors")
# where Microsoft's released files, fairseq's trainer and Lightning keep the tensors
SECTIONS = ("weights", "model", "state_dict")
FLOATING_DTYPES = frozenset({"float64", "float32", "float16", "bfloat16"})
_SAFETENSORS_DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class StoredTensor:
    """What is known of a tensor without reading it, and how to read it. dtype: `float32`, `bfloat16`, …"""

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[], Tensor]


class TensorFile(Mapping[str, Tensor]):
    """The tensors of one file, of the shards of an index or of several files; each is read when it is asked for.

    Attributes:
        path: the file, or the index or directory that names the files.
        section: the key of a PyTorch file under which the tensors stand (`weights`, `model`), or "".
        content: what else a PyTorch file holds, such as fairseq's `cfg`.
    """

    def __init__(
        self,
        path: Path,
        stored: Mapping[str, StoredTensor],
        section: str = "",
        content: Mapping[str, Any] | None = None,
    ) -> None:
        self.path, self.section, self.content = path, section, content or {}
        self._stored = stored

    def __getitem__(self, name: str) -> Tensor:
        return self._stored[name].read()

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, without reading it."""
        return self._stored[name].shape

    def dtype(self, name: str) -> str:
        """The dtype of a tensor (`float32`, …), without reading it."""
        return self._stored[name].dtype

    def part(self, prefix: str, path: Path) -> "TensorFile":
        """The tensors whose names begin with `prefix`, by the rest of their names; path: theirs for messages."""
        return TensorFile(
            path, {name.removeprefix(prefix): x for name, x in self._stored.items() if name.startswith(prefix)}
        )

    @classmethod
    def joined(cls, path: Path, files: Iterable[Path]) -> "TensorFile":
        """The tensors of several files as one.

        Raises:
            InputError, DataError: as `open_tensors`. DataError: two of the files hold the same tensor.
        """
        stored: dict[str, StoredTensor] = {}
        for file in files:
            shard = open_tensors(file)
            if twice := stored.keys() & shard.keys():
                raise DataError(f"{path} has the tensor {min(twice)} in two of its files.")
            stored.update(shard._stored)
        return cls(path, stored)


def open_tensors(path: str | Path) -> TensorFile:
    """Open a safetensors file, a PyTorch file of tensors, or the index (`*.index.json`) of a sharded one.

    Of a PyTorch file only tensors, plain Python values and `argparse.Namespace` are loaded [facts: checkpoint files].

    Raises:
        InputError: there is no such file.
        DataError: it is empty, truncated or damaged, in none of the three forms, or needs another class.
    """
    path = Path(path)
    try:
        with open(path, "rb") as file:
            head = file.read(9)
    except OSError as error:
        reason = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
        raise InputError(f"{path} {reason}.") from None
    if not head:
        raise DataError(f"{path} is empty.")
    if head[8:] == b"{":  # behind the 8 bytes that give the length of a safetensors header
        return _open_safetensors(path)
    if head.startswith(b"{"):
        return _open_index(path)
    if head.startswith((b"PK", b"\x80")):  # a zip archive; a pickle
        return _open_torch(path)
    raise DataError(f"{path} is not a file of tensors: neither safetensors nor PyTorch's, nor an index of such files.")


def open_directory(directory: Path) -> TensorFile:
    """The tensors of a directory: of the file with one of the usual names, or of the only one that could hold any.

    Raises:
        InputError, DataError: as `open_tensors`. InputError: there is no such file, or several.
    """
    found = [directory / name for name in _USUAL_FILES if (directory / name).is_file()]
    if found:
        return open_tensors(found[0])
    parts = sorted(directory.glob(_PARTS))
    if parts:
        return TensorFile.joined(directory, parts)
    found = [file for file in sorted(directory.iterdir()) if file.suffix in _SUFFIXES]
    if len(found) != 1:
        amount = f"{len(found)} files" if found else "no file"
        raise InputError(f"{directory} has {amount} that could be the model: name the file itself.")
    return open_tensors(found[0])


def _open_safetensors(path: Path) -> TensorFile:
    try:
        file = safe_open(path, framework="pt")
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 (it is no mapping)
    except (SafetensorError, OSError) as error:
        raise _unreadable(path, error) from None

    def read(name: str) -> Tensor:
        try:
            return file.get_tensor(name)
        except (SafetensorError, TypeError, AttributeError) as error:  # a type that torch has not, say
            raise _unreadable(path, error) from None

    stored = {
        name: StoredTensor(tuple(part.get_shape()), _dtype_name(part.get_dtype()), partial(read, name))
        for name, part in slices.items()
    }
    return TensorFile(path, stored)


def _unreadable(path: Path, error: Exception) -> DataError:
    return DataError(f"{path} cannot be read as safetensors: {error}.")


def _dtype_name(dtype: str) -> str:
    """safetensors' name of a dtype as torch writes it, for those that hold weights."""
    return _SAFETENSORS_DTYPES.get(dtype, dtype.lower())


def _open_index(path: Path) -> TensorFile:
    content = read_json(path)
    weight_map = content.get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise DataError(f"{path} is no index of a sharded model: it has no 'weight_map' of tensor and file names.")
    shards = sorted(set(weight_map.values()))
    for shard in shards:
        if Path(shard).name != shard or not (path.parent / shard).is_file():
            raise DataError(f"{path} names the file {shard!r}, which is not beside it.")
    tensors = TensorFile.joined(path, [path.parent / shard for shard in shards])
    if differing := weight_map.keys() ^ tensors.keys():
        name = min(differing)
        fault = "in none of its files" if name in weight_map else "not named in it"
        raise DataError(f"{path} does not agree with its files: the tensor {name} is {fault}.")
    return tensors


def _open_torch(path: Path) -> TensorFile:
    content = _load_torch(path)
    if not isinstance(content, Mapping):
        raise DataError(f"{path} holds a {type(content).__name__}, not tensors by name.")
    section = next((key for key in SECTIONS if isinstance(content.get(key), Mapping)), "")
    tensors, rest = content, {}
    if section:
        tensors, rest = content[section], {key: value for key, value in content.items() if key != section}
    return TensorFile(path, {name: _stored(path, name, value) for name, value in tensors.items()}, section, rest)


def _load_torch(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            # files of torch before 1.6 are no zip archives and cannot be mapped
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # reading a damaged pickle raises almost anything
        text = str(error) or type(error).__name__
        if foreign := re.search(r"GLOBAL ([\w.]+)", text):
            reason = (
                f"it needs the class or function {foreign[1]}, which is not loaded because it could run code; if you "
                "trust it, load it with weights_only=False and save its tensors alone"
            )
        else:
            reason = f"it is truncated or damaged ({text.splitlines()[0].rstrip('.')})"
        raise DataError(f"{path} cannot be read as a PyTorch file of tensors: {reason}.") from None


def _stored(path: Path, name: Any, value: Any) -> StoredTensor:
    if not isinstance(name, str) or not isinstance(value, Tensor):
        raise DataError(f"{path} holds a {type(value).__name__} under {name!r} where a named tensor must be.")
    if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
        raise DataError(f"{path} holds the tensor {name} in a form that cannot be read: give it as a plain tensor.")
    return StoredTensor(tuple(value.shape), str(value.dtype).removeprefix("torch."), value.detach)
