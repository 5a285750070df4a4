"""What a metric of generated text is, and those that sacreBLEU computes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class References:
    """What outputs are compared with.

    Attributes:
        texts: one reference for each output.
        language: the code of their language; None if it is not known.
        tokenizer: what splits text into words, by sacreBLEU's name; None leaves the choice to the metric.
    """

    texts: Sequence[str]
    language: str | None = None
    tokenizer: str | None = None


@dataclass(frozen=True)
class Score:
    """How good some outputs are, and all settings that the number depends on, in sacreBLEU's form."""

    value: float
    signature: str


@dataclass(frozen=True)
class Scorer:
    """A metric made ready for some references.

    Attributes:
        score: outputs -> their score; there are as many as references.
        note: what a reader of the scores should know, as a sentence; empty for nothing.
    """

    score: Callable[[Sequence[str]], Score]
    note: str = ""


@dataclass(frozen=True)
class Metric:
    """A row of the table of metrics.

    Attributes:
        name: in options, recipes and files.
        title: in tables.
        higher_is_better: or else the lowest value is the best.
        scorer: gets everything that is needed for some references, so that what is missing is said before any
            translating. Raises InputError.
        takes_tokenizer: whether the references' `tokenizer` matters.
    """

    name: str
    title: str
    higher_is_better: bool
    scorer: Callable[[References], Scorer]
    takes_tokenizer: bool = False


def sacrebleu_scorer(metric: Any, references: References, note: str = "") -> Scorer:
    """The scorer of a metric object of sacreBLEU."""

    def score(outputs: Sequence[str]) -> Score:
        value = metric.corpus_score(list(outputs), [list(references.texts)]).score
        return Score(value, str(metric.get_signature()))

    return Scorer(score, note)
