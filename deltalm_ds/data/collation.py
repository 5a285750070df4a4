"""From rows of ids to the packed tensors that a model is given.

T tokens, B sequences. With target rows `y1 … yn </s>` the decoder reads `</s> y1 … yn` and predicts the row itself.
"""

from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
import torch
from torch import Tensor

from deltalm_ds.arrays.ragged import RaggedRows, gather
from deltalm_ds.kernels.linear_cross_entropy import IGNORED_LABEL
from deltalm_ds.model.packing import PackedSequences
from deltalm_ds.token_ids import EOS_ID


@dataclass(frozen=True)
class Batch:
    """One micro-batch.

    Attributes:
        source: ids with `</s>`, and the language tag where the objective has one.
        target_input: `</s>` followed by the target; the decoder's input.
        labels: [T] int64, the target followed by `</s>`.
        component_index: [B] int64, the component of each sequence (0 in a padding micro-batch).
        weight: factor of the loss: 1.0, or 0.0 for a micro-batch that only keeps ranks in step.
    """

    source: PackedSequences
    target_input: PackedSequences
    labels: Tensor
    component_index: Tensor
    weight: float = 1.0

    def to(self, device: torch.device | str) -> "Batch":
        """The same on another device."""
        return Batch(
            self.source.to(device),
            self.target_input.to(device),
            self.labels.to(device, non_blocking=True),
            self.component_index.to(device, non_blocking=True),
            self.weight,
        )

    def rounded_up(self, multiple: int) -> "Batch":
        """The same with one more sequence of `</s>` that makes source and target tokens multiples of a number.

        Libraries that compile a matrix product for its shape then meet the same few shapes again and again. The
        labels of the added tokens are IGNORED_LABEL.
        """
        return Batch(
            _with_tail(self.source, -len(self.source.tokens) % multiple),
            _with_tail(self.target_input, -len(self.labels) % multiple),
            torch.cat([self.labels, self.labels.new_full((-len(self.labels) % multiple,), IGNORED_LABEL)]),
            torch.cat([self.component_index, self.component_index.new_zeros(1)]),
            self.weight,
        )


def _with_tail(sequences: PackedSequences, length: int) -> PackedSequences:
    tokens = torch.cat([sequences.tokens, sequences.tokens[-1:].expand(length)])
    cu_seqlens = torch.cat([sequences.cu_seqlens, sequences.cu_seqlens[-1:] + length])
    return PackedSequences(tokens, cu_seqlens, max(sequences.max_seqlen, length))


def frame(rows: RaggedRows, order: np.ndarray, tags: np.ndarray) -> RaggedRows:
    """The rows `order` [M], each with `</s>` behind it and its tag of `tags` [M] in front of it (0 is none); int64."""
    has_tag = tags > 0
    lengths = rows.lengths[order] + has_tag + 1
    framed = gather(rows.values, rows.starts[order] - has_tag, lengths).values.astype(np.int64)
    ends = np.cumsum(lengths)
    framed[ends - 1] = EOS_ID
    framed[(ends - lengths)[has_tag]] = tags[has_tag]
    return RaggedRows(framed, lengths)


def collate(
    source: RaggedRows, target: RaggedRows, component_index: np.ndarray, num_sequences: list[int]
) -> list[Batch]:
    """Pack rows into micro-batches, in order. The tensors of the micro-batches are views of the same memory.

    Args:
        source: N rows of token ids, each ending with `</s>`.
        target: N rows of token ids, each ending with `</s>`.
        component_index: [N] int64, the component that each row came from.
        num_sequences: of each micro-batch; 0 gives a padding micro-batch of weight 0.
    """
    shifted = np.empty_like(target.values)
    shifted[1:] = target.values[:-1]
    shifted[target.starts] = EOS_ID
    sources = _pack(source, num_sequences)
    targets = _pack(RaggedRows(shifted, target.lengths), num_sequences)
    labels = torch.from_numpy(target.values).split([len(packed.tokens) for packed in targets])
    components = torch.from_numpy(component_index).split(num_sequences)
    batches = map(Batch, sources, targets, labels, components)
    return [batch if len(batch.component_index) else _padding() for batch in batches]


def _pack(rows: RaggedRows, num_sequences: list[int]) -> list[PackedSequences]:
    """Cut rows as `collate` does; views."""
    bounds = [0, *accumulate(num_sequences)]
    ends = np.concatenate([[0], np.cumsum(rows.lengths)])
    tokens = torch.from_numpy(rows.values).split(np.diff(ends[bounds]).tolist())
    packed = []
    for part, (first, last) in zip(tokens, pairwise(bounds), strict=True):
        cu_seqlens = torch.from_numpy((ends[first : last + 1] - ends[first]).astype(np.int32))
        packed.append(PackedSequences(part, cu_seqlens, int(rows.lengths[first:last].max(initial=0))))
    return packed


def _padding() -> Batch:
    row = PackedSequences.from_sequences([[EOS_ID]])
    return Batch(row, row, row.tokens, torch.zeros(1, dtype=torch.int64), weight=0.0)
