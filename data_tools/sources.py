"""Where raw texts lie, and how to read them as a stream: lines, parallel files, TSV, JSONL, Parquet; documents.

White space around a text is stripped. A record with an empty side is left out and counted; whatever else is wrong
is an InputError that names file and line.
"""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from glob import glob
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from deltalm_ds.errors import InputError
from deltalm_ds.lines import COMPRESSIONS, MAX_TEXT_BYTES, STDIN, ZIP_MEMBER, is_plain, line_blocks, too_long

COLUMN_FORMATS = ("tsv", "jsonl", "parquet")
DEFAULT_FIELDS = {1: ("text",), 2: ("source", "target")}
PARQUET_ROWS = 1024

Record = tuple[str, ...]
Columns = tuple[list[str], ...]
"""Some records: of each side the list of its texts."""


@dataclass(frozen=True)
class TextSource:
    """Where the texts of a corpus lie: one file, or two plain text files that belong together line by line.

    Attributes:
        format: `text`, `tsv`, `jsonl` or `parquet`; None tells it from the name of the file.
        columns: which columns of a TSV file (numbers from 1; by default it must have as many columns as the corpus
            has sides) or which fields of a JSONL or Parquet file (by default `text`, or `source` and `target`).
        span: only the lines that begin in these bytes of the file, which can be divided (see `divide`).
    """

    files: tuple[Path, ...]
    format: str | None = None
    columns: tuple[str, ...] | None = None
    span: tuple[int, int] | None = None

    @property
    def resolved_format(self) -> str:
        """The format given, or what the file's name tells: `.tsv`, `.jsonl`, `.parquet`; anything else is text."""
        return self.format or _format_of_name(self.files[0])

    def __str__(self) -> str:
        return ", ".join(map(str, self.files))


def _format_of_name(path: Path) -> str:
    stem = path.with_suffix("") if path.suffix in COMPRESSIONS else path
    by_name = stem.suffix.removeprefix(".")
    return by_name if by_name in COLUMN_FORMATS else "text"


# --- naming sources ---


def find_sources(value: str, source_format: str | None = None) -> list[TextSource]:
    """The sources that an argument names.

    `train.en,train.de` are parallel text files, `pairs.tsv:2,3` the columns and `pages.jsonl:title` the field of a
    file, `-` is standard input, `news.zip!*.en` a member of an archive; `*` and `?` stand for all files that fit, in
    the order of their names; `@list.txt` is a file with one such value a line.

    Raises:
        InputError: no file fits, or parallel patterns fit different numbers of files.
    """
    if value.startswith("@"):
        lines = [line.strip() for block in line_blocks(Path(value[1:])) for line in block]
        if any(line.startswith("@") for line in lines):
            raise InputError(f"{value[1:]} names another list: name its files themselves.")
        return [source for line in lines if line for source in find_sources(line, source_format)]
    path, _, columns = value.partition(":")
    if (source_format or _format_of_name(Path(path.split(",")[0]))) in COLUMN_FORMATS:
        wanted = tuple(columns.split(",")) if columns else None
        return [TextSource((file,), source_format, wanted) for file in _matching_files(path)]
    sides = [_matching_files(pattern) for pattern in value.split(",")]
    if len({len(files) for files in sides}) > 1:
        counts = " and ".join(str(len(files)) for files in sides)
        raise InputError(f"{value} fits {counts} files: parallel files must come in pairs.")
    return [TextSource(files, source_format) for files in zip(*sides, strict=True)]


def _matching_files(pattern: str) -> list[Path]:
    archive, bang, member = pattern.partition(ZIP_MEMBER)
    name = f"{archive}.zip" if bang else pattern
    if not set("*?[") & set(name) or Path(name).exists():
        return [Path(pattern)]
    found = sorted(glob(name, recursive=True))
    if not found:
        raise InputError(f"No file fits {pattern}.")
    return [Path(f"{path}!{member}" if bang else path) for path in found]


def divide(source: TextSource, span_bytes: int) -> list[TextSource]:
    """A large file of records line by line as spans that can be read on their own; anything else as it is."""
    path = source.files[0]
    if len(source.files) > 1 or source.resolved_format == "parquet" or not is_plain(path):
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
    source: TextSource, num_sides: int, dropped: Counter[str], documents: bool = False
) -> Iterator[Columns]:
    """Yield records in order, some at a time; those with an empty side are counted in `dropped["empty"]`.

    Args:
        documents: blank lines separate the records of a text file, instead of line ends.

    Raises:
        InputError: a file cannot be read or decoded, a line is malformed, parallel files differ in length, a text is
            over `MAX_TEXT_BYTES`, or the source cannot give `num_sides` texts a record.
    """
    for columns in _open_source_naming_lines(source, num_sides, documents):
        stripped = tuple(list(map(str.strip, texts)) for texts in columns)
        if not all(map(all, stripped)):
            kept = [record for record in zip(*stripped, strict=True) if all(record)]
            dropped["empty"] += len(stripped[0]) - len(kept)
            stripped = tuple([record[side] for record in kept] for side in range(num_sides))
        if stripped[0]:
            yield stripped


def _open_source_naming_lines(source: TextSource, num_sides: int, documents: bool) -> Iterator[Columns]:
    """Read a source; an error in a span is looked for again from the start of the file, to count the lines to it."""
    try:
        yield from _open_source(source, num_sides, documents)
    except InputError:
        if source.span is not None:
            yield from _open_source(replace(source, span=None), num_sides, documents)
        raise


def _open_source(source: TextSource, num_sides: int, documents: bool) -> Iterator[Columns]:
    if len(source.files) == 2 == num_sides:
        return _read_parallel(*source.files)
    if len(source.files) != 1:
        raise InputError(f"{source}: expected one file, or two for a pair of languages; got {len(source.files)}.")
    if source.columns is not None and len(source.columns) != num_sides:
        raise InputError(f"{source}: {len(source.columns)} columns named where {num_sides} are needed.")
    (path,) = source.files
    if source.resolved_format == "tsv":
        return _read_tsv(line_blocks(path, source.span), path, num_sides, source.columns)
    if source.resolved_format == "jsonl":
        return _read_jsonl(line_blocks(path, source.span), path, source.columns or DEFAULT_FIELDS[num_sides])
    if source.resolved_format == "parquet":
        return _read_parquet(path, source.columns or DEFAULT_FIELDS[num_sides])
    if num_sides == 2:
        raise InputError(f"{source}: a pair of languages needs two text files, or one named .tsv, .jsonl or .parquet.")
    return _read_documents(path) if documents else ((lines,) for lines in line_blocks(path, source.span))


def _read_parallel(source_path: Path, target_path: Path) -> Iterator[Columns]:
    sides = line_blocks(source_path), line_blocks(target_path)
    source, target = next(sides[0], []), next(sides[1], [])
    num_lines = 0
    while count := min(len(source), len(target)):
        yield source[:count], target[:count]
        num_lines += count
        source, target = source[count:] or next(sides[0], []), target[count:] or next(sides[1], [])
    if source or target:
        counts = [
            num_lines + len(rest) + sum(map(len, side)) for rest, side in zip((source, target), sides, strict=True)
        ]
        raise InputError(
            f"{source_path} has {counts[0]:,} lines but {target_path} has {counts[1]:,}: parallel files must agree "
            "line by line."
        )


def _read_documents(path: Path) -> Iterator[Columns]:
    lines_of_document: list[str] = []
    number = size = 0
    for lines in line_blocks(path):
        documents = []
        for line in lines:
            number += 1
            if line and not line.isspace():
                lines_of_document.append(line)
                size += len(line)
                if size > MAX_TEXT_BYTES:
                    raise InputError(
                        f"{path}, line {number}: {too_long('document')} Blank lines separate documents; a file "
                        "without them has sentences (no --documents)."
                    )
            elif lines_of_document:
                documents.append("\n".join(lines_of_document))
                lines_of_document, size = [], 0
        yield (documents,)
    if lines_of_document:
        yield (["\n".join(lines_of_document)],)


def _read_tsv(
    blocks: Iterator[list[str]], path: Path, num_sides: int, columns: tuple[str, ...] | None
) -> Iterator[Columns]:
    if columns is not None and not all(column.isdecimal() and int(column) > 0 for column in columns):
        raise InputError(f"{path}: columns of a TSV file are numbers from 1, not {','.join(columns)!r}.")
    wanted = [int(column) - 1 for column in columns] if columns else list(range(num_sides))
    width = max(wanted) + 1
    blank = [""] * width
    first = 1
    for lines in blocks:
        rows = [line.split("\t") if line and not line.isspace() else blank for line in lines]
        for number, cells in enumerate(rows, start=first):
            if len(cells) < width and columns is not None:
                raise InputError(f"{path}, line {number}: has no column {width}, only {len(cells)}.")
            if len(cells) != width and columns is None:
                raise InputError(
                    f"{path}, line {number}: found {len(cells)} columns, expected {num_sides}; if the file has more, "
                    f"name the ones to read, as in {path.name}:2,3."
                )
        yield tuple([cells[index] for cells in rows] for index in wanted)
        first += len(lines)


def _read_jsonl(blocks: Iterator[list[str]], path: Path, fields: tuple[str, ...]) -> Iterator[Columns]:
    first = 1
    for lines in blocks:
        records = [_json_record(path, number, line, fields) for number, line in enumerate(lines, start=first)]
        yield tuple(map(list, zip(*records, strict=True)))
        first += len(lines)


def _json_record(path: Path, number: int, line: str, fields: tuple[str, ...]) -> Record:
    if not line.strip():
        return ("",) * len(fields)
    try:
        value = json.loads(line)
        record = tuple(value[field] for field in fields)
        "".join(record).encode()  # an escape such as \ud800 is valid JSON but not valid text
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}, line {number}: not valid JSON text ({error}).") from None
    except (KeyError, TypeError):
        raise InputError(
            f"{path}, line {number}: expected an object with text in {' and '.join(map(repr, fields))}; "
            f"to read other fields name them, as in {path.name}:{','.join(fields)}."
        ) from None
    if any("\0" in text for text in record):
        raise InputError(f"{path}, line {number}: contains a NUL character.")
    return record


def _read_parquet(path: Path, fields: tuple[str, ...]) -> Iterator[Columns]:
    if path == STDIN:
        raise InputError("Parquet cannot be read from standard input: name a file.")
    try:
        with pq.ParquetFile(path) as file:
            for field in fields:
                _check_parquet_field(path, file.schema_arrow, field)
            first = 1
            for batch in file.iter_batches(PARQUET_ROWS, columns=list(fields)):
                yield tuple(_parquet_texts(path, batch, field, first) for field in fields)
                first += batch.num_rows
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise InputError(f"{path} is damaged, not a Parquet file, or not UTF-8: {error}.") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from None


def _check_parquet_field(path: Path, schema: pa.Schema, field: str) -> None:
    known = [
        column.name for column in schema if pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    ]
    if field not in known:
        raise InputError(
            f"{path} has no column of text {field!r}, only {', '.join(known) or 'none'}; to read others name them, as "
            f"in {path.name}:{','.join(known[:2]) or 'text'}."
        )


def _parquet_texts(path: Path, batch: pa.RecordBatch, field: str, first: int) -> list[str]:
    texts = [text or "" for text in batch.column(field).to_pylist()]
    for number, text in enumerate(texts, start=first):
        if "\0" in text:
            raise InputError(f"{path}, row {number}: contains a NUL character.")
        if len(text) > MAX_TEXT_BYTES:
            raise InputError(f"{path}, row {number}: {too_long('text')}")
    return texts
