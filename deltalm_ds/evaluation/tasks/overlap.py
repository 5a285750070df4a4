"""Test sets inside training data: found by 64-bit hashes of the text, without regard to case."""

from collections.abc import Sequence

from deltalm_ds.arrays.counter_rng import name_key
from deltalm_ds.evaluation.tasks.interface import Part


class Overlap:
    """Which sources of test sets are in the training text; all test sets are added before any training text."""

    def __init__(self) -> None:
        self._sources: dict[str, list[int]] = {}
        self._tested: set[int] = set()
        self._found: set[int] = set()

    def add_test(self, part: Part, source: str) -> None:
        """A source of a test set."""
        key = _key(part, source)
        self._sources.setdefault(part.name, []).append(key)
        self._tested.add(key)

    def add_training(self, part: Part, source: str, targets: Sequence[str]) -> None:
        """A record that a model is trained on; of a pair it may have either side as its source."""
        texts = (source, *targets) if part.is_pair else (source,)
        self._found.update(self._tested.intersection(_key(part, text) for text in texts))

    def count(self, part: Part) -> int:
        """How many sources of a test set are in the training text of the same languages."""
        return sum(key in self._found for key in self._sources.get(part.name, ()))


def _key(part: Part, text: str) -> int:
    languages = sorted(part.languages) if part.is_pair else part.languages
    return name_key("\t".join((*languages, text.casefold())))
