"""What a decoder remembers between the steps of a search.

Legend: B sentences, N = B · beam rows (the beams of a sentence side by side), H heads, S source, L past, D head dim.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from deltalm_ds.model.packing import PackedSequences


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
        """Pad packed keys and values [S, H, D] to one row a sentence."""
        lengths = source.lengths.tolist()
        padded_keys, padded_values = (
            torch.nn.utils.rnn.pad_sequence(list(x.split(lengths)), batch_first=True).transpose(1, 2).contiguous()
            for x in (keys, values)
        )
        key_mask = torch.arange(source.max_seqlen, device=keys.device) < source.lengths[:, None]
        return cls(padded_keys, padded_values, key_mask[:, None, None, :])

    def select_sentences(self, sentences: Tensor) -> None:
        """Keep the given sentences [B'] int64, in that order."""
        self.keys, self.values = self.keys[sentences], self.values[sentences]
        self.key_mask = self.key_mask[sentences]


class SelfAttentionCache:
    """Keys and values of the tokens decoded so far, [N, H, L, D]."""

    def __init__(self) -> None:
        self.keys: Tensor | None = None
        self.values: Tensor | None = None

    def append(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Add one position [N, H, 1, D]; returns all keys and values."""
        if self.keys is None or self.values is None:
            self.keys, self.values = key, value
        else:
            self.keys = torch.cat([self.keys, key], dim=2)
            self.values = torch.cat([self.values, value], dim=2)
        return self.keys, self.values

    def select_rows(self, rows: Tensor) -> None:
        """Row n goes on from what was row rows[n] ([N'] int64)."""
        if self.keys is not None and self.values is not None:
            self.keys, self.values = self.keys.index_select(0, rows), self.values.index_select(0, rows)


@dataclass
class DecoderCache:
    """The caches of all blocks and the number of tokens decoded."""

    self_attention: list[SelfAttentionCache]
    cross_attention: list[CrossAttentionCache]
    num_decoded: int = 0

    def select_rows(self, rows: Tensor) -> None:
        """Reorder beams: row n goes on from what was row rows[n]. The sentences stay as they are."""
        for cache in self.self_attention:
            cache.select_rows(rows)

    def select_sentences(self, sentences: Tensor) -> None:
        """Drop finished sentences: keep these [B'] int64 (self-attention rows are given to select_rows)."""
        for cache in self.cross_attention:
            cache.select_sentences(sentences)
