"""Translating test sets and scoring the result, direction by direction."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deltalm_ds.errors import InputError
from deltalm_ds.evaluation.bleu import DirectionScore, score_hypotheses
from deltalm_ds.generation.interface import Engine, SearchOptions
from deltalm_ds.generation.translate import encoder_for, translate
from deltalm_ds.lines import read_parallel_lines
from deltalm_ds.vocabulary import Vocabulary


@dataclass(frozen=True)
class TestSet:
    """Sources and references of one direction, such as `en-de`."""

    __test__ = False  # not a test, whatever pytest thinks of the name

    direction: str
    sources: Sequence[str]
    references: Sequence[str]

    def __post_init__(self) -> None:
        if len(self.sources) != len(self.references):
            counts = f"{len(self.sources)} sources and {len(self.references)} references"
            raise InputError(f"{self.direction}: {counts}: the two files must have the same number of lines.")

    @property
    def target_lang(self) -> str:
        """The language translated into."""
        return self.direction.rpartition("-")[2]


def read_test_sets(directory: str | Path, split: str, directions: Sequence[str] | None = None) -> list[TestSet]:
    """Test sets from files `{split}.{pair}.{lang}` (`test.en-de.en`, `test.en-de.de`), which serve both directions.

    Args:
        directions: such as `en-de`; None takes both directions of every pair, in alphabetical order.

    Raises:
        InputError: there are no such files, a direction has none, or two files differ in length.
    """
    pairs = {path.name.split(".")[-2] for path in Path(directory).glob(f"{split}.*-*.*")}
    if not pairs:
        raise InputError(f"{directory} has no test sets: expected files such as {split}.en-de.en, {split}.en-de.de.")
    pair_of = {reverse_of(pair): pair for pair in pairs} | {pair: pair for pair in pairs}
    test_sets = []
    for direction in directions or sorted(pair_of):
        if direction not in pair_of:
            raise InputError(f"{directory} has no {split} set for {direction!r}; it has {', '.join(sorted(pair_of))}.")
        files = [Path(directory) / f"{split}.{pair_of[direction]}.{lang}" for lang in direction.split("-")]
        test_sets.append(TestSet(direction, *read_parallel_lines(*files)))
    return test_sets


def reverse_of(direction: str) -> str:
    """`en-de` -> `de-en`."""
    return "-".join(reversed(direction.split("-")))


def evaluate_directions(
    engine: Engine,
    vocabulary: Vocabulary,
    test_sets: Sequence[TestSet],
    options: SearchOptions,
    tokenizer: str | None = None,
) -> list[DirectionScore]:
    """Translate each test set (the best hypothesis) and score it; `tokenizer` as in `score_hypotheses`.

    Raises:
        InputError: a target language has no tag in a vocabulary that has tags.
    """
    encoders = [encoder_for(vocabulary, test.target_lang if vocabulary.languages else None) for test in test_sets]
    scores = []
    for test, encode in zip(test_sets, encoders, strict=True):
        start = time.perf_counter()
        outputs = translate(engine, test.sources, encode, options, what=f"translate {test.direction}")
        hypotheses = [vocabulary.decode(found[0].ids) for found in outputs]
        seconds = time.perf_counter() - start
        scores.append(score_hypotheses(test.direction, hypotheses, test.references, tokenizer, seconds))
    return scores
