"""The temperature formula against published numbers."""

from decimal import Context, Decimal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from deltalm_ds.data.portable_math import log_shares
from deltalm_ds.data.sampling.temperature import TemperatureSampling, probabilities

WMT10_MILLIONS = [10, 10, 4.6, 4.8, 1.4, 0.7, 0.5, 0.26, 0.18, 0.08]
WMT10 = log_shares(WMT10_MILLIONS)


def test_the_authors_table():
    sampling = TemperatureSampling(change_steps=500, interval_steps=100)
    first_steps = np.arange(8) * 100
    expected = [1.0, 1.8, 2.6, 3.4, 4.2, 5.0, 5.0, 5.0]
    assert sampling.temperature(first_steps) == pytest.approx(expected, abs=1e-12)
    assert sampling.temperature(first_steps + 99) == pytest.approx(expected, abs=1e-12)
    assert sampling.settled_step == 500


def test_a_line_in_steps():
    sampling = TemperatureSampling(temperature_start=1.0, temperature_end=5.0, change_steps=1000)
    assert sampling.temperature([0, 1, 250, 500, 1000, 10**9]) == pytest.approx([1, 1.004, 2, 3, 5, 5])


def test_falling_is_rising_backwards():
    falling = TemperatureSampling(temperature_start=5.0, temperature_end=1.0, change_steps=1000)
    assert falling.temperature([0, 1, 250, 500, 1000, 10**9]) == pytest.approx([5, 4.996, 4, 3, 1, 1])
    stairs = TemperatureSampling(temperature_start=5.0, temperature_end=1.0, change_steps=500, interval_steps=100)
    assert stairs.temperature(np.arange(7) * 100 + 99) == pytest.approx([5, 4.2, 3.4, 2.6, 1.8, 1, 1])
    small = [shares[-1] for shares in falling.shares(np.array(WMT10_MILLIONS))(np.array([0, 500, 1000]))]
    assert small[0] > small[1] > small[2] == pytest.approx(0.08 / sum(WMT10_MILLIONS))


def test_constant():
    assert TemperatureSampling(temperature_end=2.5).temperature(np.arange(3)).tolist() == [2.5] * 3
    assert TemperatureSampling(temperature_end=2.5).settled_step == 0


@given(rise=st.integers(0, 1000), interval=st.integers(1, 300), step=st.integers(0, 2000))
def test_nothing_changes_once_settled(rise: int, interval: int, step: int):
    sampling = TemperatureSampling(change_steps=rise, interval_steps=interval)
    temperature = sampling.temperature(step)
    assert 1.0 <= temperature <= 5.0
    assert (temperature == 5.0) == (step >= sampling.settled_step)


def test_wmt10_probabilities():
    shares = np.array(WMT10_MILLIONS) / sum(WMT10_MILLIONS)
    assert probabilities(WMT10, 1.0) == pytest.approx(shares)
    powers = [share**0.2 for share in shares]
    assert probabilities(WMT10, 5.0) == pytest.approx([power / sum(powers) for power in powers])
    assert probabilities(WMT10, 1e9) == pytest.approx([0.1] * 10)


def test_alpha_of_mt5_is_the_inverse():
    sizes = np.array([1000.0, 10.0])
    assert probabilities(log_shares(sizes), 1 / 0.3) == pytest.approx(sizes**0.3 / (sizes**0.3).sum())


def test_extreme_sizes_and_temperatures_stay_finite():
    assert probabilities(log_shares([1, 10**12]), 0.01).tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    "options",
    [
        {"temperature_start": 0.0},
        {"temperature_end": -1.0},
        {"change_steps": -1},
        {"change_steps": 9, "interval_steps": 0},
    ],
)
def test_options_that_cannot_be(options: dict):
    with pytest.raises(ValidationError, match=list(options)[-1]):
        TemperatureSampling(**options)


def test_shares_of_many_steps_are_those_of_each():
    sampling = TemperatureSampling(change_steps=100)
    shares = sampling.shares(np.array(WMT10_MILLIONS))
    together = shares(np.arange(12).reshape(3, 4))
    assert together.shape == (3, 4, 10)
    for step in range(12):
        assert together.reshape(12, 10)[step].tolist() == shares(np.array(step)).tolist()
        assert sampling.facts(step) == {"temperature": pytest.approx(1 + 4 * step / 100)}


def test_the_formula_in_exact_arithmetic():
    """Within a few units in the last place of 60 decimal digits, over all sizes and temperatures that occur."""
    exact = Context(prec=60)
    sizes = [1, 3, 70, 45_678, 10**6 + 3, 10**9, 10**12]
    for temperature in (0.5, 1.0, 1.8, 3.337, 5.0, 100.0):
        powers = [exact.power(Decimal(size), 1 / Decimal(temperature)) for size in sizes]
        expected = [float(exact.divide(power, sum(powers))) for power in powers]
        assert probabilities(log_shares(sizes), temperature) == pytest.approx(expected, rel=1e-14)
