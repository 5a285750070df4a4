"""Collation by a hand-worked example, and the ragged rows under it against lists."""

from dataclasses import replace
from functools import partial
from itertools import chain, pairwise

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from deltalm_ds.arrays.ragged import RaggedRows, gather, groups, join_rows, stack
from deltalm_ds.data.collation import Batch, collate, frame
from deltalm_ds.data.padding import on_ladder, rounded_up
from deltalm_ds.kernels.linear_cross_entropy import IGNORED_LABEL
from deltalm_ds.model.packing import PackedSequences

EOS = 2  # of every vocabulary


def collate_one(source: list[list[int]], target: list[list[int]], components: list[int]) -> Batch:
    component_index = np.array(components, dtype=np.int64)
    (batch,) = collate(framed(source), framed(target), component_index, [len(components)])
    return batch


def framed(rows: list[list[int]]) -> RaggedRows:
    return frame(ragged(rows), np.arange(len(rows)), np.zeros(len(rows), dtype=np.int64))


def ragged(rows: list[list[int]]) -> RaggedRows:
    return RaggedRows.from_rows([np.array(row, dtype=np.uint16) for row in rows])


def as_lists(rows: RaggedRows) -> list[list[int]]:
    assert [row.tolist() for row in rows] == [rows.row(index).tolist() for index in range(len(rows.lengths))]
    return [row.tolist() for row in rows]


def test_a_batch_by_hand():
    batch = collate_one([[10, 11], [12]], [[20], [21, 22, 23]], [4, 0])
    assert batch.source.tokens.tolist() == [10, 11, 2, 12, 2]
    assert batch.source.cu_seqlens.tolist() == [0, 3, 5]
    assert batch.source.max_seqlen == 3
    assert batch.target_input.tokens.tolist() == [2, 20, 2, 21, 22, 23]
    assert batch.target_input.cu_seqlens.tolist() == [0, 2, 6]
    assert batch.target_input.max_seqlen == 4
    assert batch.labels.tolist() == [20, 2, 21, 22, 23, 2]
    assert batch.component_index.tolist() == [4, 0]
    assert batch.weight == 1.0
    types = [tensor.dtype for tensor in (batch.source.tokens, batch.target_input.tokens, batch.labels)]
    assert {str(dtype) for dtype in types} == {"torch.int64"}
    assert str(batch.source.cu_seqlens.dtype) == "torch.int32"


def test_rounding_up_adds_one_sequence_without_labels():
    batch = collate_one([[10, 11], [12]], [[20], [21, 22, 23]], [4, 3])
    rounded = batch.padded(partial(rounded_up, multiple=8))
    assert rounded.source.tokens.tolist() == [10, 11, 2, 12, 2, 2, 2, 2]
    assert rounded.source.cu_seqlens.tolist() == [0, 3, 5, 8]
    assert (rounded.source.max_seqlen, rounded.target_input.max_seqlen) == (3, 4)
    assert rounded.target_input.cu_seqlens.tolist() == [0, 2, 6, 8]
    assert rounded.labels.tolist() == [20, 2, 21, 22, 23, 2, IGNORED_LABEL, IGNORED_LABEL]
    assert rounded.component_index.tolist() == [4, 3, 0]
    assert rounded.weight == batch.weight


def without_places(packed: PackedSequences) -> PackedSequences:
    return replace(packed, known_places=None)


@given(st.lists(st.tuples(st.integers(2, 90), st.integers(2, 90)), min_size=1, max_size=40), st.booleans())
def test_a_padded_micro_batch_is_the_given_one_and_a_tail(lengths: list[tuple[int, int]], is_on_ladder: bool):
    sources, targets = ([[7 + side] * (pair[side] - 1) for pair in lengths] for side in (0, 1))
    batch = collate_one(sources, targets, list(range(len(lengths))))
    padded = batch.padded(on_ladder if is_on_ladder else rounded_up)
    assert padded.shape == (on_ladder if is_on_ladder else rounded_up)(batch.shape)
    for before, after in ((batch.source, padded.source), (batch.target_input, padded.target_input)):
        num_tokens, num_sequences = len(before.tokens), before.num_sequences
        assert torch.equal(after.tokens[:num_tokens], before.tokens)
        assert set(after.tokens[num_tokens:].tolist()) <= {EOS}
        assert torch.equal(after.lengths[:num_sequences], before.lengths)
        tail = after.lengths[num_sequences:].tolist()
        assert min(tail) >= 0 and max(tail) <= 32 and sum(tail) == len(after.tokens) - num_tokens
        assert after.max_seqlen >= after.lengths.max()
        assert torch.equal(after.positions, without_places(after).positions)
        assert torch.equal(after.sequence_of_token, without_places(after).sequence_of_token)
    assert torch.equal(padded.labels[: len(batch.labels)], batch.labels)
    assert set(padded.labels[len(batch.labels) :].tolist()) <= {IGNORED_LABEL}
    assert padded.component_index.tolist()[: len(lengths)] == list(range(len(lengths)))
    assert len(padded.component_index) == padded.source.num_sequences == padded.target_input.num_sequences


def all_tensors(batch: Batch) -> list[torch.Tensor]:
    sides = (batch.source, batch.target_input)
    packed = [x for side in sides for x in (side.tokens, side.cu_seqlens, side.positions, side.sequence_of_token)]
    return [*packed, batch.labels, batch.component_index]


@given(st.integers(1, 40), st.integers(1, 40))
def test_a_padded_micro_batch_moves_in_one_piece(num_source: int, num_target: int):
    batch = collate_one([[5] * num_source], [[6] * num_target], [1]).padded()
    moved = batch.to("meta")
    assert (moved.weight, moved.shape) == (1.0, batch.shape)
    assert {tensor.device.type for tensor in all_tensors(moved)} == {"meta"}
    assert len({tensor.untyped_storage()._cdata for tensor in (moved.words, *all_tensors(moved))}) == 1
    spans = sorted((x.data_ptr(), x.nbytes) for x in all_tensors(batch))
    assert all(begin % 16 == 0 for begin, _ in spans)
    assert all(begin + size <= following for (begin, size), (following, _) in pairwise(spans))


def test_a_padding_micro_batch_is_one_end_of_sentence_of_weight_zero():
    batch = collate_one([], [], [])
    assert batch.weight == 0.0
    assert batch.source.tokens.tolist() == batch.target_input.tokens.tolist() == batch.labels.tolist() == [EOS]
    assert batch.component_index.tolist() == [0]


@given(st.lists(st.tuples(st.lists(st.integers(3, 90), min_size=1), st.integers(0, 3)), min_size=1), st.data())
def test_micro_batches_of_a_step_are_those_made_alone(rows: list[tuple[list[int], int]], data: st.DataObject):
    """However a step's rows are cut into micro-batches: tags, ends and labels as by hand, and nothing shared."""
    order = data.draw(st.permutations(range(len(rows))))
    tags = np.array([100 * rows[index][1] for index in order])
    ids = ragged([row for row, _ in rows])
    source = frame(ids, np.array(order), tags)
    target = frame(ids, np.array(order), np.zeros_like(tags))
    by_hand = [[100 * rows[index][1]][: rows[index][1]] + rows[index][0] + [EOS] for index in order]
    assert as_lists(source) == by_hand
    assert source.values.dtype == target.values.dtype == np.int64
    cuts = sorted(data.draw(st.lists(st.integers(0, len(rows)), max_size=4)))
    bounds = list(pairwise([0, *cuts, len(rows)]))
    batches = collate(source, target, np.array(order), [last - first for first, last in bounds])
    for (first, last), batch in zip(bounds, batches, strict=True):
        chosen = order[first:last]
        expected_source = [*chain(*by_hand[first:last])] or [EOS]
        labels = [*chain(*([*rows[index][0], EOS] for index in chosen))] or [EOS]
        decoder_input = [*chain(*([EOS, *rows[index][0]] for index in chosen))] or [EOS]
        assert batch.source.tokens.tolist() == expected_source
        assert (batch.labels.tolist(), batch.target_input.tokens.tolist()) == (labels, decoder_input)
        assert batch.source.lengths.tolist() == [len(row) for row in by_hand[first:last] or [[EOS]]]
        assert batch.source.max_seqlen == int(batch.source.lengths.max())
        assert batch.target_input.max_seqlen == int(batch.target_input.lengths.max())
        assert batch.component_index.tolist() == (chosen or [0])
        assert batch.weight == float(first < last)


rows_of_ids = st.lists(st.lists(st.integers(0, 60_000), max_size=8), max_size=8)


@given(rows_of_ids, st.data())
def test_ragged_rows_behave_like_lists(rows: list[list[int]], data: st.DataObject):
    there = ragged(rows)
    assert as_lists(there) == rows
    order = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=12) if rows else st.just([]))
    assert as_lists(there.take(np.array(order, dtype=np.int64))) == [rows[index] for index in order]
    keep = [data.draw(st.integers(0, len(row))) for row in rows]
    shortened = gather(there.values, there.starts, np.array(keep, dtype=np.int64))
    assert as_lists(shortened) == [row[:count] for row, count in zip(rows, keep, strict=True)]
    reversed_rows = [row[::-1] for row in rows]
    assert as_lists(stack([there, ragged(reversed_rows)])) == rows + reversed_rows
    one = ragged([[7]] * len(rows))
    assert as_lists(join_rows(one, there, ragged(reversed_rows))) == [[7, *row, *row[::-1]] for row in rows]


@given(st.lists(st.integers(0, 70_000) | st.integers(0, 3), max_size=30))
def test_groups_are_those_of_a_dictionary(labels: list[int]):
    expected: dict[int, list[int]] = {}
    for place, label in enumerate(labels):
        expected.setdefault(label, []).append(place)
    found = {label: places.tolist() for label, places in groups(np.array(labels, dtype=np.int64))}
    assert found == expected and list(found) == sorted(expected)
