"""Test sets: sources and references of a direction, from files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from deltalm_ds.errors import InputError
from deltalm_ds.languages import split_codes, split_pair
from deltalm_ds.lines import read_parallel_lines


@dataclass(frozen=True)
class TestSet:
    """Sources and references of one direction, such as `en-de`; of a language alone where the source's is not known."""

    __test__ = False  # not a test, whatever pytest thinks of the name

    direction: str
    sources: Sequence[str]
    references: Sequence[str]

    @property
    def target_lang(self) -> str:
        """The language translated into."""
        return split_codes(self.direction)[-1]


def read_test_sets(directory: str | Path, split: str, directions: Sequence[str] | None = None) -> list[TestSet]:
    """Test sets from files `{split}.{pair}.{lang}` (`test.en-de.en`, `test.en-de.de`), which serve both directions.

    Args:
        directions: such as `en-de`; None takes both directions of every pair, in alphabetical order.

    Raises:
        InputError: there are no such files, a direction has none, or two files differ in length.
    """
    pairs = {pair for path in Path(directory).glob(f"{split}.*") if (pair := _pair_of_file(path.name, split))}
    if not pairs:
        raise InputError(f"{directory} has no test sets: expected files such as {split}.en-de.en, {split}.en-de.de.")
    pair_of = {_reverse(pair): pair for pair in pairs} | {pair: pair for pair in pairs}
    test_sets = []
    for direction in directions or sorted(pair_of):
        languages = split_pair(direction)
        if direction not in pair_of:
            raise InputError(f"{directory} has no {split} set for {direction!r}; it has {', '.join(sorted(pair_of))}.")
        files = [Path(directory) / f"{split}.{pair_of[direction]}.{language}" for language in languages]
        test_sets.append(TestSet(direction, *read_parallel_lines(*files)))
    return test_sets


def _pair_of_file(name: str, split: str) -> str | None:
    """`test.en-de.de` -> `en-de`; None for what is no file of a test set, such as an editor's `test.en-de.de~`."""
    pair, _, language = name.removeprefix(f"{split}.").partition(".")
    try:
        languages = split_pair(pair)
    except InputError:
        return None
    return pair if language in languages else None


def _reverse(pair: str) -> str:
    """`en-pt-BR` -> `pt-BR-en`."""
    source, target = split_pair(pair)
    return f"{target}-{source}"
