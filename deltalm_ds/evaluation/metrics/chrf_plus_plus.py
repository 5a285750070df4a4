"""chrF2++: chrF2 with words and pairs of words [Popović17]."""

from deltalm_ds.evaluation.metrics.interface import Metric, References, Scorer, sacrebleu_scorer


def scorer(references: References) -> Scorer:
    """chrF2++ as sacreBLEU has it: beside chrF2's n-grams those of up to 2 words."""
    from sacrebleu.metrics import CHRF

    return sacrebleu_scorer(CHRF(word_order=2), references)


METRIC = Metric("chrf++", "chrF2++", higher_is_better=True, scorer=scorer)
