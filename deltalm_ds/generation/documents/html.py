"""HTML, read by Python's own parser, which tells where in the source each tag and text is.

Text is translated, tags and comments stay as they are: elements within a line are spans, others end a passage. Code and
whatever has `translate="no"` or the class `notranslate` is kept. Attributes are not translated.
"""

import re
from collections.abc import Iterator, Mapping
from html import unescape
from html.parser import HTMLParser
from itertools import pairwise
from typing import NamedTuple

from deltalm_ds.errors import InputError
from deltalm_ds.generation.documents.passages import Document, Passage, PassageBuilder, TextDocument

ESCAPES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_KEPT_IN_LINE = {"code", "kbd", "samp", "var"}
_INLINE = _KEPT_IN_LINE | {
    "a", "abbr", "acronym", "b", "bdi", "bdo", "big", "cite", "data", "del", "dfn", "em", "font", "i", "ins", "label",
    "mark", "nobr", "q", "ruby", "s", "small", "span", "strike", "strong", "sub", "sup", "time", "tt", "u",
}  # fmt: skip
_POINTS = {"img", "input", "wbr"}
_KEPT_BLOCKS = {
    "iframe", "math", "noscript", "object", "pre", "script", "style", "svg", "template", "textarea",
}  # fmt: skip
_VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
_TAG = re.compile(r"<[^<>]*>")


def read(text: str) -> Document:
    """The passages of a page of HTML, and what is between them.

    Raises:
        InputError: it cannot be read as HTML.
    """
    return TextDocument(list(_Reader(text).parts()))


class _Token(NamedTuple):
    """What the parser finds. kind: start, end, empty (a tag that has no end), data, character or other."""

    kind: str
    name: str
    attributes: Mapping[str, str | None]
    start: int


class _Parser(HTMLParser):
    """Python's parser, asked only what is where."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=False)
        self._line_starts = [0, *(found.end() for found in re.finditer("\n", text))]
        self.tokens: list[_Token] = []
        try:
            # behind the last ">" no tag begins; Python's parser would look for its end at every "<"
            end = text.rfind(">") + 1
            self.feed(text[:end] + text[end:].replace("<", " "))
            self.close()
        except AssertionError as error:  # what Python's parser raises where it gives up
            raise InputError(f"The document cannot be read as HTML: {error}.") from None
        self._found("other")  # the end

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._found("empty" if tag in _VOID else "start", tag, dict(attrs))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._found("empty", tag, dict(attrs))

    def handle_endtag(self, tag: str) -> None:
        self._found("end", tag)

    def handle_data(self, data: str) -> None:
        self._found("data")

    def handle_entityref(self, name: str) -> None:
        self._found("character")

    def handle_charref(self, name: str) -> None:
        self._found("character")

    def handle_comment(self, data: str) -> None:
        self._found("other")

    def handle_decl(self, decl: str) -> None:
        self._found("other")

    handle_pi = unknown_decl = handle_comment

    def parse_marked_section(self, i: int, report: int = 1) -> int:
        """`<![…>` is a comment up to its end, as in HTML 5; older versions of Python raise where it is no SGML."""
        end = self.rawdata.find(">", i)
        if end >= 0:
            self._found("other")
        return end + 1 if end >= 0 else -1

    def _found(self, kind: str, name: str = "", attributes: Mapping[str, str | None] | None = None) -> None:
        line, column = self.getpos()
        self.tokens.append(_Token(kind, name, attributes or {}, self._line_starts[line - 1] + column))


class _Reader:
    """Goes through the tokens, and through the source with them."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._builder: PassageBuilder | None = None
        self._end = 0  # of what has been read
        self._kept: list[_Token] = []  # the start of what is kept as it is, and those of its name within

    def parts(self) -> Iterator[str | Passage]:
        """All of the text, in order."""
        tokens = _Parser(self._text).tokens
        for token, following in pairwise(tokens):
            if self._kept:
                yield from self._within_kept(token, following.start)
            elif token.kind == "start" and _is_kept(token):
                if token.name not in _INLINE:
                    yield from self._finished(token.start)
                self._kept = [token]
            elif token.kind in ("start", "end", "empty") and token.name not in _INLINE | _POINTS:
                yield from self._finished(token.start)
            else:
                yield from self._in_passage(token, following.start)
        yield from self._finished(self._end)
        yield self._text[self._end :]

    def _finished(self, start: int) -> Iterator[Passage]:
        """A passage ends where a block begins or ends."""
        if self._builder is not None:
            assert self._end == start
            yield self._builder.build()
        self._builder = None

    def _begun(self, start: int) -> Iterator[str]:
        """A passage begins here, if none has."""
        if self._builder is None:
            yield self._text[self._end : start]
            self._builder, self._end = PassageBuilder(ESCAPES), start

    def _within_kept(self, token: _Token, end: int) -> Iterator[str]:
        if token.name == self._kept[0].name:
            self._kept += [token] if token.kind == "start" else []
            if token.kind == "end":
                first = self._kept.pop()
                if not self._kept and first.name in _INLINE:
                    yield from self._begun(first.start)
                    assert self._builder is not None
                    raw, self._end = self._text[self._end : end], end
                    self._builder.add_kept(unescape(_TAG.sub("", raw)), raw)

    def _in_passage(self, token: _Token, end: int) -> Iterator[str]:
        raw = self._text[token.start : end]
        is_text = token.kind == "character" or (token.kind == "data" and not raw.isspace())
        if is_text or (token.kind == "start" and token.name in _INLINE):
            yield from self._begun(token.start)
        if self._builder is None:
            return
        self._end = end
        if token.kind == "start" and token.name in _INLINE:
            self._builder.open(raw, token.name)
        elif token.kind == "end":
            self._builder.close(raw, token.name)
        elif token.kind == "data":
            self._builder.add_text(raw)
        elif token.kind == "character" and unescape(raw) != raw:
            self._builder.add_character(unescape(raw), raw)
        else:
            self._builder.add_text(raw) if token.kind == "character" else self._builder.add_point(raw)


def _is_kept(token: _Token) -> bool:
    no_translation = token.attributes.get("translate") == "no"
    classes = (token.attributes.get("class") or "").split()
    return no_translation or "notranslate" in classes or token.name in _KEPT_IN_LINE | _KEPT_BLOCKS
