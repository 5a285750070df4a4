"""Plain text: paragraphs, lists and quotations as they stand in their lines.

A line goes on in the next one where its text was broken to keep a width: where the next line's first word would not
have fitted into the longest line of the block. Any other line is a passage of its own, as are cells between tabs.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import zip_longest

from deltalm_ds.generation.documents.passages import Document, Passage, PassageBuilder, TextDocument

LEAST_WIDTH = 40  # characters; blocks of shorter lines are lists, addresses or verse
_LINE = re.compile(r"[^\n]*\n|[^\n]+\Z")
_PARTS = re.compile(
    r"(?P<quote>[ \t]*(?:>[ \t]*)*)(?P<bullet>(?:(?:[-*•·‣]|\d{1,3}[.)])[ \t]+)?)(?P<text>[^\n]*?)(?P<end>\s*)",
    re.DOTALL,
)


def read(text: str) -> Document:
    """The passages of a plain text, and what is between them."""
    parts: list[str | Passage] = []
    block: list[re.Match[str]] = []
    for line in [*_LINE.findall(text), ""]:
        match = _PARTS.fullmatch(line)
        assert match is not None  # every part may be empty
        if match["text"]:
            block.append(match)
            continue
        parts += _block(block)
        parts.append(line)
        block = []
    return TextDocument(parts)


def _block(lines: Sequence[re.Match[str]]) -> Iterator[str | Passage]:
    """Lines with text, one after another."""
    width = max((len(line[0].rstrip()) for line in lines), default=0)
    end = 0
    while end < len(lines):
        start, end = end, end + 1
        while end < len(lines) and _goes_on(lines[end - 1], lines[end], width, is_item=bool(lines[start]["bullet"])):
            end += 1
        yield from _passages(lines[start:end])


def _goes_on(line: re.Match[str], following: re.Match[str], width: int, is_item: bool) -> bool:
    if is_item and not following["quote"]:  # an item of a list goes on below its text
        return False
    if width < LEAST_WIDTH or following["bullet"] or following["quote"].count(">") != line["quote"].count(">"):
        return False
    first_word = following["text"].split(maxsplit=1)[0]
    return len(line[0].rstrip()) + 1 + len(first_word) > width and "\t" not in line["text"] + following["text"]


def _passages(lines: Sequence[re.Match[str]]) -> Iterator[str | Passage]:
    """One passage in some lines, or the cells of one line."""
    yield lines[0]["quote"] + lines[0]["bullet"]
    if len(lines) == 1:
        for cell in re.split(r"(\t+)", lines[0]["text"]):
            builder = PassageBuilder()
            builder.add_text(cell)
            yield cell if cell.startswith("\t") else builder.build()
    else:
        builder = PassageBuilder()
        for line, following in zip_longest(lines, lines[1:]):
            builder.add_text(line["text"])
            if following:
                builder.add_break(line["end"] + following["quote"])
        yield builder.build()
    yield lines[-1]["end"]
