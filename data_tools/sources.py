"""Raw text in: plain lines, parallel files, TSV and JSONL, plain or .gz .xz .zst, read as a stream.

Text is strict UTF-8 (a byte order mark is left out), lines end with "\\n" or "\\r\\n" and nothing else, and
white space around a text is stripped. A record with an empty side is left out and counted; whatever else is
wrong with a file is an InputError that names it and the line.
"""

import gzip
import json
import lzma
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import zstandard

from deltalm_ds.errors import InputError

BLOCK_BYTES = 1 << 18
FORMATS = ("text", "tsv", "jsonl")
COMPRESSIONS = (".gz", ".xz", ".zst")
OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open}
DEFAULT_FIELDS = {1: ("text",), 2: ("source", "target")}

Record = tuple[str, ...]


@dataclass(frozen=True)
class Source:
    """Where the texts of a corpus lie: one file, or two plain text files that belong together line by line.

    Attributes:
        format: `text`, `tsv` or `jsonl`; None tells it from the name of the file.
        columns: which columns of a TSV file (numbers from 1; by default it must have as many columns as the
            corpus has sides) or which fields of a JSONL file (by default `text`, or `source` and `target`).
    """

    files: tuple[Path, ...]
    format: str | None = None
    columns: tuple[str, ...] | None = None

    @property
    def resolved_format(self) -> str:
        """The format given, or the one that the file name tells: `.tsv`, `.jsonl`, anything else is text."""
        path = self.files[0]
        stem = path.with_suffix("") if path.suffix in COMPRESSIONS else path
        by_name = stem.suffix.removeprefix(".")
        return self.format or (by_name if by_name in FORMATS else "text")

    def __str__(self) -> str:
        return ", ".join(map(str, self.files))


def read_records(source: Source, num_sides: int, dropped: Counter[str]) -> Iterator[Record]:
    """Yield `num_sides` texts a record, in order; records with an empty side are counted in `dropped["empty"]`.

    Raises:
        InputError: a file cannot be read or decoded, a line is malformed, parallel files differ in length, or
            the source cannot give `num_sides` texts a record.
    """
    for raw_record in _open_records(source, num_sides):
        record = tuple(text.strip() for text in raw_record)
        if all(record):
            yield record
        else:
            dropped["empty"] += 1


def _open_records(source: Source, num_sides: int) -> Iterator[Record]:
    if len(source.files) == 2 == num_sides:
        return _read_parallel(*source.files)
    if len(source.files) != 1:
        raise InputError(f"{source}: expected one file, or two for a pair of languages; got {len(source.files)}.")
    if source.columns is not None and len(source.columns) != num_sides:
        raise InputError(f"{source}: {len(source.columns)} columns named where {num_sides} are needed.")
    if source.resolved_format == "tsv":
        return _read_tsv(source.files[0], num_sides, source.columns)
    if source.resolved_format == "jsonl":
        return _read_jsonl(source.files[0], source.columns or DEFAULT_FIELDS[num_sides])
    if num_sides == 2:
        raise InputError(f"{source}: a pair of languages needs two text files, or one named .tsv or .jsonl.")
    return ((text,) for text in read_lines(source.files[0]))


def read_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a file as text, without their ends."""
    for number, line in enumerate(_split_lines(_decompressed_blocks(path)), start=1):
        if b"\0" in line:
            raise InputError(f"{path}, line {number}: contains a NUL byte; is this a text file in UTF-8?")
        try:
            text = line.decode()
        except UnicodeDecodeError as error:
            raise InputError(
                f"{path}, line {number}: not valid UTF-8 (byte 0x{line[error.start]:02x} at position "
                f"{error.start + 1}): convert the file to UTF-8."
            ) from None
        yield (text.removeprefix("\ufeff") if number == 1 else text).removesuffix("\r")


def _read_parallel(source_path: Path, target_path: Path) -> Iterator[Record]:
    sides = read_lines(source_path), read_lines(target_path)
    for number, record in enumerate(zip_longest(*sides)):
        if None in record:
            missing = record.index(None)
            counts = [number, number]
            counts[1 - missing] += 1 + sum(1 for _ in sides[1 - missing])
            raise InputError(
                f"{source_path} has {counts[0]:,} lines but {target_path} has {counts[1]:,}: parallel files must "
                "agree line by line."
            )
        yield record


def _read_tsv(path: Path, num_sides: int, columns: tuple[str, ...] | None) -> Iterator[Record]:
    if columns is not None and not all(column.isdecimal() and int(column) > 0 for column in columns):
        raise InputError(f"{path}: columns of a TSV file are numbers from 1, not {','.join(columns)!r}.")
    wanted = [int(column) - 1 for column in columns] if columns else list(range(num_sides))
    for number, line in enumerate(read_lines(path), start=1):
        cells = line.split("\t")
        if not line.strip():
            yield ("",) * num_sides
        elif columns is None and len(cells) != num_sides:
            raise InputError(
                f"{path}, line {number}: found {len(cells)} columns, expected {num_sides}; if the file has more, "
                f"name the ones to read, as in {path.name}:2,3."
            )
        elif len(cells) <= max(wanted):
            raise InputError(f"{path}, line {number}: has no column {max(wanted) + 1}, only {len(cells)}.")
        else:
            yield tuple(cells[index] for index in wanted)


def _read_jsonl(path: Path, fields: tuple[str, ...]) -> Iterator[Record]:
    for number, line in enumerate(read_lines(path), start=1):
        if not line.strip():
            yield ("",) * len(fields)
            continue
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
        yield record


def _split_lines(blocks: Iterator[bytes]) -> Iterator[bytes]:
    pending: list[bytes] = []
    for block in blocks:
        first, *lines = block.split(b"\n")
        pending.append(first)
        if lines:
            yield b"".join(pending)
            yield from lines[:-1]
            pending = [lines[-1]]
    if last := b"".join(pending):
        yield last


def _decompressed_blocks(path: Path) -> Iterator[bytes]:
    try:
        if path.suffix == ".zst":
            yield from _zstandard_blocks(path)
            return
        with OPENERS.get(path.suffix, open)(path, "rb") as file:
            while block := file.read(BLOCK_BYTES):
                yield block
    except (EOFError, lzma.LZMAError, zlib.error, zstandard.ZstdError) as error:
        raise InputError(f"{path} is damaged or cut short, or not a {path.suffix} file: {error}.") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from None


def _zstandard_blocks(path: Path) -> Iterator[bytes]:
    """Decompress every frame; the library's own stream reader ends silently where a file was cut short."""
    frame = None
    with open(path, "rb") as file:
        while block := file.read(BLOCK_BYTES):
            while block:
                frame = frame or zstandard.ZstdDecompressor().decompressobj()
                yield frame.decompress(block)
                block = frame.unused_data if frame.eof else b""
                frame = None if frame.eof else frame
    if frame is not None:
        raise EOFError("the last frame is not complete")
