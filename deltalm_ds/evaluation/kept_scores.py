"""What metrics count in the sentences of outputs, in parts, kept by all that it depends on.

A score, its interval and every test follow from these counts, so that a second run only reads them. A metric's
signature names all settings that its numbers depend on, so it decides here too.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deltalm_ds.data_tools.workers import Workers
from deltalm_ds.evaluation.metrics.interface import Score, Statistics, score_from
from deltalm_ds.evaluation.scores import DirectionScore
from deltalm_ds.evaluation.test_sets import TestSet
from deltalm_ds.evaluation.translation import make_scorer
from deltalm_ds.files import atomic_file
from deltalm_ds.progress import progress

PART_LINES = 2_000


@dataclass(frozen=True)
class CountedPart:
    """Some lines of outputs, what they are judged by, and the file that keeps what a metric counts there."""

    test: TestSet
    hypotheses: Sequence[str]
    metric: str
    languages: Sequence[str]
    path: Path


def count(parts: Iterable[CountedPart], workers: Workers) -> None:
    """See to it that the counts of all parts are there; InputError if a process died."""
    missing = {part.path: part for part in parts if not part.path.exists()}
    if missing:
        with progress("score", sum(len(part.hypotheses) for part in missing.values())) as advance:
            for num_lines in workers.run(_count_part, missing.values()):
                advance(num_lines)


class KeptScores:
    """Scores of outputs for a test set.

    Args:
        directory: keeps the counts.
        test: what outputs are judged by.
        metrics: names from `METRICS`.
        languages: those that an output may be in by mistake; none for any.

    Raises:
        InputError: a metric is unknown, or lacks something.
    """

    def __init__(self, directory: Path, test: TestSet, metrics: Sequence[str], languages: Sequence[str]) -> None:
        self._directory, self._test, self._languages = directory, test, languages
        self._scorer = make_scorer(test, metrics, languages)
        few = _with_all_numbers_of_references(test)
        self._of_few = make_scorer(few, metrics, languages).score(few.references)  # has signatures and formulas

    def parts(self, hypotheses: Sequence[str]) -> Iterator[CountedPart]:
        """What `count` is to make for some outputs."""
        for metric in self._of_few.statistics:
            yield from self._parts_of(metric, hypotheses)

    def read(self, hypotheses: Sequence[str], seconds: float) -> DirectionScore:
        """The scores of outputs whose parts were counted. seconds: the time of making them."""
        found = {name: self._score(name, hypotheses) for name in self._of_few.scores}
        return DirectionScore(
            direction=self._test.direction,
            scores={name: score.value for name, score in found.items()},
            signatures={name: score.signature for name, score in found.items()},
            num_sentences=len(hypotheses),
            seconds=seconds,
            notes=self._scorer.notes,
            hypotheses=tuple(hypotheses),
            statistics={name: score.statistics for name, score in found.items() if score.statistics is not None},
        )

    def _score(self, metric: str, hypotheses: Sequence[str]) -> Score:
        if metric not in self._of_few.statistics:  # what it counts is of all outputs together
            return self._scorer.scorers[metric].score(hypotheses)
        rows = np.concatenate([np.load(part.path) for part in self._parts_of(metric, hypotheses)])
        formula = self._of_few.statistics[metric].score_of
        return score_from(Statistics(rows, formula), self._of_few.signatures[metric])

    def _parts_of(self, metric: str, hypotheses: Sequence[str]) -> Iterator[CountedPart]:
        for start in range(0, len(hypotheses), PART_LINES):
            test, lines = self._test.part(start, start + PART_LINES), hypotheses[start : start + PART_LINES]
            decided_by = [
                *(metric, self._of_few.signatures[metric], test.direction),
                *(list(test.sources), list(test.references), list(map(list, test.further_references)), list(lines)),
            ]
            key = hashlib.sha256(json.dumps(decided_by).encode()).hexdigest()
            yield CountedPart(test, lines, metric, self._languages, self._directory / f"{key[:32]}.npy")


def _count_part(part: CountedPart) -> int:
    """Write what a metric counts in a part; returns the number of lines."""
    score = make_scorer(part.test, [part.metric], part.languages).scorers[part.metric].score(part.hypotheses)
    assert score.statistics is not None
    with atomic_file(part.path, "wb") as file:
        np.save(file, score.statistics.rows)
    return len(part.hypotheses)


def _with_all_numbers_of_references(test: TestSet) -> TestSet:
    """A sentence with the fewest references and one with the most: signatures tell whether the number differs."""
    numbers = [len(texts) for texts in test.further_references] or [0] * len(test.references)
    there = [index for index, text in enumerate(test.references) if text.strip()] or [0]
    chosen = {min(there, key=numbers.__getitem__), max(there, key=numbers.__getitem__)}
    first, *others = (test.part(index, index + 1) for index in sorted(chosen))
    for other in others:
        first = TestSet(
            test.direction,
            [*first.sources, *other.sources],
            [*first.references, *other.references],
            [*first.further_references, *other.further_references],
        )
    return first
