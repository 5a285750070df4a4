"""From rows of ids to the packed tensors that a model is given.

T tokens, B sequences. With target rows `y1 … yn </s>` the decoder reads `</s> y1 … yn` and predicts the row itself.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from deltalm_ds.data.ragged import RaggedRows
from deltalm_ds.kernels.linear_cross_entropy import IGNORED_LABEL
from deltalm_ds.model.packing import PackedSequences


@dataclass(frozen=True)
class Batch:
    """One micro-batch.

    Attributes:
        source: ids with `</s>`, and the language tag where the objective has one.
        target_input: `</s>` followed by the target; the decoder's input.
        labels: [T] int64, the target followed by `</s>`.
        task_index: [B] int64, the task of each sequence (0 in a padding micro-batch).
        weight: factor of the loss: 1.0, or 0.0 for a micro-batch that only keeps ranks in step.
    """

    source: PackedSequences
    target_input: PackedSequences
    labels: Tensor
    task_index: Tensor
    weight: float = 1.0

    def to(self, device: torch.device | str) -> "Batch":
        """The same on another device."""
        return Batch(
            self.source.to(device),
            self.target_input.to(device),
            self.labels.to(device, non_blocking=True),
            self.task_index.to(device, non_blocking=True),
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
            torch.cat([self.task_index, self.task_index.new_zeros(1)]),
            self.weight,
        )


def _with_tail(sequences: PackedSequences, length: int) -> PackedSequences:
    tokens = torch.cat([sequences.tokens, sequences.tokens[-1:].expand(length)])
    cu_seqlens = torch.cat([sequences.cu_seqlens, sequences.cu_seqlens[-1:] + length])
    return PackedSequences(tokens, cu_seqlens, max(sequences.max_seqlen, length))


def collate(source: RaggedRows, target: RaggedRows, task_index: np.ndarray, eos_id: int) -> Batch:
    """Pack source and target rows, both ending with `</s>`. No rows give a padding micro-batch of weight 0."""
    if len(task_index) == 0:
        row = RaggedRows.of_one(eos_id, 1)
        return _pack(row, row, np.zeros(1, dtype=np.int64), eos_id, weight=0.0)
    return _pack(source, target, task_index, eos_id, weight=1.0)


def _pack(source: RaggedRows, target: RaggedRows, task_index: np.ndarray, eos_id: int, weight: float) -> Batch:
    shifted = np.roll(target.values, 1)
    shifted[target.starts] = eos_id
    target_lengths = torch.from_numpy(target.lengths)
    return Batch(
        PackedSequences.from_lengths(torch.from_numpy(source.values), torch.from_numpy(source.lengths)),
        PackedSequences.from_lengths(torch.from_numpy(shifted), target_lengths),
        torch.from_numpy(target.values),
        torch.from_numpy(task_index),
        weight,
    )
