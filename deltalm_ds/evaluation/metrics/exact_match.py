"""Exact match: outputs that are their reference, or one of them, to the letter."""

from collections.abc import Sequence

from deltalm_ds.evaluation.metrics.interface import Metric, References, Score, Scorer, share_score


def scorer(references: References) -> Scorer:
    """The share in percent; any run of white space counts as one space, and none at the ends."""
    accepted = [{_plain(text) for text in texts} for texts in references.of_each]

    def score(outputs: Sequence[str]) -> Score:
        matches = [_plain(output) in texts for output, texts in zip(outputs, accepted, strict=True)]
        return share_score(matches, f"nrefs:{references.number}|case:mixed|space:any")

    return Scorer(score)


def _plain(text: str) -> str:
    return " ".join(text.split())


METRIC = Metric("exact_match", "exact match", higher_is_better=True, scorer=scorer)
