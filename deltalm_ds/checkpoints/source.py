"""What a checkpoint that DeltaLM can start from consists of, and what a kind of such checkpoints must offer."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from deltalm_ds.checkpoints.sizes import Sizes
from deltalm_ds.checkpoints.tensor_files import TensorFile
from deltalm_ds.model.config import DeltaLMConfig

TABLE = "token_embedding.weight"


@dataclass(frozen=True)
class Origin:
    """How a tensor of ours is made from a source's: parts laid one below the other, rows `[first_row:]` of that.

    added: a tensor whose row 0 is added to every row.
    """

    parts: tuple[str, ...]
    first_row: int = 0
    added: str | None = None

    @property
    def tensors(self) -> tuple[str, ...]:
        """The names of all tensors that it takes."""
        return self.parts if self.added is None else (*self.parts, self.added)

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
    columns = zip(*texts, strict=False)
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))


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
        vocabulary: the directory of a vocabulary of ours that stands beside the source; it goes before these files.
        last_token: the token behind those of the dictionary; rows behind it can only be padding. None where nobody
            documents what stands there.
        config: of a model directory of ours; None of a foreign checkpoint.
    """

    kind: str
    path: Path
    tensors: TensorFile
    sizes: Sizes
    origins: Mapping[str, Origin]
    unused: tuple[str, ...] = ()
    copies: tuple[str, ...] = ()
    differing_copies: tuple[str, ...] = ()
    dict_file: Path | None = None
    spm_file: Path | None = None
    vocabulary: Path | None = None
    last_token: str | None = None
    config: DeltaLMConfig | None = None

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


class SourceKind(Protocol):
    """A kind of checkpoint that DeltaLM can start from: a row of `sources.SOURCES`."""

    @property
    def kind(self) -> str:
        """Its name for scripts, as `deltalm init --json` gives it."""

    @property
    def title(self) -> str:
        """Its name for people."""

    def recognises(self, tensors: TensorFile, /) -> bool:
        """Whether tensors of these names, at this place in a file, are of this kind; no other kind has them too."""

    def read(self, path: Path, tensors: TensorFile, /) -> SourceCheckpoint:
        """The checkpoint, checked whole: every tensor that its structure needs is there with the right shape.

        Args:
            path: the file or directory that was named; it is for messages and for what stands beside the tensors.

        Raises:
            InputError, DataError: it is damaged, incomplete or misshapen.
        """
