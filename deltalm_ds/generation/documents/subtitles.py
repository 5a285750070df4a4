"""Subtitles, SubRip (.srt) and WebVTT (.vtt): numbers, times, settings, notes and styles stay as they are.

A sentence that goes on in the next cue is translated whole, and its translation is divided among the cues at the same
shares of its length. It goes on where a cue ends with a comma, or without a mark that ends a sentence while the next
one begins with a small letter; never where the next line begins with a dash, as another speaker's does.
"""

import re
from collections.abc import Iterator
from html import unescape
from itertools import zip_longest
from typing import NamedTuple

from deltalm_ds.generation.documents.html import ESCAPES
from deltalm_ds.generation.documents.passages import Document, Passage, PassageBuilder, TextDocument

_TIME = re.compile(r"^[ \t]*(?:\d+:)?\d+:\d+[.,]\d+[ \t]*-->.*$", re.MULTILINE)
_BLANK = re.compile(r"(?:\r?\n)[ \t]*(?:\r?\n|\Z)")
_NUMBER_BEFORE = re.compile(r"\s*(?:(?<=\n)\d+[ \t]*\r?\n)?\s*\Z")  # of the cue that follows
_LINE_END = re.compile(r"[ \t]*\r?\n[ \t]*")
_MARKUP = re.compile(r"(?P<tag></?(?P<name>[A-Za-z]\w*)[^<>\n]*>)|<[\d:.]+>|\{\\[^{}\n]*\}|(?P<character>&[#\w]+;)")
_SPEAKER = re.compile(r"[-–—‐][ \t]*")
_ENDS = re.compile(r"[.!?…。！？:\"”»♪)\]]['\"”»]*\Z")
_GOES_ON = re.compile(r"[,;،，、]\Z")


class _Line(NamedTuple):
    """A line of a cue, and what stands between it and the next: a line end, or all up to the next cue's text."""

    text: str
    between: str


def read(text: str) -> Document:
    """The passages of a file of subtitles, and what is between them."""
    is_vtt = text.removeprefix("\ufeff").startswith("WEBVTT")
    first, lines = _lines(text, is_vtt)
    return TextDocument([first, *_parts(lines, is_vtt)])


def _lines(text: str, is_vtt: bool) -> tuple[str, list[_Line]]:
    """What is before the first line of a cue, and all such lines."""
    times = list(_TIME.finditer(text))
    lines: list[_Line] = []
    first = text[: times[0].end()] if times else text
    for time, following in zip_longest(times, times[1:]):
        end = following.start() if following else len(text)
        body = text[time.end() : end]
        blank = _BLANK.search(body) if is_vtt else _NUMBER_BEFORE.search(body)
        content = body[: blank.start()] if blank else body
        after = body[len(content) :] + (following[0] if following else "")
        begin = _LINE_END.match(content)
        head = begin[0] if begin else ""
        if lines:
            lines[-1] = lines[-1]._replace(between=lines[-1].between + head)
        else:
            first += head
        texts, ends = _LINE_END.split(content[len(head) :]), _LINE_END.findall(content[len(head) :])
        lines += map(_Line, texts, [*ends, after])
    return first, lines


def _parts(lines: list[_Line], is_vtt: bool) -> Iterator[str | Passage]:
    end = 0
    while end < len(lines):
        start, end = end, end + 1
        while end < len(lines) and _goes_on(lines[end - 1], lines[end]):
            end += 1
        speaker = _SPEAKER.match(lines[start].text)
        yield speaker[0] if speaker else ""
        builder = PassageBuilder(ESCAPES if is_vtt else {})
        for number in range(start, end):
            _add_line(builder, lines[number].text[speaker.end() if speaker and number == start else 0 :], is_vtt)
            if number + 1 < end:
                builder.add_break(lines[number].between)
        yield builder.build()
        yield lines[end - 1].between


def _goes_on(line: _Line, following: _Line) -> bool:
    here, there = (_MARKUP.sub("", side.text).strip() for side in (line, following))
    if not here or not there or _SPEAKER.match(there):
        return False
    in_cue = "-->" not in line.between
    return in_cue or _GOES_ON.search(here) is not None or (not _ENDS.search(here) and there[0].islower())


def _add_line(builder: PassageBuilder, text: str, is_vtt: bool) -> None:
    end = 0
    for found in _MARKUP.finditer(text):
        builder.add_text(text[end : found.start()])
        end, raw = found.end(), found[0]
        if found["character"]:
            is_one = is_vtt and len(unescape(raw)) == 1
            builder.add_character(unescape(raw), raw) if is_one else builder.add_text(raw)
        elif found["tag"] and raw.startswith("</"):
            builder.close(raw, found["name"])
        elif found["tag"]:
            builder.open(raw, found["name"])
        else:
            builder.add_point(raw)
    builder.add_text(text[end:])
