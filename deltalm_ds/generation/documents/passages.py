"""What a document is to whoever translates it: verbatim text, and passages whose markup is set apart.

A passage's `text` is what is read of it. How the document writes that stands beside it, by offsets into the text, so
that a passage written with its own text has its own characters back, each of them.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

OPEN, CLOSE, POINT, BREAK, KEPT = "open", "close", "point", "break", "kept"
_SPACES = re.compile("[ \t\r\n\f\v]+")
_BREAKS = re.compile("[ \t\r\n\f\v]{2,}|[\t\r\n\f\v]")  # white space that is not one space
_CJK = re.compile(
    "[\u2e80-\u2fdf\u3000-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff00-\uffef\U00020000-\U0003ffff]"
)


@dataclass(frozen=True)
class Mark:
    """Something of a document that is not text.

    Attributes:
        start, end: where it stands in the text; equal for `OPEN`, `CLOSE` and `POINT`.
        raw: what the document has there.
        kind: `OPEN` and `CLOSE` are the ends of a span, such as `**` or `<a href="…">`; a `POINT` is an image or
            anything else between characters; a `BREAK` is white space, where it is more than one space, and whatever
            stands between two lines; what is `KEPT` is read but not translated, such as code.
        partner: the number of the span's other end among the marks.
    """

    start: int
    end: int
    raw: str
    kind: str
    partner: int | None = None


@dataclass(frozen=True)
class Passage:
    """Text that belongs together: a paragraph, a heading, a cell.

    Attributes:
        text: without markup, white space as single spaces.
        marks: in the order of the document.
        written: characters of the text that the document writes in another way, by offset: {3: "&eacute;"}.
        escapes: how characters are written that would be markup: {"<": "&lt;"}.
    """

    text: str
    marks: tuple[Mark, ...] = ()
    written: Mapping[int, str] = field(default_factory=dict)
    escapes: Mapping[str, str] = field(default_factory=dict)


class Document(Protocol):
    """A document that has been read."""

    @property
    def passages(self) -> Sequence[Passage]: ...

    def write(self, translations: Sequence[str]) -> bytes:
        """The document with these in place of its passages, as the document writes them."""
        ...


class TextDocument:
    """A document in a format of text.

    Args:
        parts: all of it, in order: str is verbatim.
        guarded: what is to be done to a passage's translation besides.
    """

    def __init__(
        self, parts: Sequence[str | Passage], guarded: Callable[[Passage, str], str] = lambda _, written: written
    ) -> None:
        self._parts, self._guarded = parts, guarded
        self.passages = [part for part in parts if isinstance(part, Passage)]

    def write(self, translations: Sequence[str]) -> bytes:
        """See `Document`; in UTF-8."""
        left = iter(translations)
        parts = (part if isinstance(part, str) else self._guarded(part, next(left)) for part in self._parts)
        return "".join(parts).encode()


class PassageBuilder:
    """Makes a passage from what a parser finds, in order. escapes: see `Passage`."""

    def __init__(self, escapes: Mapping[str, str] | None = None) -> None:
        self._escapes = escapes or {}
        self._pieces: list[str] = []  # of the text
        self._length, self._last = 0, ""  # of the text, and its last character
        self._marks: list[Mark] = []
        self._written: dict[int, str] = {}
        self._open: defaultdict[str, list[int]] = defaultdict(list)  # numbers of marks that are not closed yet
        self._break: list[str] = []  # what it holds depends on what follows

    def add_text(self, text: str) -> None:
        """Text that is written as it reads; its white space becomes breaks, but for single spaces."""
        end = 0
        for found in _BREAKS.finditer(text):
            self._append(text[end : found.start()])
            self.add_break(found[0])
            end = found.end()
        self._append(text[end:])

    def add_character(self, character: str, raw: str) -> None:
        """A character that the document writes as `raw`; what is none, or white space, is kept as it is."""
        if len(character) != 1 or _SPACES.match(character):
            self.add_kept(character, raw)
        else:
            self._end_break(character)
            self._written[self._length] = raw
            self._append(character)

    def add_break(self, raw: str) -> None:
        """What stands between two words, or between two characters in languages without spaces."""
        self._break.append(raw)

    def add_kept(self, text: str, raw: str) -> None:
        """What is read as `text` and stays as it is."""
        if text:
            text = _SPACES.sub(" ", text)
            self._append(text)
            self._mark(KEPT, raw, self._length - len(text))
        else:
            self.add_point(raw)

    def add_point(self, raw: str) -> None:
        """What is not read, and stays in its place."""
        if raw:
            self._end_break("")
            self._mark(POINT, raw)

    def open(self, raw: str, name: str = "") -> None:
        """A span begins. name: that `close` will call it by."""
        self._end_break("")
        self._open[name].append(len(self._marks))
        self._mark(OPEN, raw)

    def close(self, raw: str, name: str = "") -> None:
        """The span of that name ends; if there is none, this is a point, and so are both ends of an empty span."""
        self._end_break("")
        if not self._open[name]:
            self.add_point(raw)
            return
        number = self._open[name].pop()
        first = self._marks[number]
        kinds = (POINT, POINT) if first.start == self._length else (OPEN, CLOSE)
        self._marks[number] = replace(first, kind=kinds[0], partner=len(self._marks))
        self._mark(kinds[1], raw, partner=number)

    def build(self) -> Passage:
        """What has been added; a span that was not closed is a point."""
        self._end_break("")
        for number in (number for numbers in self._open.values() for number in numbers):
            self._marks[number] = replace(self._marks[number], kind=POINT)
        return Passage("".join(self._pieces), tuple(self._marks), self._written, self._escapes)

    def _append(self, text: str) -> None:
        if text:
            self._end_break(text)
            self._add(text)

    def _end_break(self, follows: str) -> None:
        """A break between two Chinese characters is nothing in the text; else it is a space."""
        if self._break:
            raw, self._break = "".join(self._break), []
            start = self._length
            if not (is_cjk(self._last) and is_cjk(follows[:1])):
                self._add(" ")
            self._mark(BREAK, raw, start)

    def _add(self, text: str) -> None:
        self._pieces.append(text)
        self._length += len(text)
        self._last = text[-1]

    def _mark(self, kind: str, raw: str, start: int | None = None, partner: int | None = None) -> None:
        self._marks.append(Mark(self._length if start is None else start, self._length, raw, kind, partner))


def is_cjk(character: str) -> bool:
    """Whether this is a Chinese or Japanese character or punctuation mark: words of such have no spaces between."""
    return _CJK.match(character) is not None
