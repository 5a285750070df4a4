"""TER: how many words must be changed, or runs of them moved, to make the reference [Snover+06]. Lower is better."""

from deltalm_ds.evaluation.metrics.interface import Metric, References, Scorer, sacrebleu_scorer
from deltalm_ds.evaluation.metrics.words import CHARACTERS, tokenizer_for

ASIAN = ("zh", "ja-mecab")  # BLEU's tokenizers of the scripts whose characters are TER's words


def scorer(references: References) -> Scorer:
    """TER in percent as sacreBLEU has it, without regard to case; Chinese and Japanese by characters."""
    from sacrebleu.metrics import TER

    tokenizer, _ = tokenizer_for(references)
    is_asian = tokenizer in ASIAN
    note = ""
    if tokenizer == CHARACTERS:
        note = "TER takes for a word what stands between spaces: it says little of a language written without them."
    return sacrebleu_scorer(TER(normalized=is_asian, asian_support=is_asian), references, note)


METRIC = Metric("ter", "TER", higher_is_better=False, scorer=scorer)
