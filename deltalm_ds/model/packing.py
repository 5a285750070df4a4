"""Packed sequences: a batch as the concatenation of its sequences, without padding."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from deltalm_ds.token_ids import EOS_ID


class Places(NamedTuple):
    """Where tokens are: [T] int64 each, the number of a token's sequence and its place there, both from 0."""

    sequence_of_token: Tensor
    positions: Tensor


@dataclass(frozen=True)
class PackedSequences:
    """Token ids of B sequences laid end to end.

    tokens: [T] int64. cu_seqlens: [B + 1] int32, cumulative lengths from 0. max_seqlen: the longest length, or more.
    known_places: where who packed the tokens has found their places already.
    """

    tokens: Tensor
    cu_seqlens: Tensor
    max_seqlen: int
    known_places: Places | None = None

    @classmethod
    def from_lengths(cls, tokens: Tensor, lengths: Sequence[int] | Tensor) -> "PackedSequences":
        """Pack `tokens` [T], whose sequences have the given lengths [B]."""
        lengths = torch.as_tensor(lengths, dtype=torch.int32)
        cu_seqlens = torch.zeros(len(lengths) + 1, dtype=torch.int32)
        torch.cumsum(lengths, 0, out=cu_seqlens[1:])
        assert int(cu_seqlens[-1]) == len(tokens), "the lengths do not add up to the number of tokens"
        return cls(tokens, cu_seqlens, int(lengths.max()) if len(lengths) else 0)

    @classmethod
    def from_sequences(cls, sequences: Sequence[Sequence[int]]) -> "PackedSequences":
        """Pack lists of ids."""
        tokens = torch.tensor([token for sequence in sequences for token in sequence], dtype=torch.int64)
        return cls.from_lengths(tokens, [len(sequence) for sequence in sequences])

    @property
    def num_sequences(self) -> int:
        """B."""
        return len(self.cu_seqlens) - 1

    @property
    def lengths(self) -> Tensor:
        """[B] int32."""
        return self.cu_seqlens.diff()

    @property
    def sequence_of_token(self) -> Tensor:
        """[T] int64: the number of the sequence that each token belongs to."""
        if self.known_places is not None:
            return self.known_places.sequence_of_token
        numbers = torch.arange(self.num_sequences, device=self.tokens.device)
        return torch.repeat_interleave(numbers, self.lengths, output_size=len(self.tokens))

    @property
    def positions(self) -> Tensor:
        """[T] int64: each token's place in its sequence, from 0."""
        if self.known_places is not None:
            return self.known_places.positions
        starts = self.cu_seqlens[:-1].long()
        return torch.arange(len(self.tokens), device=self.tokens.device) - starts[self.sequence_of_token]

    def to(self, device: torch.device | str) -> "PackedSequences":
        """The same on another device."""
        places = self.known_places and Places(*(x.to(device, non_blocking=True) for x in self.known_places))
        tokens, cu_seqlens = (x.to(device, non_blocking=True) for x in (self.tokens, self.cu_seqlens))
        return replace(self, tokens=tokens, cu_seqlens=cu_seqlens, known_places=places)


def pack_with_eos(sequences: Sequence[Sequence[int]]) -> PackedSequences:
    """Pack lists of ids with `</s>` after each."""
    return PackedSequences.from_sequences([[*sequence, EOS_ID] for sequence in sequences])
