"""Two outputs for the same references side by side: metrics, where they differ, and how sure that is.

Several directions are compared at once; what is said of all is the mean over them, as in tables of the paper.
"""

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
from deltalm_ds.evaluation.significance import Difference, agreement, difference, interval, mean_of

LENGTHS = (0, 10, 20, 30, 40, 60)  # words of a reference, from which on a group goes
FREQUENCIES = (1, 2, 3, 5, 10, 100)  # occurrences of a word in the references, likewise


@dataclass(frozen=True)
class Pair:
    """Two outputs of one direction. direction: such as `en-de`; references: what both are judged by."""

    direction: str
    first: Sequence[str]
    second: Sequence[str]
    references: References


@dataclass(frozen=True)
class MetricPair:
    """A metric of both outputs.

    Attributes:
        signatures: of one direction one, or several where the metric has other settings for some.
        first, second: values, means over the directions.
        intervals: of both; None where resampled sentences mean nothing.
        difference: what the second has more, with its test; None without intervals.
        agreement: in how many percent of such pairs of translation systems people agree [Kocmi+24]; None if unknown.
    """

    name: str
    title: str
    signatures: tuple[str, ...]
    first: float
    second: float
    intervals: tuple[tuple[float, float], tuple[float, float]] | None
    difference: Difference | None
    agreement: float | None


@dataclass(frozen=True)
class DirectionPair:
    """The metrics of one of several directions."""

    direction: str
    num_sentences: int
    metrics: list[MetricPair]


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

    direction: str
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
        metrics: of the one direction, or means over all.
        directions: each of several; empty where there is one.
        ranked_by: the name of the metric that lengths and sentences are shown by.
        lengths: by words of the reference; of several directions the mean by their numbers of sentences.
        frequencies: F1 of the words by how often they stand in all references of their direction.
        sentences: those that differ most by it, the largest difference first.
        notes: what a reader should know, a sentence each.
    """

    num_sentences: int
    metrics: list[MetricPair]
    directions: list[DirectionPair]
    ranked_by: str
    lengths: list[Group]
    frequencies: list[Group]
    sentences: list[Sentence]
    notes: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


@dataclass(frozen=True)
class _Scored:
    """A pair with the scores of both outputs."""

    pair: Pair
    first: DirectionScore
    second: DirectionScore

    def statistics(self, name: str) -> tuple[Statistics, Statistics]:
        return self.first.statistics[name], self.second.statistics[name]


def compare_outputs(pairs: Sequence[Pair], metrics: Iterable[str], num_shown: int) -> Comparison:
    """Compare two outputs.

    Args:
        pairs: at least one.
        metrics: names from `METRICS`; the first one with statistics by sentence ranks.
        num_shown: of sentences, at most.

    Raises:
        InputError: as `DirectionScorer`; or no metric tells sentences apart, or there are no references.
    """
    metrics = tuple(metrics)
    scored = []
    for pair in pairs:
        scorer = DirectionScorer(pair.direction, pair.references, metrics)
        scored.append(_Scored(pair, scorer.score(pair.first), scorer.score(pair.second)))
    ranking = next(iter(scored[0].first.statistics), None)
    if ranking is None or not all(pair.references.texts for pair in pairs):
        raise InputError("A comparison needs references, and a metric that tells sentences apart, such as chrf.")
    by_direction = [
        DirectionPair(each.pair.direction, each.first.num_sentences, _metric_pairs([each])) for each in scored
    ]
    return Comparison(
        num_sentences=sum(each.num_sentences for each in by_direction),
        metrics=_metric_pairs(scored),
        directions=by_direction if len(scored) > 1 else [],
        ranked_by=ranking,
        lengths=_by_length(scored, ranking),
        frequencies=_by_frequency(pairs),
        sentences=_most_different(scored, ranking, num_shown),
        notes=tuple(dict.fromkeys(note for each in scored for note in each.first.notes)),
    )


def _metric_pairs(scored: Sequence[_Scored]) -> list[MetricPair]:
    """Of each metric the mean over directions."""
    sides = [each.first for each in scored], [each.second for each in scored]
    pairs = []
    for name in sides[0][0].scores:
        first, second = (sum(score.scores[name] for score in side) / len(side) for side in sides)
        own = None
        if all(name in score.resampled for side in sides for score in side):
            own = [mean_of([score.resampled[name] for score in side]) for side in sides]
        pairs.append(
            MetricPair(
                name,
                METRICS[name].title,
                tuple(sorted({score.signatures[name] for score in sides[0]})),
                first,
                second,
                None if own is None else (interval(own[0]), interval(own[1])),
                None if own is None else difference(own[0], own[1], second - first),
                agreement(METRICS[name], second - first),
            )
        )
    return pairs


def _by_length(scored: Sequence[_Scored], ranking: str) -> list[Group]:
    lengths = [[len(words_of(text)) for text in each.pair.references.texts] for each in scored]
    groups = []
    for name, is_in in _ranges(LENGTHS):
        chosen = [[index for index, length in enumerate(of_each) if is_in(length)] for of_each in lengths]
        count = sum(map(len, chosen))
        if count:
            sums = [0.0, 0.0]
            for each, sentences in zip(scored, chosen, strict=True):
                for side, statistics in enumerate(each.statistics(ranking) if sentences else ()):
                    sums[side] += len(sentences) * _score_of(statistics, sentences)
            groups.append(Group(name, count, sums[0] / count, sums[1] / count))
    return groups


def _score_of(statistics: Statistics, sentences: list[int]) -> float:
    return statistics.score_of(statistics.rows[sentences].sum(axis=0))


def _by_frequency(pairs: Sequence[Pair]) -> list[Group]:
    """F1 in percent, each occurrence in a reference to be found once in its own output."""
    counted = [_Words.of(pair) for pair in pairs]
    groups = []
    for name, is_in in _ranges(FREQUENCIES):
        wanted, right, found = 0, [0, 0], [0, 0]
        for each in counted:
            words = {word for word, count in each.frequency.items() if is_in(count)}
            wanted += sum(each.frequency[word] for word in words)
            for side, outputs in enumerate(each.outputs):
                found[side] += sum(_count(output, words) for output in outputs)
                right[side] += sum(_count(o & r, words) for o, r in zip(outputs, each.references, strict=True))
        if wanted:
            groups.append(Group(name, wanted, *(200 * right[side] / (found[side] + wanted) for side in (0, 1))))
    return groups


@dataclass(frozen=True)
class _Words:
    """The words of a pair: of each reference, in all of them, of each output of either side."""

    references: list[Counter[str]]
    frequency: Counter[str]
    outputs: tuple[list[Counter[str]], list[Counter[str]]]

    @classmethod
    def of(cls, pair: Pair) -> "_Words":
        references, first, second = (
            [Counter(words_of(text)) for text in texts] for texts in (pair.references.texts, pair.first, pair.second)
        )
        return cls(references, Counter(chain.from_iterable(map(Counter.elements, references))), (first, second))


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


def _most_different(scored: Sequence[_Scored], ranking: str, num_shown: int) -> list[Sentence]:
    found = []
    for each in scored:
        pair, (first, second) = each.pair, each.statistics(ranking)
        for index, (ours, theirs) in enumerate(zip(pair.first, pair.second, strict=True)):
            if ours != theirs:
                values = first.score_of(first.rows[index]), second.score_of(second.rows[index])
                source = pair.references.sources[index] if pair.references.sources else None
                reference = pair.references.texts[index]
                found.append(Sentence(pair.direction, index + 1, source, reference, ours, theirs, *values))
    return sorted(found, key=lambda sentence: -abs(sentence.second_value - sentence.first_value))[:num_shown]
