"""Distinct-n: how many of all words, or pairs of words, of the outputs are different ones [Li+16]."""

from collections.abc import Sequence
from functools import partial

from deltalm_ds.evaluation.metrics.interface import Metric, References, Score, Scorer
from deltalm_ds.evaluation.metrics.words import UNICODE, words_of


def scorer(_references: References, n: int) -> Scorer:
    """In percent of the n-grams of all outputs together: it falls with their number, and compares equal numbers only.

    There are no statistics by sentence: a sample that has a sentence twice has fewer different n-grams for that alone.
    """

    def score(outputs: Sequence[str]) -> Score:
        seen, total = set(), 0
        for output in outputs:
            words = words_of(output)
            found = list(zip(*(words[i:] for i in range(n)), strict=False))
            seen.update(found)
            total += len(found)
        return Score(100 * len(seen) / max(total, 1), f"n:{n}|case:lc|tok:{UNICODE}|of:all")

    return Scorer(score)


METRICS = tuple(
    Metric(f"distinct_{n}", f"distinct-{n}", higher_is_better=True, scorer=partial(scorer, n=n), needs=())
    for n in (1, 2)
)
