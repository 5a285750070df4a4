"""Writing a safetensors file one tensor after the other.

The container is 8 bytes with the length of a JSON header (little-endian), the header, and the raw bytes of the tensors
[https://github.com/huggingface/safetensors#format]. The library's own `save_file` wants all tensors in memory at once,
makes files that nobody but their owner may read, and has an error of its own for a full disk; this has none of that.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from deltalm_ds.errors import DataError

_DTYPE_NAMES = {torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}
_ALIGNMENT = 8


def write_safetensors(
    path: Path,
    shapes: Mapping[str, Sequence[int]],
    read: Callable[[str], Tensor],
    dtype: torch.dtype = torch.float32,
) -> None:
    """Write a file of tensors in the order of `shapes`, asking `read` for each when it is its turn.

    Only one tensor is in memory at a time, if `read` makes them on demand. The file is not flushed to the disk.

    Args:
        path: of the new file.
        shapes: of every tensor by its name, in the order in which they are written.
        read: makes the tensor of a name, on any device and in any dtype.
        dtype: that all tensors are written in.

    Raises:
        DataError: a tensor has not the shape that was announced. OSError: the disk is full, say.
    """
    with open(path, "wb") as file:
        for block in safetensors_blocks(shapes, read, dtype):
            file.write(block)


def safetensors_blocks(
    shapes: Mapping[str, Sequence[int]], read: Callable[[str], Tensor], dtype: torch.dtype = torch.float32
) -> Iterator[bytes | memoryview]:
    """The bytes of the file that `write_safetensors` writes, a tensor at a time, for whoever does more with them.

    Raises:
        DataError: a tensor has not the shape that was announced.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + prod(shape) * dtype.itemsize
        header[name] = {"dtype": _DTYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [start, end]}
    encoded = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % _ALIGNMENT)
    yield len(encoded).to_bytes(8, "little") + encoded
    for name, shape in shapes.items():
        tensor = read(name).detach()
        if tuple(tensor.shape) != tuple(shape):
            raise DataError(f"{name} has shape {tuple(tensor.shape)}, the model needs {tuple(shape)}.")
        yield tensor.to("cpu", dtype).contiguous().flatten().view(torch.uint8).numpy().data
