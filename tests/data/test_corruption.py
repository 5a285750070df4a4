"""Span corruption against T5's definition in plain Python, and against published numbers."""

from collections import Counter
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from deltalm_ds.arrays.counter_rng import hash_counters
from deltalm_ds.arrays.ragged import RaggedRows
from deltalm_ds.data.corruption import SpanNoise, random_segmentation
from deltalm_ds.errors import InputError

SENTINELS = np.arange(5000, 5200)


def t5_counts(length: int, density: float, mean_span: float) -> tuple[int, int]:
    num_noise = min(max(round(length * density), 1), length - 1)
    return num_noise, max(round(num_noise / mean_span), 1)


def t5_corrupt(tokens: list[int], kept: list[int], noise: list[int]) -> tuple[list[int], list[int]]:
    """Input and target, given the lengths of the kept and the noise parts."""
    source, target, place = [], [], 0
    for span, (num_kept, num_noise) in enumerate(zip(kept, noise, strict=True)):
        source += [*tokens[place : place + num_kept], int(SENTINELS[span])]
        place += num_kept
        target += [int(SENTINELS[span]), *tokens[place : place + num_noise]]
        place += num_noise
    assert place == len(tokens)
    return source, target


def spans_of(tokens: list[int]) -> dict[int, list[int]]:
    """Sentinel -> the tokens after it."""
    spans: dict[int, list[int]] = {}
    for token in tokens:
        if token >= SENTINELS[0]:
            spans[token] = []
        else:
            spans[list(spans)[-1]].append(token)
    return spans


def test_published_lengths():
    """T5: 568 raw tokens give 512 input tokens and 114 target tokens, with 28 spans."""
    noise = SpanNoise(noise_density=0.15, mean_span_length=3.0)
    raw = np.array([568])
    assert noise.counts(raw)[1].tolist() == [28]
    assert [int(length[0]) + 1 for length in noise.corrupted_lengths(raw)] == [512, 114]
    assert noise.max_raw_tokens(511, 113, 100) == 568


@pytest.mark.parametrize(("density", "mean_span"), [(0.15, 3.0), (0.5, 3.0), (0.15, 10.0), (0.3, 1.0)])
def test_counts_are_those_of_t5(density: float, mean_span: float):
    raw = np.arange(2, 3000)
    expected = [t5_counts(length, density, mean_span) for length in raw.tolist()]
    assert np.array_equal(
        np.stack(SpanNoise(noise_density=density, mean_span_length=mean_span).counts(raw), axis=1), expected
    )


rows_of_lengths = st.lists(st.integers(2, 200), min_size=1, max_size=12)


@given(rows_of_lengths, st.sampled_from([0.05, 0.15, 0.5, 0.9]), st.sampled_from([1.0, 3.0]), st.integers(0, 2**63))
def test_corruption_is_t5s_and_can_be_inverted(lengths: list[int], density: float, mean_span: float, seed: int):
    noise = SpanNoise(noise_density=density, mean_span_length=mean_span)
    raw = RaggedRows(np.arange(sum(lengths)) % 4999, np.array(lengths))
    keys = hash_counters(seed, np.arange(len(lengths)))
    source, target = noise.corrupt(raw, keys, SENTINELS)
    assert [list(lens) for lens in noise.corrupted_lengths(raw.lengths)] == [list(source.lengths), list(target.lengths)]
    for index, length in enumerate(lengths):
        inputs, targets = source.row(index).tolist(), target.row(index).tolist()
        spans = spans_of(targets)
        restored = [token for item in inputs for token in spans.get(item, [item])]
        assert restored == raw.row(index).tolist()
        num_noise, num_spans = t5_counts(length, density, mean_span)
        num_spans = min(num_spans, length - num_noise)
        assert list(spans) == SENTINELS[:num_spans].tolist()
        assert sum(map(len, spans.values())) == num_noise
        assert all(spans.values())
        # Parts alternate: the row starts with a kept token, ends with a span, and no two spans touch.
        is_sentinel = [token >= SENTINELS[0] for token in inputs]
        assert not is_sentinel[0] and is_sentinel[-1]
        assert not any(a and b for a, b in pairwise(is_sentinel))


@given(rows_of_lengths, st.integers(0, 2**63))
def test_output_for_given_segmentations(lengths: list[int], seed: int):
    noise = SpanNoise()
    raw = RaggedRows(np.arange(sum(lengths)) % 4999, np.array(lengths))
    keys = hash_counters(seed, np.arange(len(lengths)))
    source, target = noise.corrupt(raw, keys, SENTINELS)
    num_noise, num_spans = noise.counts(raw.lengths)
    ends = np.cumsum(num_spans)[:-1]
    kept = np.split(random_segmentation(raw.lengths - num_noise, num_spans, hash_counters(keys, 0)), ends)
    spans = np.split(random_segmentation(num_noise, num_spans, hash_counters(keys, 1)), ends)
    for index in range(len(lengths)):
        expected = t5_corrupt(raw.row(index).tolist(), kept[index].tolist(), spans[index].tolist())
        assert (source.row(index).tolist(), target.row(index).tolist()) == expected


def t5_mask(length: int, density: float, mean_span: float, generator: np.random.Generator) -> list[bool]:
    """`random_spans_noise_mask` as T5's authors define it, in plain Python: where a row is noise [Raffel+20]."""

    def segmentation(num_items: int, num_segments: int) -> list[int]:
        starts = [True] * (num_segments - 1) + [False] * (num_items - num_segments)
        generator.shuffle(starts)
        segments = [1]
        for starts_here in starts:
            if starts_here:
                segments.append(1)
            else:
                segments[-1] += 1
        return segments

    num_noise, num_spans = t5_counts(length, density, mean_span)
    noise, kept = segmentation(num_noise, num_spans), segmentation(length - num_noise, num_spans)
    return [is_noise for k, n in zip(kept, noise, strict=True) for is_noise in [False] * k + [True] * n]


@pytest.mark.parametrize(("length", "density", "mean_span"), [(24, 0.5, 3.0), (100, 0.15, 3.0), (60, 0.3, 5.0)])
def test_masks_are_distributed_as_t5s(length: int, density: float, mean_span: float):
    """Which places are noise, how long spans are, how far the first is in: chi² of two samples."""
    num_samples, noise = 3000, SpanNoise(noise_density=density, mean_span_length=mean_span)
    raw = RaggedRows(np.tile(np.arange(length), num_samples), np.full(num_samples, length))
    source, _ = noise.corrupt(raw, hash_counters(5, np.arange(num_samples)), SENTINELS)
    ours = np.ones((num_samples, length), dtype=bool)
    for index, row in enumerate(source):
        ours[index, row[row < SENTINELS[0]]] = False
    generator = np.random.default_rng(0)
    theirs = np.array([t5_mask(length, density, mean_span, generator) for _ in range(num_samples)])
    assert (ours.sum(axis=1) == theirs.sum(axis=1)).all()
    spans = [np.diff(np.flatnonzero(np.diff(np.pad(mask, ((0, 0), (1, 1))).ravel()))) for mask in (ours, theirs)]
    first_noise = [mask.argmax(axis=1) for mask in (ours, theirs)]
    assert (ours[:, 0] == theirs[:, 0]).all() and (ours[:, -1] == theirs[:, -1]).all()
    for a, b in ((spans[0][::2], spans[1][::2]), first_noise, (np.nonzero(ours)[1], np.nonzero(theirs)[1])):
        counts = np.stack([np.bincount(values, minlength=length + 1) for values in (a, b)]).astype(float)
        counts = counts[:, counts.sum(axis=0) >= 20]
        expected = counts.sum(axis=0) * counts.sum(axis=1, keepdims=True) / counts.sum()
        statistic, freedom = ((counts - expected) ** 2 / expected).sum(), counts.shape[1] - 1
        assert statistic <= freedom + 5 * (2 * freedom) ** 0.5


def test_a_row_is_corrupted_alike_in_any_company():
    raw = RaggedRows(np.arange(300), np.array([100, 50, 150]))
    keys = hash_counters(3, np.arange(3))
    together = SpanNoise().corrupt(raw, keys, SENTINELS)
    alone = SpanNoise().corrupt(raw.take(np.array([2])), keys[2:], SENTINELS)
    for many, one in zip(together, alone, strict=True):
        assert np.array_equal(many.row(2), one.values)


def test_without_sentinels_in_the_target():
    raw = RaggedRows(np.arange(60), np.array([40, 20]))
    keys = hash_counters(3, np.arange(2))
    source, target = SpanNoise().corrupt(raw, keys, SENTINELS)
    bare_source, bare_target = SpanNoise(sentinels_in_target=False).corrupt(raw, keys, SENTINELS)
    assert np.array_equal(source.values, bare_source.values)
    assert np.array_equal(target.values[target.values < SENTINELS[0]], bare_target.values)
    assert bare_target.lengths.tolist() == [6, 3]


@given(st.lists(st.tuples(st.integers(1, 50), st.integers(1, 50)), max_size=20), st.integers(0, 2**63))
def test_segments_are_non_empty_and_add_up(rows: list[tuple[int, int]], seed: int):
    num_items = np.array([max(row) for row in rows], dtype=np.int64)
    num_parts = np.array([min(row) for row in rows], dtype=np.int64)
    parts = random_segmentation(num_items, num_parts, hash_counters(seed, np.arange(len(rows))))
    split = np.split(parts, np.cumsum(num_parts)[:-1]) if rows else []
    assert [(len(part), part.sum()) for part in split] == list(zip(num_parts, num_items, strict=True))
    assert (parts > 0).all()


@pytest.mark.parametrize(("num_items", "num_parts"), [(5, 2), (6, 3), (7, 4), (4, 4), (3, 1)])
def test_every_segmentation_is_equally_likely(num_items: int, num_parts: int):
    num_samples = 20_000
    parts = random_segmentation(
        np.full(num_samples, num_items), np.full(num_samples, num_parts), hash_counters(9, np.arange(num_samples))
    )
    counts = Counter(map(tuple, parts.reshape(num_samples, num_parts).tolist()))
    cuts = list(combinations(range(1, num_items), num_parts - 1))
    assert set(counts) == {tuple(np.diff([0, *cut, num_items]).tolist()) for cut in cuts}
    expected = num_samples / len(cuts)
    chi_squared = sum((count - expected) ** 2 / expected for count in counts.values())
    freedom = len(cuts) - 1
    assert chi_squared <= freedom + 5 * (2 * freedom) ** 0.5


@given(st.integers(3, 600), st.integers(3, 600), st.integers(1, 120), st.sampled_from([0.15, 0.5, 0.9]))
def test_the_longest_row_that_fits(max_input: int, max_target: int, num_sentinels: int, density: float):
    noise = SpanNoise(noise_density=density)
    longest = noise.max_raw_tokens(max_input, max_target, num_sentinels)
    lengths = np.arange(2, 3 * (max_input + max_target))
    inputs, targets = noise.corrupted_lengths(lengths)
    fits = (inputs <= max_input) & (targets <= max_target) & (noise.counts(lengths)[1] <= num_sentinels)
    assert longest == lengths[fits][-1]
    assert fits[: longest - 1].all()


def test_bad_input():
    raw = RaggedRows(np.arange(300), np.array([300]))
    with pytest.raises(InputError, match="300 tokens has 15 noise spans, but the vocabulary has 10 sentinels"):
        SpanNoise().corrupt(raw, np.zeros(1, np.uint64), SENTINELS[:10])
    with pytest.raises(InputError, match="with 0 sentinels"):
        SpanNoise().max_raw_tokens(100, 100, 0)
    for density, mean_span in ((0.0, 3.0), (1.0, 3.0), (float("nan"), 3.0), (0.15, 0.5)):
        with pytest.raises(ValidationError, match="noise_density" if mean_span == 3.0 else "mean_span_length"):
            SpanNoise(noise_density=density, mean_span_length=mean_span)
