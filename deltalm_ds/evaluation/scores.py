"""Scores by direction, and their summary for people, scripts and the report."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from deltalm_ds.errors import InputError
from deltalm_ds.evaluation.metrics import DEFAULT_METRICS, METRICS, find_metrics
from deltalm_ds.evaluation.metrics.interface import References


@dataclass(frozen=True)
class DirectionScore:
    """The scores of one direction, such as `en-de`.

    Attributes:
        scores, signatures: by the metric's name; signatures make scores comparable [Post18].
        seconds: the time of translating.
        notes: what a reader of the scores should know, a sentence each.
    """

    direction: str
    scores: dict[str, float]
    signatures: dict[str, str]
    num_sentences: int
    seconds: float = 0.0
    notes: tuple[str, ...] = ()
    hypotheses: tuple[str, ...] = field(default=(), repr=False)

    def as_dict(self) -> dict[str, Any]:
        """All but the hypotheses, for JSON; each metric stands there by its own name too, as `bleu`."""
        return {
            "direction": self.direction,
            **self.scores,
            **{f"{name}_signature": signature for name, signature in self.signatures.items()},
            "scores": self.scores,
            "num_sentences": self.num_sentences,
            "seconds": self.seconds,
            "notes": list(self.notes),
        }


class DirectionScorer:
    """The metrics of one direction, made ready for its references: what is missing is said before any translating.

    Args:
        direction: such as `en-de`, for messages and as the score's name.
        references: what outputs are compared with.
        metrics: names from `METRICS`.

    Raises:
        InputError: no references, an unknown metric, or one that lacks something here.
    """

    def __init__(self, direction: str, references: References, metrics: Iterable[str] = DEFAULT_METRICS) -> None:
        if not references.texts:
            raise InputError(f"{direction}: there are no sentences to score.")
        chosen = find_metrics(metrics)
        if references.tokenizer and not any(metric.takes_tokenizer for metric in chosen):
            splitting = ", ".join(name for name, metric in METRICS.items() if metric.takes_tokenizer)
            raise InputError(f"A tokenizer changes nothing but {splitting}: leave it out, or add such a metric.")
        self.direction = direction
        self.references = references
        self.scorers = {metric.name: metric.scorer(references) for metric in chosen}

    def score(self, hypotheses: Sequence[str], seconds: float = 0.0) -> DirectionScore:
        """The scores of some outputs; InputError if there are not as many as references."""
        num_sentences = len(self.references.texts)
        if len(hypotheses) != num_sentences:
            raise InputError(f"{self.direction}: {len(hypotheses)} hypotheses for {num_sentences} references.")
        found = {name: scorer.score(hypotheses) for name, scorer in self.scorers.items()}
        return DirectionScore(
            direction=self.direction,
            scores={name: score.value for name, score in found.items()},
            signatures={name: score.signature for name, score in found.items()},
            num_sentences=num_sentences,
            seconds=seconds,
            notes=tuple(dict.fromkeys(scorer.note for scorer in self.scorers.values() if scorer.note)),
            hypotheses=tuple(hypotheses),
        )


def summarize(scores: Sequence[DirectionScore]) -> dict[str, Any]:
    """All directions, their plain averages, and what the metrics are called, for JSON."""
    names = list(scores[0].scores)
    return {
        "directions": [score.as_dict() for score in scores],
        **{f"average_{name}": sum(score.scores[name] for score in scores) / len(scores) for name in names},
        "metrics": {
            name: {"title": METRICS[name].title, "higher_is_better": METRICS[name].higher_is_better} for name in names
        },
        "signatures": {name: sorted({score.signatures[name] for score in scores}) for name in names},
    }
