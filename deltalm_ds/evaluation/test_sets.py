"""Test sets: sources and references of a direction, from files."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from deltalm_ds.data_tools.published.objects import is_list, read_objects
from deltalm_ds.errors import InputError
from deltalm_ds.evaluation.metrics.interface import References
from deltalm_ds.languages import check_code, find_language, split_codes, split_pair
from deltalm_ds.lines import COMPRESSIONS, read_all_parallel_lines, read_parallel_lines

JSONL = ".jsonl"


@dataclass(frozen=True)
class TestSet:
    """Sources and references of one direction, such as `en-de`; of a language alone where the source's is not known.

    Attributes:
        references: one for each source.
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

    def as_references(self, tokenizer: str | None = None, languages: Sequence[str] = ()) -> References:
        """What outputs are judged by; see `References`."""
        return References(
            self.references, self.target_lang, tokenizer, self.further_references, self.sources, languages
        )

    def first(self, count: int) -> "TestSet":
        """The first sentences alone."""
        return self.part(0, count)

    def part(self, start: int, end: int) -> "TestSet":
        """The sentences from one on, up to another."""
        part = slice(start, end)
        return TestSet(self.direction, self.sources[part], self.references[part], self.further_references[part])


def read_test_sets(directory: str | Path, split: str, directions: Sequence[str] | None = None) -> list[TestSet]:
    """Test sets from files `{split}.{pair}.{lang}` (`test.en-de.en`, `test.en-de.de`), which serve both directions.

    A file `{split}.{direction}.jsonl` is a test set too: a line is an object with `source` and a list `references`.
    Files may be compressed (`test.en-de.en.gz`).

    Args:
        directions: such as `en-de`, also by other codes than the files'; None takes both directions of every pair, in
            alphabetical order.

    Raises:
        InputError: there are no such files, a direction has none, two files differ in length, or an object is not one.
    """
    readers = _find_test_sets(Path(directory), split)
    if not readers:
        raise InputError(
            f"{directory} has no test sets: expected files such as {split}.en-de.en, {split}.en-de.de, or "
            f"{split}.en-de{JSONL}."
        )
    test_sets = []
    for direction in directions or sorted(readers):
        found = [direction] if direction in readers else _other_spellings(direction, readers)
        if len(found) != 1:
            raise InputError(f"{directory} has no {split} set for {direction!r}; it has {', '.join(sorted(readers))}.")
        test_sets.append(readers[found[0]](direction))
    return test_sets


def read_jsonl_set(direction: str, path: Path) -> TestSet:
    """A test set in objects with `source` and `references`.

    Raises:
        InputError: a line is no such object, or has no reference.
    """
    sources, references, further = [], [], []
    for position, record in read_objects(path):
        source, texts = record.get("source"), record.get("references")
        if not isinstance(source, str) or not is_list(texts, str):
            raise InputError(f"{position}: expected an object with the text `source` and a list of texts `references`.")
        if not texts or not all(text.strip() for text in texts):
            raise InputError(f"{position}: a reference is empty, or there is none: write it, or leave the line out.")
        sources.append(source)
        references.append(texts[0])
        further.append(tuple(texts[1:]))
    return TestSet(direction, sources, references, further if any(further) else ())


def _read_text_set(direction: str, source: Path, reference: Path) -> TestSet:
    return TestSet(direction, *read_parallel_lines(source, reference))


def _find_test_sets(directory: Path, split: str) -> dict[str, Callable[[str], TestSet]]:
    """What reads each direction's test set, by the direction."""
    files = _find_files(directory, split)
    readers: dict[str, Callable[[str], TestSet]] = {}
    for pair in {pair for pair, _ in files}:
        for direction in (pair, _reverse(pair)):
            if direction == pair or direction not in {other for other, _ in files}:
                source, target = (
                    files.get((pair, language), directory / f"{split}.{pair}.{language}")
                    for language in split_pair(direction)
                )
                readers[direction] = partial(_read_text_set, source=source, reference=target)
    for direction, path in _find_jsonl(directory, split).items():
        readers[direction] = partial(read_jsonl_set, path=path)
    return readers


def _named(directory: Path, split: str) -> Iterable[tuple[Path, str]]:
    """Files of a split, with what their names say behind it."""
    for path in sorted(directory.glob("*")):
        if path.name.startswith(f"{split}.") and path.is_file():
            name = path.stem if path.suffix in COMPRESSIONS else path.name
            yield path, name.removeprefix(f"{split}.")


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
        InputError: files of different lengths (both are named) or without a line, or one that cannot be read.
    """
    files = [*outputs, *references, *([source] if source is not None else [])]
    lines = read_all_parallel_lines(files)
    if not lines[0]:
        raise InputError(f"{', '.join(map(str, files))}: there is no line to score.")
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
    for path, name in _named(directory, split):
        pair, _, language = name.partition(".")
        if _is_pair(pair) and language in split_pair(pair):
            files.setdefault((pair, language), path)
    return files


def _find_jsonl(directory: Path, split: str) -> dict[str, Path]:
    """The files of test sets that are objects, by direction."""
    files: dict[str, Path] = {}
    for path, name in _named(directory, split):
        direction = name.removesuffix(JSONL)
        if name.endswith(JSONL) and _is_pair(direction):
            files.setdefault(direction, path)
    return files


def _is_pair(name: str) -> bool:
    try:
        split_pair(name)
    except InputError:
        return False
    return True


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
