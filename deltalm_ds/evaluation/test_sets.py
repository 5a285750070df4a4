"""Test sets: sources and references of a direction, from files."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from deltalm_ds.errors import InputError
from deltalm_ds.evaluation.metrics.interface import References
from deltalm_ds.languages import find_language, split_codes, split_pair
from deltalm_ds.lines import COMPRESSIONS, read_all_parallel_lines, read_parallel_lines


@dataclass(frozen=True)
class TestSet:
    """Sources and references of one direction, such as `en-de`; of a language alone where the source's is not known.

    Attributes:
        further_references: for each source those beside that of `references`; empty where none has any.
    """

    __test__ = False  # not a test, whatever pytest thinks of the name

    direction: str
    sources: Sequence[str]
    references: Sequence[str]
    further_references: Sequence[Sequence[str]] = ()

    @property
    def target_lang(self) -> str:
        """The language translated into."""
        return split_codes(self.direction)[-1]


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


def read_references(
    outputs: Sequence[Path], references: Sequence[Path], source: Path | None, settings: References
) -> tuple[list[list[str]], References]:
    """Files of outputs, and what they are judged by, line by line.

    Args:
        outputs: at least one.
        references: any number; where one after the first has an empty line, there is no further reference.
        source: what the outputs were made from, if it is known.
        settings: language, tokenizer and languages.

    Raises:
        InputError: files of different lengths (both are named), or one that cannot be read.
    """
    files = [*outputs, *references, *([source] if source is not None else [])]
    lines = read_all_parallel_lines(files)
    texts = lines[len(outputs) : len(outputs) + len(references)]
    sources = lines[-1] if source is not None else []
    further = further_references(texts[1:]) if len(texts) > 1 else []
    return lines[: len(outputs)], replace(settings, texts=texts[0] if texts else [], further=further, sources=sources)


def further_references(texts: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    """For each line those of the texts that have something there."""
    return [tuple(text for text in of_line if text) for of_line in zip(*texts, strict=True)]


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
