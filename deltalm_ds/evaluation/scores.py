"""Scores by direction, and their summary for people, scripts and the report."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from deltalm_ds.errors import InputError, nearest
from deltalm_ds.evaluation.metrics import DEFAULT_METRICS, METRICS, find_metrics
from deltalm_ds.evaluation.metrics.interface import LANGUAGE, REFERENCES, SOURCES, Metric, References, Statistics
from deltalm_ds.evaluation.significance import RESAMPLES, SEED, interval, resampled_scores

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class DirectionScore:
    """The scores of one direction, such as `en-de`.

    Attributes:
        scores, signatures: by the metric's name; signatures make scores comparable [Post18].
        seconds: the time of translating.
        notes: what a reader of the scores should know, a sentence each.
        statistics: by the metric's name, of those that have some.
    """

    direction: str
    scores: dict[str, float]
    signatures: dict[str, str]
    num_sentences: int
    seconds: float = 0.0
    notes: tuple[str, ...] = ()
    hypotheses: tuple[str, ...] = field(default=(), repr=False)
    statistics: dict[str, Statistics] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def resampled(self) -> "dict[str, NDArray[np.float64]]":
        """The scores of resampled sentences, by the metric's name; of those with statistics."""
        if not self.statistics:
            return {}
        return dict(zip(self.statistics, resampled_scores(list(self.statistics.values())), strict=True))

    @cached_property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """What 95 % of the scores of resampled sentences lie in, by the metric's name; of those with statistics."""
        return {name: interval(scores) for name, scores in self.resampled.items()}

    def as_dict(self) -> dict[str, Any]:
        """All but the hypotheses, for JSON; each metric stands there by its own name too, as `bleu`."""
        return {
            "direction": self.direction,
            **self.scores,
            **{f"{name}_signature": signature for name, signature in self.signatures.items()},
            "scores": self.scores,
            "intervals": self.intervals,
            "num_sentences": self.num_sentences,
            "seconds": self.seconds,
            "notes": list(self.notes),
        }


class DirectionScorer:
    """The metrics of one direction, made ready for its references: what is missing is said before any translating.

    Args:
        direction: such as `en-de`, for messages and as the score's name.
        references: what outputs are judged by.
        metrics: names from `METRICS`.

    Raises:
        InputError: an unknown metric, or one that lacks something here.
    """

    def __init__(self, direction: str, references: References, metrics: Iterable[str] = DEFAULT_METRICS) -> None:
        chosen = find_metrics(metrics)
        _check_needs(direction, references, chosen)
        _check_tokenizer(references.tokenizer, chosen)
        self.direction = direction
        self.references = references
        self.scorers = {metric.name: metric.scorer(_for_metric(references, metric)) for metric in chosen}
        self.notes = _notes(direction, references, [scorer.note for scorer in self.scorers.values()])

    def score(self, hypotheses: Sequence[str], seconds: float = 0.0) -> DirectionScore:
        """The scores of some outputs; InputError if there are none, or not as many as references or sources."""
        for what, texts in (("references", self.references.texts), ("sources", self.references.sources)):
            if texts and len(hypotheses) != len(texts):
                raise InputError(f"{self.direction}: {len(hypotheses)} hypotheses for {len(texts)} {what}.")
        if not hypotheses:
            raise InputError(f"{self.direction}: there are no sentences to score.")
        found = {name: scorer.score(hypotheses) for name, scorer in self.scorers.items()}
        return DirectionScore(
            direction=self.direction,
            scores={name: score.value for name, score in found.items()},
            signatures={name: score.signature for name, score in found.items()},
            num_sentences=len(hypotheses),
            seconds=seconds,
            notes=self.notes,
            hypotheses=tuple(hypotheses),
            statistics={name: score.statistics for name, score in found.items() if score.statistics is not None},
        )


def _check_needs(direction: str, references: References, metrics: Sequence[Metric]) -> None:
    """Raise InputError if a metric cannot do without something that is not there, or it is there in part."""
    given = {REFERENCES: references.texts, SOURCES: references.sources, LANGUAGE: references.language}
    for need, value in given.items():
        names = [metric.name for metric in metrics if need in metric.needs]
        if names and not value:
            nothing = "there are no sentences to score: " if need == REFERENCES else ""
            raise InputError(f"{direction}: {nothing}{names[0]} needs {need}, and none is given.")
    texts, further, sources = len(references.texts), len(references.further), len(references.sources)
    if further and further != texts:
        raise InputError(f"{direction}: {further} groups of further references for {texts} references.")
    if texts and sources and texts != sources:
        raise InputError(f"{direction}: {texts} references for {sources} sources.")
    if texts and not any(map(str.strip, references.texts)):
        raise InputError(f"{direction}: all {texts} references are empty.")


def _for_metric(references: References, metric: Metric) -> References:
    """Without a tokenizer that is another metric's."""
    return references if references.tokenizer in metric.tokenizers else replace(references, tokenizer=None)


def _check_tokenizer(tokenizer: str | None, metrics: Sequence[Metric]) -> None:
    known = dict.fromkeys(name for metric in metrics for name in metric.tokenizers)
    if tokenizer is None or tokenizer in known:
        return
    if not known:
        splitting = ", ".join(name for name, metric in METRICS.items() if metric.tokenizers)
        raise InputError(f"A tokenizer changes nothing but {splitting}: leave it out, or add such a metric.")
    raise InputError(
        f"There is no tokenizer {tokenizer!r}, the nearest is {nearest(tokenizer, known)!r}: {', '.join(known)}."
    )


def _notes(direction: str, references: References, of_metrics: Sequence[str]) -> tuple[str, ...]:
    notes = [note for note in of_metrics if note]
    empty = [number for number, text in enumerate(references.texts, 1) if not text.strip()]
    if empty:
        notes.append(
            f"{direction}: {len(empty)} of {len(references.texts)} references are empty, the first in line {empty[0]}: "
            "whatever is said there counts as wrong."
        )
    return tuple(dict.fromkeys(notes))


def summarize(scores: Sequence[DirectionScore]) -> dict[str, Any]:
    """All directions, their plain averages, and what the metrics are called, for JSON."""
    names = list(scores[0].scores)
    return {
        "directions": [score.as_dict() for score in scores],
        **{f"average_{name}": sum(score.scores[name] for score in scores) / len(scores) for name in names},
        "metrics": {
            name: {"title": METRICS[name].title, "higher_is_better": METRICS[name].higher_is_better} for name in names
        },
        "bootstrap": {"resamples": RESAMPLES, "seed": SEED},
        "signatures": {name: sorted({score.signatures[name] for score in scores}) for name in names},
    }
