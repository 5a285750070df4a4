"""The rates of the contenders: for every class that was asked for, and of the right product."""

import pytest
import torch

from deltalm_ds.kernels import linear_rates
from deltalm_ds.kernels.linear import CONTENDERS, MANY_OUTPUTS, PRODUCTS, Layer, class_of, contenders
from deltalm_ds.kernels.linear_rates import TOKENS, classes, measure

LAYERS = [Layer(96, 32, torch.float32), Layer(MANY_OUTPUTS + 1, 8, torch.float32)]


def test_every_class_gets_a_rate_of_every_contender() -> None:
    cases = classes(LAYERS, PRODUCTS)
    assert len(cases) == 2 * 3 + 2 * 2
    rates = measure(cases)
    assert rates.keys() == cases.keys()
    assert all(list(of_class) == contenders(torch.float32) for of_class in rates.values())
    assert all(rate > 0 for of_class in rates.values() for rate in of_class.values())


def test_names_are_those_that_layers_look_up() -> None:
    name = class_of("input_gradient", 1000, LAYERS[0])
    assert classes(LAYERS, PRODUCTS)[name] == ("input_gradient", max(TOKENS), LAYERS[0])


def test_what_is_multiplied(monkeypatch: pytest.MonkeyPatch) -> None:
    """Operands a [m, k] and b [n, k] of each product, of an output layer only as many rows as make a difference."""
    seen = set()
    monkeypatch.setitem(CONTENDERS, "torch", lambda a, b, bias: seen.add((*a.shape, *b.shape)))
    monkeypatch.setattr(linear_rates, "contenders", lambda dtype: ["torch"])
    measure(classes(LAYERS, PRODUCTS))
    expected = set()
    for tokens in TOKENS:
        expected |= {(tokens, 32, 96, 32), (tokens, 96, 32, 96), (96, tokens, 32, tokens)}
        expected |= {(tokens, 8, MANY_OUTPUTS, 8), (tokens, MANY_OUTPUTS, 8, MANY_OUTPUTS)}
    assert seen == expected


def test_it_ends_when_the_time_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two rounds are made in any case."""
    calls = []
    monkeypatch.setitem(CONTENDERS, "torch", lambda a, b, bias: calls.append(1))
    monkeypatch.setattr(linear_rates, "contenders", lambda dtype: ["torch"])
    monkeypatch.setattr(linear_rates, "SECONDS", 0.0)
    monkeypatch.setattr(linear_rates, "MIN_BILLIONS", 0.0)
    measure(classes(LAYERS[:1], ["forward"]))
    assert len(calls) == 2 * len(TOKENS)
