"""Sums, logarithms and powers in the stated order and precision; test_sampler.py has them on other CPUs."""

from decimal import Context, Decimal

import numpy as np
import pytest

from deltalm_ds.data.portable_math import exponential, log_shares, ordered_sum


def test_sums_go_from_left_to_right():
    values = np.random.default_rng(0).random((3, 200))
    expected = []
    for row in values.tolist():
        total = 0.0
        for value in row:
            total += value
        expected.append(total)
    assert ordered_sum(values).tolist() == expected


def test_the_exponential_in_exact_arithmetic():
    values = np.concatenate([[0.0, -1e-300, -708.0], np.random.default_rng(0).uniform(-700, 0, 500)])
    exact = [float(Context(prec=40).exp(Decimal(value))) for value in values.tolist()]
    assert exponential(values) == pytest.approx(exact, rel=4e-16, abs=0)
    assert exponential(np.array([-1e9])).tolist() == [0.0]


def test_logarithms_are_relative_to_the_largest():
    assert log_shares([1000, 10, 1]) == pytest.approx(np.log([1.0, 0.01, 0.001]), rel=1e-15)
