"""What a metric of generated text is, and those that sacreBLEU computes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from deltalm_ds.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

REFERENCES, SOURCES, LANGUAGE = "references (--reference)", "sources (--source)", "a language (--target-lang)"
"""What a metric may need beside the outputs."""
SENTENCES_AT_ONCE = 1_000  # sacreBLEU keeps the n-grams of all references that it is given: 0.7 MB each thousandth


@dataclass(frozen=True)
class References:
    """What outputs are judged by; what no metric at hand needs may be left out.

    Attributes:
        texts: a reference for each output.
        language: the code of their language; None if it is not known.
        tokenizer: what splits text into words, by a name that a metric has; None leaves the choice to the metric.
        further: for each output the references it has beside that of `texts`, any number; empty where none has any.
        sources: what each output was made from.
        languages: codes of those that an output may be in by mistake, such as all of the model's; empty for any.
    """

    texts: Sequence[str] = ()
    language: str | None = None
    tokenizer: str | None = None
    further: Sequence[Sequence[str]] = ()
    sources: Sequence[str] = ()
    languages: Sequence[str] = ()

    @property
    def of_each(self) -> list[tuple[str, ...]]:
        """All references of each output."""
        further = self.further or [()] * len(self.texts)
        return [(text, *others) for text, others in zip(self.texts, further, strict=True)]

    @property
    def number(self) -> str:
        """How many an output has, as sacreBLEU writes it: `1`, or `var` where it differs."""
        numbers = {1 + len(others) for others in self.further} or {1}
        return str(numbers.pop()) if len(numbers) == 1 else "var"


@dataclass(frozen=True, eq=False)
class Statistics:
    """What a metric counts in each sentence, such that the score of any sentences follows from the sums.

    Attributes:
        rows: [sentences, counts] float64.
        score_of: sums [counts] -> score.
    """

    rows: "NDArray[np.float64]"
    score_of: "Callable[[NDArray[np.float64]], float]"


@dataclass(frozen=True)
class Score:
    """How good some outputs are.

    Attributes:
        value: of all of them together.
        signature: all settings that the number depends on, in sacreBLEU's form.
        statistics: what it was computed from, where resampled sentences mean something.
    """

    value: float
    signature: str
    statistics: Statistics | None = field(default=None, repr=False)


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
        higher_is_better: or else the lowest value is the best; None: neither end is, and it cannot be ranked by.
        scorer: gets everything that is needed for some references, so that what is missing is said before any
            translating. Raises InputError.
        needs: what it cannot do without, of `REFERENCES`, `SOURCES` and `LANGUAGE`.
        tokenizers: the names that the references' `tokenizer` may have.
        agreement: a and b of the share a / (1 + exp(-b × difference)), in percent, of pairs of translation systems in
            which people prefer the one that the metric does [Kocmi+24]; None where it was not measured.
    """

    name: str
    title: str
    higher_is_better: bool | None
    scorer: Callable[[References], Scorer]
    needs: tuple[str, ...] = (REFERENCES,)
    tokenizers: tuple[str, ...] = ()
    agreement: tuple[float, float] | None = None


def sacrebleu_scorer(metric: Any, references: References, note: str = "") -> Scorer:
    """The scorer of a metric object of sacreBLEU."""
    import numpy as np

    of_each = references.of_each
    most = max(map(len, of_each), default=0)
    streams = [[texts[i] if i < len(texts) else None for texts in of_each] for i in range(most)]

    def score_of(sums: "NDArray[np.float64]") -> float:
        return metric._compute_score_from_stats(sums.tolist()).score

    def score(outputs: Sequence[str]) -> Score:
        rows: list[list[float]] = []
        for start in range(0, len(outputs), SENTENCES_AT_ONCE):
            part = slice(start, start + SENTENCES_AT_ONCE)
            rows += metric._extract_corpus_statistics(outputs[part], [stream[part] for stream in streams])
            metric._force = True  # that text looks tokenised is said once
        metric.num_refs = -1 if references.number == "var" else int(references.number)  # not that of the last part
        return score_from(Statistics(np.array(rows, dtype=np.float64), score_of), str(metric.get_signature()))

    return Scorer(score, note)


def score_from(statistics: Statistics, signature: str) -> Score:
    """The score of all sentences together."""
    return Score(statistics.score_of(statistics.rows.sum(axis=0)), signature, statistics)


def share_score(values: Sequence[float], signature: str) -> Score:
    """The mean of a value from 0 to 1 of each sentence, in percent."""
    return ratio_score([(100 * value, 1) for value in values], signature)


def ratio_score(rows: Sequence[tuple[float, float]], signature: str) -> Score:
    """What the first counts of all sentences are to the second; NaN if there is nothing of these."""
    import numpy as np

    def score_of(sums: "NDArray[np.float64]") -> float:
        return float(sums[0] / sums[1]) if sums[1] else float("nan")

    return score_from(Statistics(np.array(rows, dtype=np.float64), score_of), signature)


def package_for(metric: str, package: str) -> ModuleType:
    """A package that not every installation has; InputError with what to install."""
    try:
        return import_module(package)
    except ImportError:
        raise InputError(
            f"{metric} needs the package {package.partition('.')[0]}: pip install 'deltalm-ds[eval]'."
        ) from None
