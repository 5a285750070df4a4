"""What a decoder remembers between the steps of a search.

Legend: B sentences, N = B · beam rows (the beams of a sentence side by side), H heads, S source, D head dim, M = H · D
model dim, C positions that there is room for, L ≤ C positions that a step attends to.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from deltalm_ds.kernels.attention import decode_attention
from deltalm_ds.model.packing import PackedSequences

FIRST_ROOM = 32  # positions; doubled when they are full
WIDTH = 16  # keys come in multiples of this: on a GPU a mask of another width is padded anew in every step; on a CPU
# sums are made by vectors, and are the same to the last bit behind any number of whole vectors of zeros


class AttentionCache(Protocol):
    """What an attention sub-layer attends to in a step."""

    def attend(self, projected: Tensor) -> Tensor:
        """[N, M], what each row attends to; projected: [N, …, H, D], what the cache's kind of attention needs of x."""
        ...


@dataclass
class CrossAttentionCache:
    """Keys and values of the source, one copy a sentence for all its beams.

    keys, values: [B, H, S, D]; key_mask: [B, 1, 1, S] bool, True at tokens.
    """

    keys: Tensor
    values: Tensor
    key_mask: Tensor

    @classmethod
    def from_packed(cls, keys: Tensor, values: Tensor, source: PackedSequences) -> "CrossAttentionCache":
        """Pad packed keys and values [S, H, D] to one row a sentence, with zeros."""
        width = -(-source.max_seqlen // WIDTH) * WIDTH
        columns = torch.arange(width, device=keys.device)
        mask = columns < source.lengths[:, None]
        places = (source.cu_seqlens[:-1, None] + columns).masked_fill(~mask, 0)
        padded_keys, padded_values = (
            x[places].masked_fill(~mask[:, :, None, None], 0).transpose(1, 2).contiguous() for x in (keys, values)
        )
        return cls(padded_keys, padded_values, mask[:, None, None, :])

    def attend(self, projected: Tensor) -> Tensor:
        """See `AttentionCache`; projected: [N, H, D], the queries."""
        queries = projected.unflatten(0, (len(self.keys), -1)).transpose(1, 2)  # [B, H, beam, D]
        attended = decode_attention(queries, self.keys, self.values, self.key_mask)
        return attended.transpose(1, 2).reshape(len(projected), -1)

    def select_sentences(self, sentences: Tensor) -> None:
        """Keep the given sentences [B'] int64, in that order."""
        self.keys, self.values = self.keys[sentences], self.values[sentences]
        self.key_mask = self.key_mask[sentences]


class Past:
    """Where the positions of every row lie, the same for the caches of all blocks.

    Keys and values stay at the place that they were written to: position · (N of the first step) + row. A beam that
    goes on from another one takes over the places of its past: no keys and values are copied.

    Attributes:
        position: [1] int64, the position of the step.
        room: C.
        length: L, positions that the step attends to, its own included; those after it are masked.
        width: N of the first step.
        own: [N] int64, where the step's keys and values go.
        places: [N · L] int64, of what the rows attend to; None if all of it was written by rows of their numbers.
        mask: [1, 1, 1, L] bool, False at positions after the step's; None if there are none.
    """

    def __init__(self, device: torch.device) -> None:
        self.position = torch.zeros(1, dtype=torch.int64, device=device)
        self.room, self.length, self.width = FIRST_ROOM, 0, 0
        self.own = self._numbers = torch.empty(0, dtype=torch.int64, device=device)
        self.places: Tensor | None = None
        self.mask: Tensor | None = None
        self._num_decoded = 0
        self._table: Tensor | None = None  # [N, C] int64, the place of each position of each row

    def reserve(self, length: int) -> bool:
        """The next step attends to `length` positions; returns whether the room grew."""
        self._num_decoded += 1
        assert length >= self._num_decoded, f"step {self._num_decoded} attends to {length} positions"
        self.length = length
        if length <= self.room:
            return False
        more = max(length, 2 * self.room) - self.room
        self.room += more
        if self._table is not None:
            self._table = torch.nn.functional.pad(self._table, (0, more))
        return True

    def select_rows(self, rows: Tensor) -> None:
        """Row n goes on from what was row rows[n] ([N'] int64)."""
        if self._table is None:
            self._table = rows[:, None] + torch.arange(self.room, device=rows.device) * self.width
        elif len(rows) == len(self._table):
            self._table.copy_(self._table[rows])  # where a recorded step looks for it
        else:
            self._table = self._table[rows]

    def look_back(self, num_rows: int) -> None:
        """Set what a step of N rows needs."""
        if num_rows != len(self._numbers):
            self._numbers = torch.arange(num_rows, device=self.position.device)
            self.width = self.width or num_rows
        self.own = self.position * self.width + self._numbers
        if self._table is not None:
            self._table.index_copy_(1, self.position, self.own[:, None])
            self.places = self._table[:, : self.length].flatten()
        self.mask = None
        if self.length > self._num_decoded:
            self.mask = torch.arange(self.length, device=self.own.device)[None, None, None] <= self.position


class SelfAttentionCache:
    """Keys and values of the positions so far, by their places, [C · width, 2, H, D]; zeros where none are yet."""

    def __init__(self, past: Past) -> None:
        self._past = past
        self._stored: Tensor | None = None

    def attend(self, projected: Tensor) -> Tensor:
        """See `AttentionCache`; projected: [N, 3, H, D], queries, and keys and values that are added."""
        keys, values = self._append(projected[:, 1:])
        return decode_attention(projected[:, 0, :, None], keys, values, self._past.mask).flatten(1)

    def _append(self, keys_and_values: Tensor) -> tuple[Tensor, Tensor]:
        """Add the step's [N, 2, H, D]; returns keys and values of its past, [N, H, L, D]."""
        past, num_rows = self._past, len(keys_and_values)
        if self._stored is None:
            self._stored = keys_and_values.new_zeros(past.room * past.width, *keys_and_values.shape[1:])
        self._stored.index_copy_(0, past.own, keys_and_values)
        if past.places is None:
            seen = self._stored.unflatten(0, (past.room, past.width))[: past.length, :num_rows].transpose(0, 1)
        else:
            seen = self._stored.index_select(0, past.places).unflatten(0, (num_rows, past.length))
        keys, values = seen.transpose(1, 3).unbind(2)  # of [N, H, 2, L, D]
        return keys, values

    def grow(self) -> None:
        """Make as much room as there is in `Past`."""
        if self._stored is not None:
            more = self._past.room * self._past.width - len(self._stored)
            self._stored = torch.nn.functional.pad(self._stored, (0, 0) * 3 + (0, more))


class DecoderCache:
    """The caches of all blocks.

    A step's tensors stay where they are, and its shapes stay the same, as long as neither `length` nor the selected
    rows or sentences change in number: it can be recorded then.
    """

    def __init__(self, cross_attention: list[CrossAttentionCache]) -> None:
        self._past = Past(cross_attention[0].keys.device)
        self._cross_attention = cross_attention
        self._self_attention = [SelfAttentionCache(self._past) for _ in cross_attention]

    def of_blocks(self) -> Iterator[tuple[AttentionCache, AttentionCache]]:
        """What self-attention and cross-attention of each block attend to."""
        return zip(self._self_attention, self._cross_attention, strict=True)

    def reserve(self, length: int) -> None:
        """To be called before every step: it attends to `length` positions, its own and, masked, such after it."""
        if self._past.reserve(length):
            for cache in self._self_attention:
                cache.grow()

    def select_rows(self, rows: Tensor) -> None:
        """Reorder beams: row n goes on from what was row rows[n]. The sentences stay as they are."""
        self._past.select_rows(rows)

    def select_sentences(self, sentences: Tensor) -> None:
        """Drop finished sentences: keep these [B'] int64 (the rows are given to select_rows)."""
        for cache in self._cross_attention:
            cache.select_sentences(sentences)

    def begin_step(self, num_rows: int) -> Tensor:
        """[N] int64, the position of each row in the step that begins."""
        self._past.look_back(num_rows)
        return self._past.position.expand(num_rows)

    def end_step(self) -> None:
        """All blocks have taken their step."""
        self._past.position += 1


class JointCache:
    """The caches of several searches in one step that they take together, their rows behind each other.

    The rows are multiplied with the weights at once. Each search attends to its own past, wherever it is.

    Args:
        caches: of one model.
        num_rows: of each.
    """

    def __init__(self, caches: Sequence[DecoderCache], num_rows: Sequence[int]) -> None:
        self._caches, self._num_rows = caches, list(num_rows)

    def of_blocks(self) -> Iterator[tuple[AttentionCache, AttentionCache]]:
        """See `DecoderCache`."""
        for of_block in zip(*(cache.of_blocks() for cache in self._caches), strict=True):
            self_caches, cross_caches = zip(*of_block, strict=True)
            yield _JointAttention(self_caches, self._num_rows), _JointAttention(cross_caches, self._num_rows)

    def begin_step(self, num_rows: int) -> Tensor:
        """See `DecoderCache`; N is the sum."""
        return torch.cat([cache.begin_step(num) for cache, num in zip(self._caches, self._num_rows, strict=True)])

    def end_step(self) -> None:
        """See `DecoderCache`."""
        for cache in self._caches:
            cache.end_step()


class _JointAttention:
    """One block's caches of several searches, as one `AttentionCache`."""

    def __init__(self, caches: Sequence[AttentionCache], num_rows: list[int]) -> None:
        self._caches, self._num_rows = caches, num_rows

    def attend(self, projected: Tensor) -> Tensor:
        """See `AttentionCache`."""
        parts = projected.split(self._num_rows)
        return torch.cat([cache.attend(part) for cache, part in zip(self._caches, parts, strict=True)])
