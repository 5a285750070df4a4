"""What a model must beat: the source itself, its first sentence, the target of the nearest source in training."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from functools import lru_cache
from math import log
from pathlib import Path

import numpy as np

from deltalm_ds.data_tools.published.objects import is_list, read_objects
from deltalm_ds.errors import InputError
from deltalm_ds.evaluation.metrics.words import words_of
from deltalm_ds.generation.documents.sentences import split_sentences
from deltalm_ds.languages import split_pair


def source_itself(text: str, language: str) -> str:
    """The text as it is."""
    return text


def first_sentence(text: str, language: str) -> str:
    """The first sentence of a text, lead-1 of summaries."""
    start, end = next(iter(split_sentences(text, language)), (0, len(text)))
    return text[start:end]


class TranslationMemory:
    """Training pairs, of which the target is taken whose source is nearest.

    Sources are compared as sets of words, each with the weight log(N / n) of a word that n of N sources have: what both
    have, relative to what either has. Of equally near ones the first is taken.

    Args:
        sources, targets: of the pairs.
    """

    def __init__(self, sources: Sequence[str], targets: Sequence[str]) -> None:
        self._targets = targets
        of_word: defaultdict[str, list[int]] = defaultdict(list)
        for number, source in enumerate(sources):
            for word in _words(source):
                of_word[word].append(number)
        self._of_word = {word: np.array(numbers) for word, numbers in of_word.items()}
        self._weights = {word: log(len(sources) / len(numbers)) for word, numbers in of_word.items()}
        self._unknown = log(len(sources)) if sources else 0.0
        self._totals = np.zeros(len(sources))
        for word, numbers in self._of_word.items():
            self._totals[numbers] += self._weights[word]

    def nearest(self, source: str) -> str:
        """The target of the pair whose source is nearest to this one."""
        words = _words(source)
        shared = np.zeros(len(self._totals))
        for word in words & self._of_word.keys():
            shared[self._of_word[word]] += self._weights[word]
        own = sum(self._weights.get(word, self._unknown) for word in words)
        return self._targets[int(np.argmax(shared / np.maximum(self._totals + own - shared, 1e-9)))]


@lru_cache(maxsize=1)  # a test set comes in parts
def read_memory(directory: Path, direction: str) -> TranslationMemory:
    """The training pairs of a direction in a directory that `data prepare` wrote; a pair serves both directions.

    Raises:
        InputError: it has none.
    """
    path, names = memory_file(directory, direction)
    return TranslationMemory(*zip(*_pairs(path, names), strict=True))


def memory_file(directory: Path, direction: str) -> tuple[Path, tuple[str, str]]:
    """The file with the training pairs of a direction, and the names of its fields; raises as `read_memory`."""
    source, target = split_pair(direction)
    for name, names in ((direction, ("source", "target")), (f"{target}-{source}", ("target", "source"))):
        path = directory / "pairs" / f"train.{name}.jsonl"
        if path.exists():
            return path, names
    raise InputError(f"{directory} has no training pairs for {direction}: prepare a task there (deltalm data prepare).")


def _pairs(path: Path, names: Sequence[str]) -> Iterator[tuple[str, ...]]:
    for position, record in read_objects(path):
        texts = [record.get(name) for name in names]
        if not is_list(texts, str):
            raise InputError(f"{position}: expected an object with the texts {' and '.join(names)}.")
        yield tuple(texts)


def _words(text: str) -> set[str]:
    return set(words_of(text.casefold()))
