"""Where raw texts lie, and how to read them as a stream of records or documents, whatever their format.

White space around a text is stripped, and line ends inside one become spaces. A record with an empty side is left out
and counted; whatever else is wrong is an InputError that names file and line.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from glob import glob
from pathlib import Path

from deltalm_ds.data_tools.formats.header import is_header, is_reversed
from deltalm_ds.data_tools.formats.input_format import Columns, Wanted
from deltalm_ds.data_tools.formats.table import FORMATS, format_name
from deltalm_ds.data_tools.formats.text import read_parallel
from deltalm_ds.errors import InputError
from deltalm_ds.lines import MAX_TEXT_BYTES, ZIP_MEMBER, is_plain, name_of, numbered_lines, too_long

ESCAPES = re.compile(r"\\([,:\\])")
LINE_ENDS = re.compile(r"\r\n|[\r\n]")
ESCAPE_HINT = r"a comma or colon that belongs to a name is written \, or \: (in quotes for the shell)"

Record = tuple[str, ...]
Texts = tuple[list[str], ...]
"""Some records: of each side the list of its texts."""


@dataclass(frozen=True)
class TextSource:
    """Where the texts of a corpus lie: one file, or two plain text files that belong together line by line.

    Attributes:
        format: a name in `FORMATS`; None tells it from the name of the file.
        fields: the names of the fields of a record that are read, or the numbers (from 1) or names of a table's
            columns; by default what the format says.
        span: only the records that begin in these bytes of the file, which can be divided (see `divide`).
    """

    files: tuple[Path, ...]
    format: str | None = None
    fields: tuple[str, ...] | None = None
    span: tuple[int, int] | None = None

    @property
    def resolved_format(self) -> str:
        """The name of the format given, or of that which the file's name tells; InputError if it tells none."""
        return self.format or format_name(self.files[0])

    def __str__(self) -> str:
        return ", ".join(map(name_of, self.files))


# --- naming sources ---


def find_sources(value: str, source_format: str | None = None) -> list[TextSource]:
    """The sources that an argument names.

    `train.en,train.de` are parallel text files, `pairs.tsv:2,3` the columns and `pages.jsonl:title` the field of a
    file, `-` is standard input, `news.zip!*.en` a member of an archive; `*` and `?` stand for all files that fit, in
    the order of their names; `@list.txt` is a file with one such value a line. What is a file's name as it stands is
    that file; else a comma or colon in a name is written `\\,` or `\\:`.

    Raises:
        InputError: no file fits, parallel patterns fit different numbers of files, or fields are named of a file that
            has none.
    """
    if value.startswith("@"):
        lines = [line.strip() for _, line in numbered_lines(value[1:])]
        if any(line.startswith("@") for line in lines):
            raise InputError(f"{value[1:]} names another list: name its files themselves.")
        return [source for line in lines if line for source in find_sources(line, source_format)]
    names, *fields = [value] if os.path.isfile(value) else _split(value, ":")
    if len(fields) > 1:
        raise InputError(f"{value} has several colons, where one comes before the fields to read: {ESCAPE_HINT}.")
    patterns = [] if os.path.isfile(names) else _split(names, ",")
    sides = [_matching_files(_unescape(pattern)) for pattern in patterns] or [[Path(names)]]
    if len({len(files) for files in sides}) > 1:
        counts = " and ".join(str(len(files)) for files in sides)
        raise InputError(f"{value} fits {counts} files: parallel files must come in pairs.")
    wanted = tuple(map(_unescape, _split(fields[0], ","))) if fields else None
    sources = [TextSource(files, source_format, wanted) for files in zip(*sides, strict=True)]
    for source in sources:
        _check_names(source)
    return sources


def _split(value: str, separator: str) -> list[str]:
    r"""Split at the separators without a backslash, which stays."""
    return re.split(rf"(?<!\\){separator}", value)


def _unescape(name: str) -> str:
    return ESCAPES.sub(r"\1", name)


def _matching_files(pattern: str) -> list[Path]:
    archive, bang, member = pattern.partition(ZIP_MEMBER)
    name = f"{archive}.zip" if bang else pattern
    if not set("*?[") & set(name) or Path(name).exists():
        return [Path(pattern)]
    found = sorted(glob(name, recursive=True))
    if not found:
        raise InputError(f"No file fits {pattern}.")
    return [Path(f"{path}!{member}" if bang else path) for path in found]


def _check_names(source: TextSource) -> None:
    """Refuse a format that the names do not suit."""
    name = source.resolved_format
    if source.fields and not FORMATS[name].has_fields:
        others = ", ".join(f"--{other}" for other, input_format in FORMATS.items() if input_format.has_fields)
        raise InputError(
            f"{source} is read as lines of {name}, which have no fields such as {', '.join(source.fields)}: if it is "
            f"something else, say so with {others}; {ESCAPE_HINT}."
        )
    if len(source.files) > 1 and {source.format or format_name(path) for path in source.files} != {"text"}:
        raise InputError(
            f"{source}: two files must be lines of text that belong together. Name one file of {name}, with the fields "
            f"to read after a colon, or say --text; {ESCAPE_HINT}."
        )


def divide(source: TextSource, span_bytes: int) -> list[TextSource]:
    """A large file in which every line is a record as spans that can be read on their own; else the source as it is."""
    path = source.files[0]
    if len(source.files) > 1 or not is_plain(path) or not FORMATS[source.resolved_format].divisible:
        return [source]
    size = path.stat().st_size
    starts = range(0, max(size, 1), span_bytes)
    return [replace(source, span=(start, min(start + span_bytes, size))) for start in starts]


# --- reading ---


def read_records(source: TextSource, num_sides: int, dropped: Counter[str]) -> Iterator[Record]:
    """Yield the records of `read_columns` one by one."""
    for columns in read_columns(source, num_sides, dropped):
        yield from zip(*columns, strict=True)


def read_columns(
    source: TextSource,
    num_sides: int,
    dropped: Counter[str],
    documents: bool = False,
    languages: Sequence[str] = (),
) -> Iterator[Texts]:
    """Yield records in order, some at a time; those with an empty side are counted in `dropped["empty"]`.

    The first record of a table that is a header is counted in `dropped["header"]`.

    Args:
        documents: blank lines separate the records of a text file, instead of line ends.
        languages: of the sides; their codes in the first row of a table are a header.

    Raises:
        InputError: a file cannot be read or decoded, a record is malformed, a header names the pair the other way
            round, parallel files differ in length, a text is over `MAX_TEXT_BYTES`, or the source cannot give
            `num_sides` texts a record.
    """
    at_start = source.span is None or source.span[0] == 0
    may_have_header = at_start and FORMATS[source.resolved_format].may_have_header
    for columns in _read_naming_lines(source, num_sides, documents):
        stripped = tuple(list(map(str.strip, texts)) for texts in columns)
        if may_have_header and stripped[0]:
            may_have_header = False
            first = [texts[0] for texts in stripped]
            if is_reversed(first, languages):
                raise InputError(
                    f"{source}, line 1: the columns read as {' and '.join(languages)} are {' and '.join(first)} by "
                    "their names: give the columns in the order of the pair (see deltalm data build --help)."
                )
            if is_header(first, languages):
                dropped["header"] += 1
                stripped = tuple(texts[1:] for texts in stripped)
        if not all(map(all, stripped)):
            kept = [record for record in zip(*stripped, strict=True) if all(record)]
            dropped["empty"] += len(stripped[0]) - len(kept)
            stripped = tuple([record[side] for record in kept] for side in range(num_sides))
        if stripped[0]:
            yield stripped


def _read_naming_lines(source: TextSource, num_sides: int, documents: bool) -> Iterator[Texts]:
    """Read a source; an error in a span is looked for again from the start of the file, to count the lines to it."""
    try:
        yield from _read_texts(source, num_sides, documents)
    except InputError:
        if source.span is not None:
            for _ in _read_texts(replace(source, span=None), num_sides, documents):
                pass
        raise


def _read_texts(source: TextSource, num_sides: int, documents: bool) -> Iterator[Texts]:
    """Read a source, and refuse what no text may have, whichever format it comes from."""
    what = "line" if FORMATS[source.resolved_format].divisible else "record"
    first = 1
    for columns in _open_source(source, num_sides, documents):
        sides = []
        for column in columns:
            texts = [text or "" for text in column]
            joined = "".join(texts)
            if "\0" in joined or len(joined) > MAX_TEXT_BYTES or not _is_unicode(joined):
                for number, text in enumerate(texts, start=first):
                    if fault := _fault(text):
                        raise InputError(f"{source}, {what} {number}: {fault}")
            if not documents and ("\n" in joined or "\r" in joined):
                texts = [LINE_ENDS.sub(" ", text.strip()) for text in texts]
            sides.append(texts)
        first += len(columns[0])
        yield tuple(sides)


def _is_unicode(text: str) -> bool:
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:  # an escape such as \ud800 is valid JSON but not valid text
        return False
    return True


def _fault(text: str) -> str | None:
    if "\0" in text:
        return "contains a NUL character."
    if len(text) > MAX_TEXT_BYTES:
        return too_long("text")
    return None if _is_unicode(text) else "has half a surrogate pair, which is no character."


def _open_source(source: TextSource, num_sides: int, documents: bool) -> Iterator[Columns]:
    if len(source.files) == 2 == num_sides:
        return read_parallel(*source.files)
    if len(source.files) != 1:
        raise InputError(
            f"{source}: expected one file, or two for a pair of languages; got {len(source.files)} ({ESCAPE_HINT})."
        )
    if source.fields is not None and len(source.fields) != num_sides:
        raise InputError(f"{source}: {len(source.fields)} columns named where {num_sides} are needed.")
    name = source.resolved_format
    input_format = FORMATS[name]
    if num_sides > 1 and not input_format.has_fields:
        others = ", ".join(other.suffixes[0] for other in FORMATS.values() if other.has_fields)
        raise InputError(
            f"{source}: a pair of languages needs two text files, or one named {others}, or the option of its format."
        )
    fields = source.fields or input_format.fields.get(num_sides)
    read = input_format.read_documents if documents and input_format.read_documents else input_format.read
    return read(Wanted(source.files[0], num_sides, fields, source.span))
