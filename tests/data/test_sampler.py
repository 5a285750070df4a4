"""The sampler's draws against the formula, summed step by step in plain Python."""

import hashlib
import math
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deltalm_ds.data.sampler import FRACTION_BITS, Mix, Sampler
from deltalm_ds.data.sampling.temperature import TemperatureSampling
from deltalm_ds.errors import InputError

SIZES = [40_000, 9_000, 2_000, 500]
GROUPS = [[0, 1], [2, 3]]
WEIGHTS = [3.0, 1.0]
MEAN_TOKENS = [30.0, 50.0, 20.0, 80.0]


def make_sampler(sampling: TemperatureSampling, tokens: float = 4000.0):
    return Sampler(SIZES, [Mix(0, GROUPS, WEIGHTS, sampling)], MEAN_TOKENS, [1, 2, 3, 4], tokens, 1000)


def rising(steps: int, interval: int = 1) -> TemperatureSampling:
    return TemperatureSampling(temperature_start=1.0, temperature_end=5.0, change_steps=steps, interval_steps=interval)


def formula(temperature: float) -> list[float]:
    """The four probabilities, spelled out."""
    first = [(n / 49_000) ** (1 / temperature) for n in SIZES[:2]]
    second = [(n / 2_500) ** (1 / temperature) for n in SIZES[2:]]
    return [0.75 * p / sum(first) for p in first] + [0.25 * p / sum(second) for p in second]


def test_draws_follow_the_formula_to_one_sequence():
    sampling = rising(700)
    sampler = make_sampler(sampling)
    expected, drawn = np.zeros(4), np.zeros(4)
    for step in range(1000):
        shares = formula(min(5.0, 1.0 + 4.0 * step / 700))
        assert sampler.probabilities(step) == pytest.approx(shares)
        expected += np.array(shares) * 4000.0 / np.dot(shares, MEAN_TOKENS)
        drawn += np.bincount(sampler.draw(step)[0], minlength=4)
        assert np.abs(drawn - expected).max() < 1.001


@pytest.mark.parametrize(
    "sampling",
    [
        TemperatureSampling(temperature_end=2.0),
        rising(300),
        rising(500, 100),
    ],
)
def test_positions_are_contiguous_and_seeking_changes_nothing(sampling: TemperatureSampling):
    replayed = make_sampler(sampling)
    next_position = np.zeros(4, dtype=np.int64)
    for step in range(800):
        component_index, positions = replayed.draw(step)
        for component in range(4):
            mine = positions[component_index == component]
            assert np.array_equal(mine, next_position[component] + np.arange(len(mine)))
            next_position[component] += len(mine)
        if step % 97 == 0:
            for fresh, seeked in zip(make_sampler(sampling).draw(step), (component_index, positions), strict=True):
                assert np.array_equal(fresh, seeked)


@settings(max_examples=30)
@given(step=st.integers(0, 900), rise=st.integers(0, 600), interval=st.integers(1, 200))
def test_cumulative_is_the_sum_of_all_steps_before(step: int, rise: int, interval: int):
    """Integer for integer, whatever table or closed form it comes from."""
    sampling = rising(rise, interval)
    total = [0] * 4
    for shares in make_sampler(sampling).probabilities(np.arange(step)):
        num_sequences = 4000.0 / float(shares @ np.array(MEAN_TOKENS))
        total = [f + round(p * num_sequences * 2**FRACTION_BITS) for f, p in zip(total, shares, strict=True)]
    assert np.abs(make_sampler(sampling).cumulative(step) - total).max() <= step  # a rounding unit, 2^-24, a step


def test_cumulative_adds_up_exactly_over_blocks():
    sampler = make_sampler(rising(500))
    steps = np.arange(1200)
    differences = np.diff([sampler.cumulative(step) for step in range(1201)], axis=0)
    assert np.array_equal(differences, sampler._parts[0].rates(steps))


def test_a_far_step_is_reached_at_once():
    sampler = make_sampler(rising(1000))
    component_index, positions = sampler.draw(10**8)
    assert len(component_index) == pytest.approx(4000 / np.dot(formula(5.0), MEAN_TOKENS), abs=4)
    assert positions.max() > 10**9


def test_budgets():
    constant = TemperatureSampling(temperature_end=1.0)
    of_one_token = Sampler(SIZES, [Mix(0, GROUPS, WEIGHTS, constant)], [1.0] * 4, [1, 2, 3, 4], 512, 1000)
    sizes = [len(of_one_token.draw(step)[0]) for step in range(200)]
    assert max(abs(size - 512) for size in sizes) <= 4
    assert math.isclose(np.mean(sizes), 512, abs_tol=0.1)
    sampler = make_sampler(constant)
    tokens = [np.array(MEAN_TOKENS)[sampler.draw(step)[0]].sum() for step in range(200)]
    assert math.isclose(np.mean(tokens), 4000, rel_tol=1e-3)


def test_equal_components_do_not_take_their_turns_all_at_once():
    sampling = TemperatureSampling(temperature_end=1.0)
    sampler = Sampler([10] * 200, [Mix(0, [range(200)], [1.0], sampling)], [1.0] * 200, range(200), 100, 20)
    assert all(70 < len(sampler.draw(step)[0]) < 130 for step in range(20))  # in step, they would be 0 and 200


def test_bad_input():
    sampling = TemperatureSampling(temperature_end=1.0)
    with pytest.raises(InputError, match="more than 0 tokens"):
        make_sampler(sampling, 0.0)
    with pytest.raises(InputError, match="at least one row"):
        Sampler([0], [Mix(0, [[0]], [1.0], sampling)], [1.0], [0], 10.0, 10)
    with pytest.raises(InputError, match="every group"):
        Sampler([5], [Mix(0, [[0], []], [1.0, 1.0], sampling)], [1.0], [0], 10.0, 10)


def chi_squared(counts: np.ndarray, expected: np.ndarray) -> float:
    return float(((counts - expected) ** 2 / expected).sum())


@pytest.mark.parametrize("sampling", [rising(500), rising(500, 100)])
def test_draws_of_single_steps_over_many_seeds(sampling: TemperatureSampling):
    """At any step the mean number of draws over phases is the rate: no step is favoured."""
    seeds = 150
    for step in (0, 1, 99, 100, 250, 499, 500, 10**6):
        counts = np.zeros(4)
        for seed in range(seeds):
            keys = [int(key) for key in np.random.default_rng(seed).integers(0, 2**63, 4)]
            sampler = Sampler(SIZES, [Mix(0, GROUPS, WEIGHTS, sampling)], [1.0] * 4, keys, 300, 1000)
            counts += np.bincount(sampler.draw(step)[0], minlength=4)
        expected = seeds * 300 * np.array(formula(float(sampling.temperature(step))))
        # a draw is the rate rounded up or down at random: its variance is at most 1/4
        assert (np.abs(counts - expected) <= 5 * np.sqrt(seeds / 4)).all()
        assert chi_squared(counts, expected) < 5


def test_the_published_schedule():
    """Fine-tuning on WMT-10 pairs as the authors do: T = 1.0, 1.8, 2.6, 3.4, 4.2, 5.0 in virtual epochs
    [facts: temperature].
    """
    pairs = [10_000_000, 10_000_000, 4_600_000, 4_800_000, 1_400_000, 700_000, 500_000, 260_000, 180_000, 80_000]
    epoch = 40
    sampling = rising(5 * epoch, epoch)
    sampler = Sampler(pairs, [Mix(0, [range(10)], [1.0], sampling)], [1.0] * 10, range(10), 2000, 7 * epoch)
    for number, temperature in enumerate([1.0, 1.8, 2.6, 3.4, 4.2, 5.0, 5.0]):
        steps = range(number * epoch, (number + 1) * epoch)
        drawn = sum(np.bincount(sampler.draw(step)[0], minlength=10) for step in steps)
        weights = [(size / sum(pairs)) ** (1 / temperature) for size in pairs]
        expected = np.array(weights) / sum(weights) * 2000 * epoch
        assert np.abs(drawn - expected).max() < 1.001
        assert chi_squared(drawn, expected) < 0.1


@settings(max_examples=15)
@given(rise=st.integers(0, 2000), interval=st.integers(1, 400), data=st.data())
def test_seeking_is_replaying(rise: int, interval: int, data: st.DataObject):
    """At hundreds of steps: each continues where the one before ended, whichever sampler is asked."""
    sampling = rising(rise, interval)
    replayed = make_sampler(sampling)
    ends = np.cumsum([np.bincount(replayed.draw(step)[0], minlength=4) for step in range(300)], axis=0)
    for step in data.draw(st.lists(st.integers(1, 299), min_size=20, max_size=20)):
        component_index, positions = make_sampler(sampling).draw(step)
        for component in range(4):
            assert positions[component_index == component].tolist() == list(
                range(ends[step - 1, component], ends[step, component])
            )


DIGEST = """
import hashlib, numpy as np
from deltalm_ds.data.sampler import Mix, Sampler
from deltalm_ds.data.sampling.temperature import TemperatureSampling
sizes = [int(size) for size in np.random.default_rng(0).integers(1, 10**8, 200)]
tokens = [20.0 + size % 97 / 7 for size in sizes]
sampling = TemperatureSampling(change_steps=3000)
mix = Mix(0, [range(120), range(120, 200)], [2.0, 1.0], sampling)
sampler = Sampler(sizes, [mix], tokens, range(200), tokens_per_step=1e6, num_steps=4000)
digest = hashlib.sha256()
for step in range(0, 4000, 5):
    digest.update(sampler.cumulative(step).tobytes())
print(digest.hexdigest())
"""


def test_every_cpu_draws_the_same():
    """numpy and BLAS without this CPU's vector units come to the same integers; numpy's own `**` and `@` do not."""
    plain = {"NPY_DISABLE_CPU_FEATURES": "AVX512_SPR AVX512_ICL X86_V4 AVX512_SKX AVX512F X86_V3 AVX2 FMA3"}
    outputs = [
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", DIGEST],
            env={**os.environ, **variables},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for variables in ({}, plain | {"OPENBLAS_CORETYPE": "Prescott"})
    ]
    assert outputs[0] == outputs[1]


def test_draws_never_change():
    """Another platform or a later version must feed the same data: resumed runs depend on it."""
    sampler = make_sampler(rising(700))
    digest = hashlib.sha256()
    for step in range(0, 1000, 7):
        digest.update(sampler.cumulative(step).astype("<i8").tobytes())
    assert digest.hexdigest()[:16] == "3c4387696ed2275f"
