"""Copy rate, counted by hand."""

import pytest

from deltalm_ds.evaluation.metrics import METRICS
from deltalm_ds.evaluation.metrics.interface import References


@pytest.mark.parametrize(
    ("source", "output", "is_copy"),
    [
        ("The house is red.", "The house is red.", True),
        ("The house is red.", "Das Haus ist rot.", False),
        ("Peter met Anna Klein in Bonn", "Peter traf Anna Klein in Bonn", True),
        ("Peter sleeps", "Peter schläft", True),  # half of the words
        ("Peter sleeps well", "Peter schläft gut", False),
        ("Hello Hello", "Hello Hello Hello nein nein nein", False),  # two of six stand there, not three
        ("12 of 15, 2019", "12 von 15, 2019", False),  # numbers are no words
        ("anything", "", False),
        ("今天很好", "今天不好", True),
    ],
)
def test_half_of_the_words_from_the_source_is_a_copy(source, output, is_copy):
    found = METRICS["copy_rate"].scorer(References(sources=[source, "x"])).score([output, "nichts"])
    assert found.value == (50 if is_copy else 0)
