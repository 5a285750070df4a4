"""Test sets: sources and references of a direction, from files."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from deltalm_ds.errors import InputError
from deltalm_ds.languages import check_code, find_language, split_codes, split_pair
from deltalm_ds.lines import COMPRESSIONS, read_parallel_lines


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

    @property
    def source_lang(self) -> str | None:
        """The language translated from, where it is known."""
        codes = split_codes(self.direction)
        return codes[0] if len(codes) == 2 else None

    def with_source(self, language: str) -> "TestSet":
        """The same from this language.

        Raises:
            InputError: it is no language code, or the direction names the source already.
        """
        if self.source_lang is not None:
            raise InputError(f"--source-lang: the direction {self.direction} names the source already; leave it out.")
        return replace(self, direction=f"{check_code(language)}-{self.direction}")


def read_test_sets(directory: str | Path, split: str, directions: Sequence[str] | None = None) -> list[TestSet]:
    """Test sets from files `{split}.{pair}.{lang}` (`test.en-de.en`, `test.en-de.de`), which serve both directions.

    Files may be compressed (`test.en-de.en.gz`).

    Args:
        directions: such as `en-de`, also by other codes than the files'; None takes both directions of every pair, in
            alphabetical order.

    Raises:
        InputError: there are no such files, a direction has none, or two files differ in length.
    """
    files = _find_files(Path(directory), split)
    if not files:
        raise InputError(f"{directory} has no test sets: expected files such as {split}.en-de.en, {split}.en-de.de.")
    pairs = {pair for pair, _ in files}
    pair_of = {_reverse(pair): pair for pair in pairs} | {pair: pair for pair in pairs}
    test_sets = []
    for direction in directions or sorted(pair_of):
        found = [direction] if direction in pair_of else _other_spellings(direction, pair_of)
        if len(found) != 1:
            raise InputError(f"{directory} has no {split} set for {direction!r}; it has {', '.join(sorted(pair_of))}.")
        pair = pair_of[found[0]]
        sides = [
            files.get((pair, language), Path(directory) / f"{split}.{pair}.{language}")
            for language in split_pair(found[0])
        ]
        test_sets.append(TestSet(direction, *read_parallel_lines(*sides)))
    return test_sets


def _find_files(directory: Path, split: str) -> dict[tuple[str, str], Path]:
    """The files of test sets by pair and language, without strays such as an editor's `test.en-de.de~`."""
    files: dict[tuple[str, str], Path] = {}
    for path in sorted(directory.glob("*")):
        if not path.name.startswith(f"{split}."):
            continue
        name = path.stem if path.suffix in COMPRESSIONS else path.name
        pair, _, language = name.removeprefix(f"{split}.").partition(".")
        try:
            languages = split_pair(pair)
        except InputError:
            continue
        if language in languages and path.is_file():
            files.setdefault((pair, language), path)
    return files


def _other_spellings(direction: str, known: Iterable[str]) -> list[str]:
    """The known directions that mean the same, such as `en-de` for `eng_Latn-deu_Latn`."""
    wanted = split_pair(direction)
    return [
        other
        for other in known
        if all(find_language(code, [known_code]) for code, known_code in zip(wanted, split_pair(other), strict=True))
    ]


def _reverse(pair: str) -> str:
    """`en-pt-BR` -> `pt-BR-en`."""
    source, target = split_pair(pair)
    return f"{target}-{source}"
