"""Objectives: the promised lengths are those built, limits hold, and the pieces are where they belong."""

from typing import Any

import numpy as np
import pytest
from fakes import FIRST_PIECE, NUM_PIECES, small_vocabulary
from hypothesis import given
from hypothesis import strategies as st

from deltalm_ds.arrays.counter_rng import hash_counters
from deltalm_ds.arrays.ragged import RaggedRows
from deltalm_ds.data.corruption import SpanNoise
from deltalm_ds.data.objectives import OBJECTIVES
from deltalm_ds.data.objectives.base import Limits, Objective
from deltalm_ds.data.objectives.seq2seq import Seq2Seq
from deltalm_ds.data.objectives.span_corruption import SpanCorruption
from deltalm_ds.data.objectives.translation_span_corruption import TranslationSpanCorruption
from deltalm_ds.errors import InputError

SENTINELS = small_vocabulary().sentinel_ids
NO_TAG = Seq2Seq(language_tag=False)
BARE_SPANS = SpanCorruption(noise_density=0.3, mean_span_length=2.0, sentinels_in_target=False)
ONE_SIDE = TranslationSpanCorruption(sides="one")
EVERY_OBJECTIVE: list[Objective] = [
    *(objective_class(kind=kind) for kind, objective_class in OBJECTIVES.items()),
    *(NO_TAG, BARE_SPANS, ONE_SIDE),
]


def columns_of(lengths: np.ndarray) -> list[RaggedRows]:
    """Columns of distinct ids, as far as there are pieces."""
    total = int(lengths.sum())
    values = FIRST_PIECE + np.arange(total) % NUM_PIECES
    ends = np.cumsum(lengths.sum(axis=1))
    return [RaggedRows(part, lens) for part, lens in zip(np.split(values, ends[:-1]), lengths, strict=True)]


def build(
    objective: Objective, lengths: list[list[int]], seed: int = 0
) -> tuple[RaggedRows, RaggedRows, list[RaggedRows]]:
    raw = np.array(lengths, dtype=np.int64)
    columns = columns_of(raw)
    keys = hash_counters(seed, np.arange(raw.shape[1]))
    source, target = objective.build(columns, keys, SENTINELS)
    return source, target, columns


pairs_of_lengths = st.lists(st.tuples(st.integers(0, 120), st.integers(0, 120)), min_size=1, max_size=10)


@given(
    st.sampled_from(EVERY_OBJECTIVE), pairs_of_lengths, st.integers(3, 80), st.integers(3, 80), st.integers(0, 2**63)
)
def test_lengths_are_kept_and_within_limits(
    objective: Objective, pairs: list[tuple[int, int]], max_source: int, max_target: int, seed: int
):
    wanted = np.array(pairs, dtype=np.int64).T[: objective.num_columns]
    raw = objective.fit(wanted, Limits(max_source, max_target), len(SENTINELS))
    assert (raw <= wanted).all()
    raw = raw[:, objective.usable(raw)]
    keys = hash_counters(seed, np.arange(raw.shape[1]))
    source_lengths, target_lengths = objective.lengths(raw, keys)
    assert (source_lengths <= max_source).all() and (target_lengths <= max_target).all()
    source, target = objective.build(columns_of(raw), keys, SENTINELS)
    assert (source.lengths + 1 + objective.takes_tag).tolist() == source_lengths.tolist()
    assert (target.lengths + 1).tolist() == target_lengths.tolist()
    for rows in (source, target):
        assert rows.lengths.sum() == len(rows.values)
        assert (rows.values >= FIRST_PIECE).all()


def test_nothing_is_cut_that_fits():
    for objective in EVERY_OBJECTIVE:
        raw = np.array([[2, 30, 40], [30, 2, 35]])[: objective.num_columns]
        assert np.array_equal(objective.fit(raw, Limits(128, 128), 100), raw)


def test_seq2seq_by_hand():
    source, target, (left, right) = build(Seq2Seq(), [[2, 1], [1, 3]])
    assert [row.tolist() for row in source] == [left.row(0).tolist(), left.row(1).tolist()]
    assert [row.tolist() for row in target] == [right.row(0).tolist(), right.row(1).tolist()]


def restored(source: np.ndarray, target: np.ndarray) -> list[int]:
    """Put the target's spans back into the source."""
    first = int(SENTINELS[0])
    spans = np.split(target, np.flatnonzero(np.isin(target, SENTINELS)))[1:]
    return [t for token in source.tolist() for t in (spans[token - first][1:] if token >= first else [token])]


@pytest.mark.parametrize("sides", ["both", "one"])
def test_translation_span_corruption_hides_parts_of_the_pair(sides: Any):
    lengths = [[12, 30, 1, 9] * 10, [15, 8, 20, 1] * 10]  # 960 tokens, all different
    source, target, (left, right) = build(TranslationSpanCorruption(sides=sides), lengths)
    corrupted_left = corrupted_right = 0
    for row in range(40):
        whole = [*left.row(row), *right.row(row)]
        assert restored(source.row(row), target.row(row)) == whole
        in_left = np.isin(left.row(row), target.row(row)).any()
        in_right = np.isin(right.row(row), target.row(row)).any()
        corrupted_left += int(in_left)
        corrupted_right += int(in_right)
        if sides == "one":
            noisy = left.row(row) if in_left else right.row(row)
            assert in_left != in_right and len(noisy) > 1
            assert len(target.row(row)) == sum(
                SpanNoise(noise_density=0.5).counts(np.array([len(noisy)]))[i][0] for i in (0, 1)
            )
    assert corrupted_left > 10 and corrupted_right > 10


def test_a_long_pair_is_cut_on_the_longer_side_first():
    fit = TranslationSpanCorruption().fit(np.array([[500, 10, 300, 5], [10, 500, 300, 5]]), Limits(101, 101), 100)
    total = int(fit[:, 0].sum())
    assert fit[:, 0].tolist() == [total - 10, 10]
    assert fit[:, 1].tolist() == [10, total - 10]
    assert abs(fit[0, 2] - fit[1, 2]) <= 1 and fit[:, 2].sum() == total
    assert fit[:, 3].tolist() == [5, 5]


def test_too_few_sentinels_shorten_rows():
    raw = SpanCorruption().fit(np.array([[500]]), Limits(512, 512), num_sentinels=5)
    assert SpanNoise().counts(raw[0])[1].tolist() == [5]


def test_what_is_too_short_to_be_used():
    assert Seq2Seq().usable(np.array([[0, 1, 1], [1, 0, 1]])).tolist() == [False, False, True]
    assert SpanCorruption().usable(np.array([[0, 1, 2]])).tolist() == [False, False, True]
    pairs = np.array([[0, 1, 1, 5], [5, 1, 2, 0]])
    assert TranslationSpanCorruption().usable(pairs).tolist() == [False, True, True, False]
    assert TranslationSpanCorruption(sides="one").usable(pairs).tolist() == [False, False, True, False]


def test_limits_that_cannot_be():
    with pytest.raises(InputError, match="'truncate' or 'drop'"):
        Limits(10, 10, "cut")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="at least 3"):
        Limits(2, 10)


def test_the_table_names_the_kinds():
    kinds = {name: objective_class.model_fields["kind"].default for name, objective_class in OBJECTIVES.items()}
    assert kinds == {name: name for name in OBJECTIVES}


def test_published_options():
    """T5 and mT5 corrupt 15 % of a text, mT6 and DeltaLM half of a pair, in spans of 3 tokens on average."""
    found = [(one.noise_density, one.mean_span_length) for one in (SpanCorruption(), TranslationSpanCorruption())]
    assert found == [(0.15, 3.0), (0.5, 3.0)]


@pytest.mark.parametrize(
    ("objective", "label"),
    [
        (Seq2Seq(), "seq2seq"),
        (NO_TAG, "seq2seq(language_tag=False)"),
        (SpanCorruption(), "span_corruption"),
        (BARE_SPANS, "span_corruption(noise_density=0.3,mean_span_length=2.0,sentinels_in_target=False)"),
        (TranslationSpanCorruption(), "translation_span_corruption"),
        (TranslationSpanCorruption(noise_density=0.5), "translation_span_corruption"),
        (ONE_SIDE, "translation_span_corruption(sides=one)"),
    ],
)
def test_an_objective_is_labelled_by_what_is_not_as_published(objective: Objective, label: str):
    """The label is in every component's name, and that is the key of its random numbers: it must not change."""
    assert objective.label == label


def test_the_same_options_are_the_same_objective():
    """Components are grouped by objective: equal ones must be one key."""
    assert len({SpanCorruption(), SpanCorruption(noise_density=0.15), SpanCorruption(noise_density=0.3)}) == 2
