"""WMT's test sets until 2020: a source and a reference set in SGML."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path

from deltalm_ds.data_tools.published.objects import Identities, unequal
from deltalm_ds.data_tools.published.published_corpus import Item
from deltalm_ds.errors import InputError
from deltalm_ds.lines import numbered_lines

SEGMENT = re.compile(r"<seg\b([^>]*)>(.*?)</seg>", re.IGNORECASE)
SEGMENT_START = re.compile(r"<seg\b", re.IGNORECASE)
DOCUMENT_START = re.compile(r"<doc\b", re.IGNORECASE)
SEGMENT_ID = re.compile(r'\bid\s*=\s*"?([^"\s]+)', re.IGNORECASE)
SET_END = re.compile(r"</(?:src|ref|tst)set>", re.IGNORECASE)
ENTITY = re.compile("&(amp|lt|gt|quot|apos);")
CHARACTERS = {"amp": "&", "lt": "<", "gt": ">", "quot": '"', "apos": "'"}


def read(files: Sequence[Path], dropped: Counter[str]) -> Iterator[Item]:
    """A source and a reference set of WMT up to 2020; their segments must have the same numbers in the same order."""
    source_path, reference_path = files
    for source, reference in zip_longest(_segments(source_path), _segments(reference_path)):
        if source is None or reference is None:
            raise unequal("segments", {path: sum(1 for _ in _segments(path)) for path in files})
        if source[1] != reference[1]:
            raise InputError(
                f"{source_path}, line {source[0]} is segment {source[1]}, but {reference_path}, line {reference[0]} "
                f"is segment {reference[1]}: do the files belong together?"
            )
        yield source[2], [reference[2]]


def _segments(path: Path) -> Iterator[tuple[int, str, str]]:
    """Yield line, number, and text of each segment. These files are no XML (`&` stands for itself), only like it."""
    is_complete = False
    identities = Identities()
    for number, line in numbered_lines(path):
        if DOCUMENT_START.search(line):
            identities = Identities()
        segments = SEGMENT.findall(line)
        if len(segments) != len(SEGMENT_START.findall(line)):
            raise InputError(f"{path}, line {number}: the segment does not end on its line.")
        for attributes, text in segments:
            identity = SEGMENT_ID.search(attributes)
            if identity is None:
                raise InputError(f"{path}, line {number}: the segment has no id.")
            identities.add(f"{path}, line {number}", identity[1])
            yield number, identity[1], ENTITY.sub(lambda match: CHARACTERS[match[1]], text)
        is_complete = is_complete or SET_END.search(line) is not None
    if not is_complete:
        raise InputError(f"{path} is no SGML test set or cut short: it has no </srcset> or </refset>.")
