"""What a translation must have as the source has it: addresses, placeholders, tags, numbers."""

import re
from collections.abc import Iterable
from dataclasses import replace

from deltalm_ds.errors import InputError, nearest
from deltalm_ds.generation.documents.passages import KEPT, Mark, Passage

PATTERNS = {
    "url": r"(?:https?://|ftp://|www\.)[^\s<>\"'，。、）」]*[^\s<>\"'，。、）」.,;:!?)\]]",
    "email": r"(?<![\w.+-])[\w.+-]+@[\w-]+(?:\.[\w-]+)+",
    "placeholder": r"\{\{[^{}\n]*\}\}|\$\{[^{}\n]*\}|\{[\w.:!]*\}|%\(\w+\)[a-z]|%(?:\d+\$)?[sd@]\b",
    "tag": r"</?[A-Za-z][^<>\n]*>",
    "number": r"\d+(?:[.,:/]\d+)*",
}
"""What can be protected, by name; of several that fit at a place, the first."""

IN_DOCUMENTS = ("url", "email", "placeholder")  # what has one form in all languages


def pattern_of(names: Iterable[str]) -> re.Pattern[str]:
    """What finds the parts of these kinds.

    Raises:
        InputError: there is no such kind.
    """
    names = set(names)
    for name in sorted(names - PATTERNS.keys()):
        raise InputError(
            f"There is no kind of text {name!r} to protect: the nearest is {nearest(name, PATTERNS)!r}; there are "
            f"{', '.join(PATTERNS)}."
        )
    return re.compile("|".join(pattern for name, pattern in PATTERNS.items() if name in names) or r"(?!)")


def protect(passage: Passage, pattern: re.Pattern[str]) -> Passage:
    """The passage with those parts kept in which there is no markup."""
    found = [match.span() for match in pattern.finditer(passage.text)]
    marks: list[Mark] = []
    new_number, old = {}, list(enumerate(passage.marks))
    position = 0
    for start, end in found:
        while position < len(old) and old[position][1].start <= start and old[position][1].end <= start:
            new_number[position] = len(marks)
            marks.append(old[position][1])
            position += 1
        if position == len(old) or old[position][1].start >= end:
            raw = "".join(passage.written.get(place, passage.text[place]) for place in range(start, end))
            marks.append(Mark(start, end, raw, KEPT))
    for number, mark in old[position:]:
        new_number[number] = len(marks)
        marks.append(mark)
    renumbered = [mark if mark.partner is None else replace(mark, partner=new_number[mark.partner]) for mark in marks]
    return replace(passage, marks=tuple(renumbered))
