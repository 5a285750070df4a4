"""Exact match, counted by hand."""

from deltalm_ds.evaluation.metrics import METRICS
from deltalm_ds.evaluation.metrics.interface import References


def test_to_the_letter_but_for_white_space():
    references = References(["Yes, he did.", "no", "one", "x"], "en", further=[(), (), ("two", "2"), ()])
    outputs = [" Yes,  he did. ", "No", "2", "y"]
    assert METRICS["exact_match"].scorer(references).score(outputs).value == 50
