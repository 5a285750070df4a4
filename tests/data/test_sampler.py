"""The sampler's draws against the formula, summed step by step in plain Python."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltalm_ds.data.sampler import FRACTION_BITS, Sampler
from deltalm_ds.data.temperature import TemperatureSchedule
from deltalm_ds.errors import InputError

SIZES = [40_000, 9_000, 2_000, 500]
GROUPS = [0, 0, 1, 1]
WEIGHTS = [3.0, 1.0]
MEAN_TOKENS = [30.0, 50.0, 20.0, 80.0]


def make_sampler(schedule: TemperatureSchedule, tokens: float | None = 4000.0, sequences: float | None = None):
    return Sampler(SIZES, GROUPS, WEIGHTS, schedule, MEAN_TOKENS, [1, 2, 3, 4], tokens, sequences)


def formula(temperature: float) -> list[float]:
    """The four probabilities, spelled out."""
    first = [(n / 49_000) ** (1 / temperature) for n in SIZES[:2]]
    second = [(n / 2_500) ** (1 / temperature) for n in SIZES[2:]]
    return [0.75 * p / sum(first) for p in first] + [0.25 * p / sum(second) for p in second]


def test_draws_follow_the_formula_to_one_sequence():
    schedule = TemperatureSchedule(1.0, 5.0, rise_steps=700)
    sampler = make_sampler(schedule)
    expected, drawn = np.zeros(4), np.zeros(4)
    for step in range(1000):
        shares = formula(min(5.0, 1.0 + 4.0 * step / 700))
        assert sampler.probabilities(step) == pytest.approx(shares)
        expected += np.array(shares) * 4000.0 / np.dot(shares, MEAN_TOKENS)
        drawn += np.bincount(sampler.draw(step)[0], minlength=4)
        assert np.abs(drawn - expected).max() < 1.001


@pytest.mark.parametrize(
    "schedule",
    [
        TemperatureSchedule(end=2.0),
        TemperatureSchedule(1.0, 5.0, rise_steps=300),
        TemperatureSchedule(rise_steps=500, interval_steps=100),
    ],
)
def test_positions_are_contiguous_and_seeking_changes_nothing(schedule: TemperatureSchedule):
    replayed = make_sampler(schedule)
    next_position = np.zeros(4, dtype=np.int64)
    for step in range(800):
        task_index, positions = replayed.draw(step)
        for task in range(4):
            mine = positions[task_index == task]
            assert np.array_equal(mine, next_position[task] + np.arange(len(mine)))
            next_position[task] += len(mine)
        if step % 97 == 0:
            for fresh, seeked in zip(make_sampler(schedule).draw(step), (task_index, positions), strict=True):
                assert np.array_equal(fresh, seeked)


@settings(max_examples=30)
@given(step=st.integers(0, 900), rise=st.integers(0, 600), interval=st.integers(1, 200))
def test_cumulative_is_the_sum_of_all_steps_before(step: int, rise: int, interval: int):
    """Integer for integer, whatever table or closed form it comes from."""
    schedule = TemperatureSchedule(1.0, 5.0, rise, interval)
    total = [0] * 4
    for shares in make_sampler(schedule).probabilities(np.arange(step)):
        num_sequences = 4000.0 / float(shares @ np.array(MEAN_TOKENS))
        total = [f + round(p * num_sequences * 2**FRACTION_BITS) for f, p in zip(total, shares, strict=True)]
    assert np.abs(make_sampler(schedule).cumulative(step) - total).max() <= step  # a rounding unit, 2^-24, a step


def test_cumulative_adds_up_exactly_over_blocks():
    sampler = make_sampler(TemperatureSchedule(1.0, 5.0, rise_steps=500))
    steps = np.arange(1200)
    differences = np.diff([sampler.cumulative(step) for step in range(1201)], axis=0)
    assert np.array_equal(differences, sampler._rates(steps))


def test_a_far_step_is_reached_at_once():
    sampler = make_sampler(TemperatureSchedule(1.0, 5.0, rise_steps=1000))
    task_index, positions = sampler.draw(10**8)
    assert len(task_index) == pytest.approx(4000 / np.dot(formula(5.0), MEAN_TOKENS), abs=4)
    assert positions.max() > 10**9


def test_budgets():
    by_sequences = make_sampler(TemperatureSchedule(end=1.0), tokens=None, sequences=512)
    sizes = [len(by_sequences.draw(step)[0]) for step in range(200)]
    assert max(abs(size - 512) for size in sizes) <= 4
    assert math.isclose(np.mean(sizes), 512, abs_tol=0.1)
    by_tokens = make_sampler(TemperatureSchedule(end=1.0))
    tokens = [np.array(MEAN_TOKENS)[by_tokens.draw(step)[0]].sum() for step in range(200)]
    assert math.isclose(np.mean(tokens), 4000, rel_tol=1e-3)


def test_equal_tasks_do_not_take_their_turns_all_at_once():
    schedule = TemperatureSchedule(end=1.0)
    sampler = Sampler([10] * 200, [0] * 200, [1.0], schedule, [1.0] * 200, range(200), sequences_per_step=100)
    assert all(70 < len(sampler.draw(step)[0]) < 130 for step in range(20))  # in step, they would be 0 and 200


def test_bad_input():
    schedule = TemperatureSchedule(end=1.0)
    for tokens, sequences in ((None, None), (10.0, 10.0), (0.0, None)):
        with pytest.raises(InputError, match="exactly one"):
            make_sampler(schedule, tokens, sequences)
    with pytest.raises(InputError, match="at least one row"):
        Sampler([0], [0], [1.0], schedule, [1.0], [0], 10.0)
    with pytest.raises(InputError, match="every group"):
        Sampler([5], [0], [1.0, 1.0], schedule, [1.0], [0], 10.0)
