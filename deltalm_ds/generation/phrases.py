"""Phrases and where they occur in texts, whole words at a time: for glossaries and bans."""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from deltalm_ds.errors import InputError
from deltalm_ds.languages import is_within_word
from deltalm_ds.lines import numbered_lines

Span = tuple[int, int]  # start and end of a part of a text
ANY_ENDING = "*"


def normal(text: str) -> str:
    """A text as phrases are looked for in it: composed (NFC), so that a letter is written in one way."""
    return unicodedata.normalize("NFC", text)


@dataclass(frozen=True)
class Phrase:
    """Words as a user writes them.

    In small letters they mean any letters, with a capital one exactly what is written. A `*` at the end stands for any
    ending: `dog*` is in "dogs". Scripts without spaces have no words to respect.

    Attributes:
        written: with the `*`, composed (`normal`), white space as single spaces.
    """

    written: str

    @property
    def text(self) -> str:
        """What occurs in a text at least."""
        return self.written.removesuffix(ANY_ENDING)

    @property
    def has_capitals(self) -> bool:
        """Whether capital letters matter."""
        return self.text != self.text.lower()

    def spans(self, text: str) -> Iterator[Span]:
        """Where it occurs in a text (`normal`), from left to right."""
        for found in self._pattern.finditer(text):
            start, end = found.span()
            begins = not is_within_word(text[start - 1 : start], text[start])
            ends = self.written != self.text or not is_within_word(text[end - 1], text[end : end + 1])
            if begins and ends:
                yield start, end

    def occurs(self, text: str) -> bool:
        """Whether it occurs in a text (`normal`)."""
        return next(self.spans(text), None) is not None

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile(re.escape(self.text), 0 if self.has_capitals else re.IGNORECASE)


def read_phrase(written: str) -> Phrase | None:
    """A phrase; None where there is nothing to see but a `*`."""
    phrase = Phrase(" ".join(normal(written).split()))
    return phrase if phrase.text.strip() else None


def read_phrases(path: Path) -> list[Phrase]:
    """The phrases of a file, one a line.

    Raises:
        InputError: a line is empty.
    """
    found = []
    for number, line in numbered_lines(path):
        phrase = read_phrase(line)
        if phrase is None:
            raise InputError(f"{path}, line {number}: there is no phrase: write one a line.")
        found.append(phrase)
    return found
