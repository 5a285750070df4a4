"""chrF2: character n-grams, whatever a language takes for words [Popović15]."""

from deltalm_ds.evaluation.metrics.interface import Metric, References, Scorer, sacrebleu_scorer


def scorer(references: References) -> Scorer:
    """chrF2 as sacreBLEU has it: n-grams of up to 6 characters, recall counted twice."""
    from sacrebleu.metrics import CHRF

    return sacrebleu_scorer(CHRF(), references)


METRIC = Metric("chrf", "chrF2", higher_is_better=True, scorer=scorer, agreement=(92.999999999972, 1.1142732157139852))
