"""Two outputs for the same references side by side: metrics, where they differ, and how sure that is."""

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import chain
from typing import Any

from deltalm_ds.errors import InputError
from deltalm_ds.evaluation.metrics import METRICS
from deltalm_ds.evaluation.metrics.interface import References, Statistics
from deltalm_ds.evaluation.metrics.words import words_of
from deltalm_ds.evaluation.scores import DirectionScore, DirectionScorer
from deltalm_ds.evaluation.significance import Difference, agreement, difference, interval

LENGTHS = (0, 10, 20, 30, 40, 60)  # words of a reference, from which on a group goes
FREQUENCIES = (1, 2, 3, 5, 10, 100)  # occurrences of a word in the references, likewise


@dataclass(frozen=True)
class MetricPair:
    """A metric of both outputs.

    Attributes:
        first, second: (value, interval), or a value without interval where resampled sentences mean nothing.
        difference: what the second has more, with its test; None without intervals.
        agreement: in how many percent of such pairs of translation systems people agree [Kocmi+24]; None if unknown.
    """

    name: str
    title: str
    signature: str
    first: float
    second: float
    intervals: tuple[tuple[float, float], tuple[float, float]] | None
    difference: Difference | None
    agreement: float | None


@dataclass(frozen=True)
class Group:
    """A part of the sentences or words, and the value of both outputs there."""

    name: str
    count: int
    first: float
    second: float


@dataclass(frozen=True)
class Sentence:
    """A sentence with the value of both outputs by the ranking metric; `line` counts from 1."""

    line: int
    source: str | None
    reference: str
    first: str
    second: str
    first_value: float
    second_value: float


@dataclass(frozen=True)
class Comparison:
    """What is found when two outputs are compared.

    Attributes:
        ranked_by: the name of the metric that lengths and sentences are shown by.
        lengths: by words of the reference.
        frequencies: F1 of the words by how often they stand in all references.
        sentences: those that differ most by it, the largest difference first.
        notes: what a reader should know, a sentence each.
    """

    num_sentences: int
    metrics: list[MetricPair]
    ranked_by: str
    lengths: list[Group]
    frequencies: list[Group]
    sentences: list[Sentence]
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def compare_outputs(
    first: Sequence[str], second: Sequence[str], references: References, metrics: Iterable[str], num_shown: int
) -> Comparison:
    """Compare two outputs.

    Args:
        first, second: as many as there are references.
        references: what both are judged by.
        metrics: names from `METRICS`; the first one with statistics by sentence ranks.
        num_shown: of sentences, at most.

    Raises:
        InputError: as `DirectionScorer`; or no metric tells sentences apart, or there are no references.
    """
    scorer = DirectionScorer(references.language or "given", references, metrics)
    both = scorer.score(first), scorer.score(second)
    ranking = next(iter(both[0].statistics), None)
    if ranking is None or not references.texts:
        raise InputError("A comparison needs references, and a metric that tells sentences apart, such as chrf.")
    pair = both[0].statistics[ranking], both[1].statistics[ranking]
    return Comparison(
        num_sentences=both[0].num_sentences,
        metrics=_metric_pairs(*both),
        ranked_by=ranking,
        lengths=_by_length(references.texts, pair),
        frequencies=_by_frequency(references.texts, first, second),
        sentences=_most_different(first, second, references, pair, num_shown),
        notes=both[0].notes,
    )


def _metric_pairs(first: DirectionScore, second: DirectionScore) -> list[MetricPair]:
    pairs = []
    for name, value in first.scores.items():
        more = second.scores[name] - value
        own = (first.resampled[name], second.resampled[name]) if name in first.resampled else None
        pairs.append(
            MetricPair(
                name,
                METRICS[name].title,
                first.signatures[name],
                value,
                second.scores[name],
                None if own is None else (interval(own[0]), interval(own[1])),
                None if own is None else difference(*own, more),
                agreement(METRICS[name], more),
            )
        )
    return pairs


def _by_length(texts: Sequence[str], pair: tuple[Statistics, Statistics]) -> list[Group]:
    lengths = [len(words_of(text)) for text in texts]
    groups = []
    for name, is_in in _ranges(LENGTHS):
        chosen = [index for index, length in enumerate(lengths) if is_in(length)]
        if chosen:
            groups.append(Group(name, len(chosen), *(_score_of(each, chosen) for each in pair)))
    return groups


def _score_of(statistics: Statistics, sentences: list[int]) -> float:
    return statistics.score_of(statistics.rows[sentences].sum(axis=0))


def _by_frequency(texts: Sequence[str], first: Sequence[str], second: Sequence[str]) -> list[Group]:
    """F1 in percent, each occurrence in a reference to be found once in its own output."""
    references = [Counter(words_of(text)) for text in texts]
    frequency = Counter(chain.from_iterable(map(Counter.elements, references)))
    sides = [[Counter(words_of(output)) for output in outputs] for outputs in (first, second)]
    groups = []
    for name, is_in in _ranges(FREQUENCIES):
        words = {word for word, count in frequency.items() if is_in(count)}
        wanted = sum(frequency[word] for word in words)
        values = []
        for outputs in sides:
            found = sum(_count(output, words) for output in outputs)
            right = sum(_count(o & r, words) for o, r in zip(outputs, references, strict=True))
            values.append(200 * right / (found + wanted) if wanted else 0.0)
        if wanted:
            groups.append(Group(name, wanted, *values))
    return groups


def _count(words: Counter[str], chosen: set[str]) -> int:
    return sum(count for word, count in words.items() if word in chosen)


def _ranges(bounds: Sequence[int]) -> list[tuple[str, Callable[[int], bool]]]:
    """Named ranges from each bound to the next, the last one without end."""
    ranges: list[tuple[str, Callable[[int], bool]]] = []
    for low, end in zip(bounds, [*bounds[1:], None], strict=True):
        last = None if end is None else end - 1
        name = f"{low} and more" if last is None else f"{low}" if last == low else f"{low} to {last}"
        ranges.append((name, range(low, sys.maxsize if end is None else end).__contains__))
    return ranges


def _most_different(
    first: Sequence[str],
    second: Sequence[str],
    references: References,
    pair: tuple[Statistics, Statistics],
    num_shown: int,
) -> list[Sentence]:
    values = [[each.score_of(row) for row in each.rows] for each in pair]
    ranked = sorted(
        (index for index in range(len(first)) if first[index] != second[index]),
        key=lambda index: (-abs(values[1][index] - values[0][index]), index),
    )
    return [
        Sentence(
            line=index + 1,
            source=references.sources[index] if references.sources else None,
            reference=references.texts[index],
            first=first[index],
            second=second[index],
            first_value=values[0][index],
            second_value=values[1][index],
        )
        for index in ranked[:num_shown]
    ]
