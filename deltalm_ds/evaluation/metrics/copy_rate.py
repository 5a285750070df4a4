"""Copy rate: outputs that repeat their source instead of saying it in other words [Ott+18]."""

from collections import Counter
from collections.abc import Sequence

from deltalm_ds.evaluation.metrics.interface import SOURCES, Metric, References, Score, Scorer, share_score
from deltalm_ds.evaluation.metrics.words import UNICODE, words_of


def scorer(references: References) -> Scorer:
    """The share in percent of outputs of whose words at least half stand in the source; numbers are no words here."""
    sources = [_words(source) for source in references.sources]

    def score(outputs: Sequence[str]) -> Score:
        copies = [_is_copy(_words(output), source) for output, source in zip(outputs, sources, strict=True)]
        return share_score(copies, f"overlap:50%|case:lc|tok:{UNICODE}|numbers:no")

    return Scorer(score)


def _words(text: str) -> Counter[str]:
    return Counter(word for word in words_of(text) if not word.isnumeric())


def _is_copy(output: Counter[str], source: Counter[str]) -> bool:
    return 2 * (output & source).total() >= output.total() > 0


METRIC = Metric("copy_rate", "copies", higher_is_better=False, scorer=scorer, needs=(SOURCES,))
