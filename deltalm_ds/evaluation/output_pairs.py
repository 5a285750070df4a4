"""Two directories of outputs, `en-de.hyp` and others, brought together with the test sets that they are for."""

import sys
from collections.abc import Sequence
from pathlib import Path

from deltalm_ds.errors import InputError
from deltalm_ds.evaluation.comparison import Pair
from deltalm_ds.evaluation.metrics.interface import References
from deltalm_ds.evaluation.test_sets import TestSet
from deltalm_ds.lines import read_lines


def read_pairs(first: Path, second: Path, test_sets: Sequence[TestSet], settings: References) -> list[Pair]:
    """The directions that both have; one that only one of them has is told on stderr.

    Args:
        first, second: directories.
        test_sets: what the outputs are judged by.
        settings: tokenizer and languages.

    Raises:
        InputError: they have no direction in common, or one has not as many outputs as references.
    """
    pairs = []
    for test in test_sets:
        files = [directory / f"{test.direction}.hyp" for directory in (first, second)]
        there = [path for path in files if path.is_file()]
        if len(there) == 1:
            print(f"{test.direction} is left out: there is {there[0]} alone.", file=sys.stderr)
        if len(there) == 2:
            ours, theirs = (_read(path, test) for path in files)
            references = test.as_references(settings.tokenizer, settings.languages)
            pairs.append(Pair(test.direction, ours, theirs, references))
    if not pairs:
        raise InputError(
            f"{first} and {second} have no outputs for a direction in common: expected files such as "
            f"{test_sets[0].direction}.hyp."
        )
    return pairs


def _read(path: Path, test: TestSet) -> list[str]:
    lines = read_lines(path)
    if len(lines) != len(test.references):
        raise InputError(
            f"{path} has {len(lines):,} lines, but {test.direction} has {len(test.references):,} references."
        )
    return lines
