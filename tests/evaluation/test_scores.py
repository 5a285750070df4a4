"""Scores of given outputs: what is refused."""

import pytest

from deltalm_ds.errors import InputError
from deltalm_ds.evaluation.metrics.interface import References
from deltalm_ds.evaluation.scores import DirectionScorer


def test_counts_that_differ_are_refused():
    with pytest.raises(InputError, match="en-de: 1 hypotheses for 2 references"):
        DirectionScorer("en-de", References(["a", "b"], "de")).score(["a"])
    with pytest.raises(InputError, match="no sentences"):
        DirectionScorer("en-de", References([], "de"))
