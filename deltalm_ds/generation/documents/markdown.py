"""Markdown (CommonMark with GitHub's tables, footnotes, task lists and front matter), read by pulldown-cmark.

It tells where in the source each piece of text is; whatever lies between is markup and stays as it is. So do code, HTML
blocks, formulas, images, bare addresses and the targets of links.
"""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import pyromark

from deltalm_ds.generation.documents.passages import Document, Passage, PassageBuilder, TextDocument

_OPTIONS = (
    pyromark.Options.ENABLE_TABLES
    | pyromark.Options.ENABLE_FOOTNOTES
    | pyromark.Options.ENABLE_STRIKETHROUGH
    | pyromark.Options.ENABLE_TASKLISTS
    | pyromark.Options.ENABLE_MATH
    | pyromark.Options.ENABLE_GFM
    | pyromark.Options.ENABLE_YAML_STYLE_METADATA_BLOCKS
)
_ESCAPES = {character: f"\\{character}" for character in "\\`*_[]<>~|$&"}
_SPANS = {"Strong", "Emphasis", "Strikethrough", "Link"}
_KEPT_BLOCKS = {"CodeBlock", "HtmlBlock", "MetadataBlock"}
_KEPT = {"Code", "InlineMath", "DisplayMath"}
_BREAKS = {"SoftBreak", "HardBreak"}
_POINTS = {"InlineHtml", "FootnoteReference"}
_INLINE = _SPANS | _KEPT | _BREAKS | _POINTS | {"Image", "Text"}
_TAG = re.compile(r"<(?P<end>/?)(?P<name>[A-Za-z][\w-]*)")
_BEGINS_A_LIST = re.compile(r"(\d{1,9}|)([.)]|[-+]|#{1,6})(?=\s|$)")


class _Event(NamedTuple):
    """What the parser finds; where, in bytes of UTF-8."""

    name: str
    edge: str  # Start, End, or nothing
    content: Any
    start: int
    end: int


def read(text: str) -> Document:
    """The passages of a Markdown text, and what is between them."""
    body = text.removeprefix("\ufeff")  # the parser takes a byte order mark for text
    return TextDocument([text[: len(text) - len(body)], *_Reader(body).parts()], _guarded)


class _Reader:
    """Goes through the events, and through the source with them."""

    def __init__(self, text: str) -> None:
        self._source = text.encode()
        self._events = map(_event, pyromark.events_with_range(text, options=_OPTIONS))
        self._builder: PassageBuilder | None = None
        self._end = 0  # of what has been read
        self._skipped = 0  # events up to here belong to what is kept whole
        self._after_break = self._after_start = False

    def parts(self) -> Iterator[str | Passage]:
        """All of the text, in order."""
        for event in self._events:
            if event.name not in _INLINE:
                yield from self._finished()
                if event.edge == "Start" and event.name in _KEPT_BLOCKS:
                    self._skipped = event.end
            elif event.end > self._skipped:
                if self._builder is None:
                    yield self._raw(event.start)
                    self._builder = PassageBuilder(_ESCAPES)
                self._add(self._builder, event)
        yield from self._finished()
        yield self._raw(len(self._source))

    def _finished(self) -> Iterator[Passage]:
        if self._builder is not None:
            yield self._builder.build()
        self._builder, self._after_break, self._after_start = None, False, False

    def _add(self, builder: PassageBuilder, event: _Event) -> None:
        """One event within a passage. What the source has before it is markup, of the span that began, say."""
        is_end = event.edge == "End"
        before = self._raw(self._end if is_end else event.start)
        is_escape = event.name == "Text" and before.endswith("\\")
        before = before.removesuffix("\\") if is_escape else before
        if self._after_start:
            builder.open(before)
        elif self._after_break or event.name in _BREAKS:
            builder.add_break(before)
        else:
            builder.add_point(before)
        is_whole = event.name == "Image" or (
            event.name == "Link" and _link_type(event.content) in ("Autolink", "Email")
        )
        self._after_start = event.edge == "Start" and not is_whole
        self._after_break = event.name in _BREAKS
        if self._after_start:
            return
        raw = self._raw(event.end)
        if is_end:
            builder.close(raw)
        elif is_whole:
            self._skipped = event.end
            builder.add_point(raw) if event.name == "Image" else builder.add_kept(raw.strip("<>"), raw)
        else:
            _add_leaf(builder, event, raw, is_escape)

    def _raw(self, end: int) -> str:
        """The source from where reading stopped up to here."""
        start, self._end = self._end, max(self._end, end)
        return self._source[start : self._end].decode()


def _add_leaf(builder: PassageBuilder, event: _Event, raw: str, is_escape: bool) -> None:
    if event.name in _BREAKS:
        builder.add_break(raw)
    elif event.name in _KEPT:
        builder.add_kept(event.content, raw)
    elif event.name in _POINTS:
        _add_point(builder, raw)
    elif is_escape:
        builder.add_character(raw[0], f"\\{raw[0]}")
        builder.add_text(raw[1:])
    elif event.content == raw:
        builder.add_text(raw)
    else:
        builder.add_character(event.content, raw)


def _add_point(builder: PassageBuilder, raw: str) -> None:
    """A tag of HTML is an end of a span, if the other end is there."""
    tag = _TAG.match(raw)
    if tag is None:
        builder.add_point(raw)
    elif tag["end"]:
        builder.close(raw, tag["name"].lower())
    else:
        builder.open(raw, tag["name"].lower())


def _event(found: tuple[Any, Any]) -> _Event:
    """`{"Start": {"Heading": …}}`, `{"Text": …}` or `"SoftBreak"` by name."""
    event, span = found
    name, content = next(iter(event.items())) if isinstance(event, dict) else (event, None)
    edge = name if name in ("Start", "End") else ""
    if edge:
        name, content = next(iter(content.items())) if isinstance(content, dict) else (content, None)
    return _Event(name, edge, content, span["start"], span["end"])


def _link_type(content: Any) -> str | None:
    return content.get("link_type") if isinstance(content, dict) else None


def _guarded(passage: Passage, written: str) -> str:
    """A translation that would begin a list or a heading (`2026. gada`), with a backslash against that."""
    found = _BEGINS_A_LIST.match(written)
    if found is None or _BEGINS_A_LIST.match(passage.text):
        return written
    return f"{written[: found.start(2)]}\\{written[found.start(2) :]}"
