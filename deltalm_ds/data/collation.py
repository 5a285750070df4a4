"""From rows of ids to the packed tensors that a model is given.

Legend: T tokens, B sequences.

With target rows `y1 … yn </s>` the decoder reads `</s> y1 … yn` and predicts the row itself.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
import torch
from torch import Tensor

from deltalm_ds.arrays.ragged import RaggedRows, gather
from deltalm_ds.data.padding import TAIL_LENGTH, Shape, rounded_up
from deltalm_ds.kernels.linear_cross_entropy import IGNORED_LABEL
from deltalm_ds.model.packing import PackedSequences, Places
from deltalm_ds.token_ids import EOS_ID

ALIGNMENT = 16  # bytes; kernels are compiled for tensors that begin at such an address


@dataclass(frozen=True)
class Batch:
    """One micro-batch.

    Attributes:
        source: ids with `</s>`, and the language tag where the objective has one.
        target_input: `</s>` followed by the target; the decoder's input.
        labels: [T] int64, the target followed by `</s>`.
        component_index: [B] int64, the component of each sequence (0 in a padding micro-batch).
        weight: factor of the loss: 1.0, or 0.0 for a micro-batch that only keeps ranks in step.
        words: [any] int64, the memory that all tensors of a padded micro-batch are views of.
    """

    source: PackedSequences
    target_input: PackedSequences
    labels: Tensor
    component_index: Tensor
    weight: float = 1.0
    words: Tensor | None = None

    @property
    def shape(self) -> Shape:
        """What it measures."""
        source, target = self.source, self.target_input
        sizes = len(source.tokens), len(target.tokens), source.num_sequences
        return Shape(*sizes, source.max_seqlen, target.max_seqlen)

    def to(self, device: torch.device | str) -> "Batch":
        """A padded micro-batch on another device, by one copy; from pinned memory the host does not wait for it."""
        assert self.words is not None, "only a padded micro-batch is in one piece"
        return _from_words(self.words.to(device, non_blocking=True), self.shape, self.weight)

    def padded(self, to_shape: Callable[[Shape], Shape] = rounded_up, pinned: bool = False) -> "Batch":
        """The same with `</s>` behind it, in one piece of memory, the places of tokens among it.

        The added tokens are in sequences of their own, of TAIL_LENGTH at most, and those of the target have the label
        IGNORED_LABEL; sequences that are left over are empty.

        Args:
            to_shape: says the new shape; one of `data.padding`.
            pinned: whether a GPU is to copy the memory by itself.
        """
        shape = to_shape(self.shape)
        words = torch.empty(_num_words(shape), dtype=torch.int64, pin_memory=pinned)
        padded = _from_words(words, shape, self.weight)
        _fill(padded.source, self.source)
        _fill(padded.target_input, self.target_input)
        _fill_up(padded.labels, self.labels, IGNORED_LABEL)
        _fill_up(padded.component_index, self.component_index, 0)
        return padded


def _layout(shape: Shape) -> list[tuple[torch.dtype, int]]:
    """Type and length of each tensor of a padded micro-batch, in the order of `_from_words`."""
    source, target, sequences = shape[:3]
    wide = [source] * 3 + [target] * 4 + [sequences]
    return [(torch.int64, length) for length in wide] + [(torch.int32, sequences + 1)] * 2


def _sizes(shape: Shape) -> list[int]:
    """Words of 8 bytes of each tensor, with what keeps the next one aligned."""
    return [-(-length * dtype.itemsize // ALIGNMENT) * ALIGNMENT // 8 for dtype, length in _layout(shape)]


def _num_words(shape: Shape) -> int:
    return sum(_sizes(shape))


def _from_words(words: Tensor, shape: Shape, weight: float) -> Batch:
    """The micro-batch whose tensors are in `words`."""
    parts = words.split(_sizes(shape))
    views = [part.view(dtype)[:length] for part, (dtype, length) in zip(parts, _layout(shape), strict=True)]
    source, *source_places, target, sequence, position, labels, components, source_ends, target_ends = views
    return Batch(
        PackedSequences(source, source_ends, shape.longest_source, Places(*source_places)),
        PackedSequences(target, target_ends, shape.longest_target, Places(sequence, position)),
        labels,
        components,
        weight,
        words,
    )


def _fill(padded: PackedSequences, given: PackedSequences) -> None:
    """Write `given`, a tail, and the places of all of them into `padded`."""
    assert padded.known_places is not None
    num_tokens, num_given = len(padded.tokens), len(given.tokens)
    ends = np.full(padded.num_sequences + 1, num_tokens, dtype=np.int32)
    ends[: len(given.cu_seqlens)] = given.cu_seqlens.numpy()
    tails = np.arange(num_given + TAIL_LENGTH, num_tokens, TAIL_LENGTH)
    ends[len(given.cu_seqlens) :][: len(tails)] = tails
    numbers = np.repeat(np.arange(padded.num_sequences), np.diff(ends))
    _fill_up(padded.tokens, given.tokens, EOS_ID)
    padded.cu_seqlens.numpy()[:] = ends
    padded.known_places.sequence_of_token.numpy()[:] = numbers
    padded.known_places.positions.numpy()[:] = np.arange(num_tokens) - ends[numbers]


def _fill_up(padded: Tensor, given: Tensor, value: int) -> None:
    """Write `given` and behind it a value."""
    padded[: len(given)] = given
    padded[len(given) :] = value


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
