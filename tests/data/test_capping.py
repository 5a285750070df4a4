"""Caps of passes against the paper's pseudo code, and against what a run deals."""

import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from deltalm_ds.data.capping import capped_draws, divided
from deltalm_ds.data.sampler import Mix, Sampler
from deltalm_ds.data.sampling.temperature import TemperatureSampling
from deltalm_ds.data.sampling.unimax import UniMaxSampling
from deltalm_ds.errors import InputError


def unimax(counts: dict[int, int], budget: float, max_epochs: float) -> dict[int, float]:
    """[Chung+23, algorithm 1], line by line: the units of each language, which the paper then makes shares of."""
    languages = sorted(counts, key=lambda language: counts[language])
    units, remaining = {}, budget
    for i, language in enumerate(languages):
        per_language = remaining / (len(languages) - i)
        if per_language > counts[language] * max_epochs:
            units[language] = counts[language] * max_epochs
        else:
            units[language] = per_language
        remaining -= units[language]
    return units


@given(
    counts=st.lists(st.integers(1, 10**9), min_size=1, max_size=40),
    max_epochs=st.sampled_from([0.5, 1.0, 4.0, 10.0]),
    part=st.floats(0.001, 1.2),
)
def test_equal_shares_are_the_papers_algorithm(counts: list[int], max_epochs: float, part: float):
    limits = np.array(counts) * max_epochs
    budget = part * limits.sum()
    expected = unimax(dict(enumerate(counts)), budget, max_epochs)
    parts = divided(budget, np.full(len(counts), 1 / len(counts)), limits)
    assert parts == pytest.approx([expected[number] for number in range(len(counts))], rel=1e-9)
    assert (parts <= limits).all()


@given(
    shares=st.lists(st.floats(0.001, 1.0), min_size=1, max_size=12),
    part=st.floats(0.01, 0.99),
    data=st.data(),
)
def test_unequal_shares_keep_their_proportion_where_no_limit_is_reached(shares, part, data):
    limits = np.array(data.draw(st.lists(st.floats(1.0, 1e6), min_size=len(shares), max_size=len(shares))))
    parts = divided(part * limits.sum(), np.array(shares), limits)
    assert parts.sum() == pytest.approx(part * limits.sum())
    levels = parts / np.array(shares)
    free = parts < limits
    assert levels[free] == pytest.approx(levels[free][:1].repeat(free.sum()))
    assert free.any() and (levels[~free] <= levels[free].max() * (1 + 1e-12)).all()


@given(
    rows=st.lists(st.integers(50, 100_000), min_size=3, max_size=8),
    passes=st.floats(0.5, 5.0),
    part=st.floats(0.01, 0.95),
    data=st.data(),
)
def test_the_tokens_asked_for_are_met_and_groups_keep_their_weights(rows, passes, part, data):
    number = len(rows)
    mean_tokens = np.array(data.draw(st.lists(st.floats(5, 200), min_size=number, max_size=number)))
    groups, weights = [np.arange(0, number, 2), np.arange(1, number, 2)], [0.75, 0.25]
    limits, equal = passes * np.array(rows), np.full(number, 1 / number)
    most = capped_draws(math.inf, groups, weights, equal, limits, mean_tokens)
    draws = capped_draws(part * most.tokens, groups, weights, equal, limits, mean_tokens)
    assert draws.tokens == pytest.approx(part * most.tokens, rel=1e-9)
    assert draws.sequences @ mean_tokens == pytest.approx(draws.tokens)
    total = draws.sequences.sum()
    for members, weight in zip(groups, weights, strict=True):
        assert draws.sequences[members].sum() == pytest.approx(weight * total)
        expected = unimax({int(i): rows[i] for i in members}, weight * total, passes)
        assert draws.sequences[members] == pytest.approx([expected[int(i)] for i in members], rel=1e-6)


ROWS, MEAN_TOKENS = [100_000, 20_000, 900, 150], [30.0, 50.0, 20.0, 80.0]


def make_sampler(mixes: list[Mix], num_steps: int = 600, tokens: float = 4000.0):
    return Sampler(ROWS, mixes, MEAN_TOKENS, [1, 2, 3, 4], tokens, num_steps)


def drawn_in(sampler: Sampler, steps: range) -> np.ndarray:
    return sum(np.bincount(sampler.draw(step)[0], minlength=4) for step in steps)


@pytest.mark.parametrize("max_passes", [2.0, 2.5, 4.0])
def test_a_run_passes_over_no_corpus_more_often_and_the_rest_is_uniform(max_passes: float):
    sampler = make_sampler([Mix(0, [range(4)], [1.0], UniMaxSampling(max_passes=max_passes))])
    drawn = drawn_in(sampler, range(600))
    assert drawn[2:] == pytest.approx(max_passes * np.array(ROWS[2:]), abs=1.001)
    assert sampler.capped_at.tolist() == [-1, -1, 600, 600]
    assert drawn[0] == pytest.approx(drawn[1], abs=2)
    assert drawn @ np.array(MEAN_TOKENS) == pytest.approx(600 * 4000, rel=1e-3)
    first, last = (drawn_in(sampler, steps) for steps in (range(300), range(300, 600)))
    assert first == pytest.approx(last, abs=2)  # spread over the whole run


def test_a_temperature_that_stays_can_be_capped():
    capped = TemperatureSampling(temperature_end=2.0, max_passes=3.0)
    sampler = make_sampler([Mix(0, [range(4)], [1.0], capped)])
    drawn = drawn_in(sampler, range(600))
    assert drawn[2:] == pytest.approx(3 * np.array(ROWS[2:]), abs=1.001)
    assert drawn[0] / drawn[1] == pytest.approx((ROWS[0] / ROWS[1]) ** 0.5, rel=1e-3)


def test_a_cap_that_is_not_reached_changes_nothing():
    with_cap, without = (
        make_sampler([Mix(0, [range(4)], [1.0], TemperatureSampling(temperature_end=2.0, max_passes=passes))])
        for passes in (1000.0, None)
    )
    assert with_cap.probabilities(0) == pytest.approx(without.probabilities(0), rel=1e-12)
    assert (with_cap.capped_at == -1).all()


def test_a_cap_counts_what_earlier_phases_drew():
    uncapped, capped = TemperatureSampling(temperature_end=100.0), UniMaxSampling(max_passes=40.0)
    sampler = make_sampler([Mix(0, [range(4)], [1.0], uncapped), Mix(100, [range(4)], [1.0], capped, 100)])
    before = drawn_in(sampler, range(100))
    assert before[3] > 10 * ROWS[3]
    drawn = before + drawn_in(sampler, range(100, 600))
    assert drawn[3] == pytest.approx(40 * ROWS[3], abs=1.001)


def test_a_sampling_that_goes_on_spreads_its_passes_over_its_phases():
    """Also where the corpus is not in all of them."""
    unimax = UniMaxSampling(max_passes=4.0)
    mixes = [
        Mix(0, [range(4)], [1.0], unimax),
        Mix(100, [[0, 1, 3]], [1.0], unimax),
        Mix(400, [range(4)], [1.0], unimax),
    ]
    sampler = make_sampler(mixes)
    parts = [drawn_in(sampler, steps) for steps in (range(100), range(100, 400), range(400, 600))]
    assert [part[2] for part in parts] == pytest.approx([4 * 900 / 3, 0, 4 * 900 * 2 / 3], abs=2)
    assert [part[3] for part in parts] == pytest.approx([100.0, 300.0, 200.0], abs=2)  # of 600
    assert sampler.capped_at.tolist() == [-1, -1, 600, 600]


def test_corpora_that_are_used_up_before_the_end_are_an_error_with_the_numbers():
    tokens = np.dot(ROWS, MEAN_TOKENS)
    with pytest.raises(InputError, match=re.escape(f"max_passes=1 is enough for {int(tokens / 4000):,} of the 2,000 ")):
        make_sampler([Mix(0, [range(4)], [1.0], UniMaxSampling(max_passes=1.0))], num_steps=2000)
    with pytest.raises(
        InputError, match=r"is enough for 0 of the 5 steps from step 595 on: then all corpora of a group are used up"
    ):
        used = TemperatureSampling(temperature_end=1.0)
        make_sampler([Mix(0, [[3]], [1.0], used), Mix(595, [[3]], [1.0], UniMaxSampling(max_passes=1.0), 595)])


def test_shares_that_change_cannot_be_capped():
    with pytest.raises(ValidationError, match=r"max_passes=2 needs shares that stay, and these change up to step 100"):
        TemperatureSampling(change_steps=100, max_passes=2)
    with pytest.raises(ValidationError, match="max_passes"):
        UniMaxSampling(max_passes=0.0)
