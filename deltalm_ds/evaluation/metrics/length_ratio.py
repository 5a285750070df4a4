"""Length ratio: how many words outputs have for each word of the references."""

from collections.abc import Sequence

from deltalm_ds.evaluation.metrics.interface import Metric, References, Score, Scorer, ratio_score
from deltalm_ds.evaluation.metrics.words import UNICODE, words_of


def scorer(references: References) -> Scorer:
    """Words of all outputs over those of all references, of several the one closest in length; 1 is as long.

    Neither long nor short is better, so it says what is wrong and ranks nothing.
    """
    lengths = [[len(words_of(text)) for text in texts] for texts in references.of_each]

    def score(outputs: Sequence[str]) -> Score:
        found = [len(words_of(output)) for output in outputs]
        closest = [_closest(own, of_one) for own, of_one in zip(found, lengths, strict=True)]
        return ratio_score(list(zip(found, closest, strict=True)), f"nrefs:{references.number}|tok:{UNICODE}")

    return Scorer(score)


def _closest(own: int, lengths: Sequence[int]) -> int:
    """The shorter one of two that are equally close."""
    return min(lengths, key=lambda length: (abs(length - own), length))


METRIC = Metric("length_ratio", "length ratio", higher_is_better=None, scorer=scorer)
