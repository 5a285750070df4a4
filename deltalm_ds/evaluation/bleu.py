"""BLEU and chrF of translations, by sacreBLEU, with the signatures that make them comparable [Post18]."""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from deltalm_ds.errors import InputError

DEFAULT_TOKENIZER = "13a"
TOKENIZERS = {"zh": "zh", "ja": "ja-mecab", "ko": "ko-mecab"}  # languages that 13a does not split into words


@dataclass(frozen=True)
class DirectionScore:
    """The scores of one direction, such as `en-de`; `seconds` is the time of translating."""

    direction: str
    bleu: float
    chrf: float
    bleu_signature: str
    chrf_signature: str
    num_sentences: int
    seconds: float = 0.0
    hypotheses: tuple[str, ...] = field(default=(), repr=False)

    def as_dict(self) -> dict[str, Any]:
        """All but the hypotheses, for JSON."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "hypotheses"}


def score_hypotheses(
    direction: str,
    hypotheses: Sequence[str],
    references: Sequence[str],
    tokenizer: str | None = None,
    seconds: float = 0.0,
) -> DirectionScore:
    """Corpus BLEU and chrF2 of one direction against one reference, case-sensitive, detokenised.

    Args:
        tokenizer: one of sacreBLEU's; None takes the one for the target language (the end of `direction`).

    Raises:
        InputError: nothing to score, different counts, or a tokenizer that sacreBLEU does not have here.
    """
    from sacrebleu.metrics import BLEU, CHRF

    if len(hypotheses) != len(references):
        raise InputError(f"{direction}: {len(hypotheses)} hypotheses for {len(references)} references.")
    if not references:
        raise InputError(f"{direction}: there are no sentences to score.")
    tokenizer = tokenizer or TOKENIZERS.get(direction.rpartition("-")[2], DEFAULT_TOKENIZER)
    if tokenizer not in BLEU.TOKENIZERS:
        raise InputError(f"There is no tokenizer {tokenizer!r}: sacreBLEU has {', '.join(BLEU.TOKENIZERS)}.")
    try:
        bleu, chrf = BLEU(tokenize=tokenizer), CHRF()
    except (ImportError, RuntimeError) as error:
        raise InputError(f"sacreBLEU's tokenizer {tokenizer!r} is not installed here: {error}") from None
    bleu_score, chrf_score = (
        metric.corpus_score(list(hypotheses), [list(references)]).score for metric in (bleu, chrf)
    )
    return DirectionScore(
        direction=direction,
        bleu=bleu_score,
        chrf=chrf_score,
        bleu_signature=str(bleu.get_signature()),
        chrf_signature=str(chrf.get_signature()),
        num_sentences=len(references),
        seconds=seconds,
        hypotheses=tuple(hypotheses),
    )


def summarize(scores: Sequence[DirectionScore]) -> dict[str, Any]:
    """The scores of all directions and their plain averages, for JSON."""
    averages = {f"average_{name}": sum(getattr(s, name) for s in scores) / len(scores) for name in ("bleu", "chrf")}
    return {"directions": [score.as_dict() for score in scores], **averages}
