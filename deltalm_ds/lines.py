"""Files as blocks of text lines: plain, .gz, .xz, .zst, a member of a .zip, or standard input.

Text is strict UTF-8 (a byte order mark is left out), and lines end with "\\n" or "\\r\\n" and nothing else. Memory is
that of one block and the longest line, which has a limit; whatever is wrong is an InputError that names file and line.
"""

import gzip
import lzma
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import IO, Any

import zstandard

from deltalm_ds.errors import InputError

BLOCK_BYTES = 1 << 17
MAX_TEXT_BYTES = 8 << 20  # of a line, record or document: text comes in memory whole
STDIN = Path("-")
COMPRESSIONS = (".gz", ".xz", ".zst")
OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open}
ZIP_MEMBER = ".zip!"  # in `corpus.zip!member.en`; the member may be a pattern that fits one name
ZSTD_INPUT_BYTES = 1 << 16


def line_blocks(path: Path, span: tuple[int, int] | None = None) -> Iterator[list[str]]:
    """Yield the lines of a file without their ends, some at a time; no block is empty.

    Args:
        span: of a plain file, the bytes in which the lines begin: from the first number up to the second. The errors
            then count lines from there.

    Raises:
        InputError: the file cannot be read or decoded, or has a NUL byte or a line over `MAX_TEXT_BYTES`.
    """
    number, pending = 1, b""
    decode = partial(_decode, path, at_start=not span or span[0] == 0)
    for block in _blocks(path, span):
        end = block.rfind(b"\n") + 1
        # Only a line that began in an earlier block can be too long.
        if len(pending) + (block.find(b"\n") if end else len(block)) > MAX_TEXT_BYTES:
            raise InputError(f"{path}, line {number}: {too_long('line')}")
        if end:
            lines = decode(pending + block[:end], number)
            yield lines
            number += len(lines)
            pending = block[end:]
        else:
            pending += block
    if pending:
        yield decode(pending, number)


def is_plain(path: Path) -> bool:
    """Whether this is a file whose bytes are the text's, so that it can be read from any place."""
    return path != STDIN and path.suffix not in (*COMPRESSIONS, ".zip") and ZIP_MEMBER not in str(path)


def too_long(what: str) -> str:
    """The end of the message that refuses an over-long text."""
    return f"the {what} is longer than {MAX_TEXT_BYTES:,} bytes: divide it, or leave it out."


def _decode(path: Path, data: bytes, number: int, at_start: bool) -> list[str]:
    """The lines of `data`, of which the first has this number, counted from the start of the file or a later place."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise InputError(
            f"{path}, line {number + data.count(10, 0, error.start)}: not valid UTF-8 (byte "
            f"0x{data[error.start]:02x} at position {error.start - data.rfind(10, 0, error.start)}): convert the "
            "file to UTF-8."
        ) from None
    if b"\0" in data:
        number += text.count("\n", 0, text.index("\0"))
        raise InputError(f"{path}, line {number}: contains a NUL byte; is this a text file in UTF-8?")
    lines = (text.removeprefix("\ufeff") if number == 1 and at_start else text).removesuffix("\n").split("\n")
    return [line.removesuffix("\r") for line in lines] if b"\r" in data else lines


def _blocks(path: Path, span: tuple[int, int] | None = None) -> Iterator[bytes]:
    """The decompressed bytes, at most `BLOCK_BYTES` at a time."""
    try:
        with _open(path) as file:
            if path.suffix == ".zst":
                yield from _zstandard_blocks(file)
            elif span is not None:
                yield from _span_blocks(file, *span)
            else:
                # What has come through a pipe is not kept waiting for more.
                read = getattr(file, "read1", file.read) if path == STDIN else file.read
                while block := read(BLOCK_BYTES):
                    yield block
    except (EOFError, lzma.LZMAError, zlib.error, zstandard.ZstdError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is damaged or cut short, or not a {path.suffix} file: {error}.") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from None


@contextmanager
def _open(path: Path) -> Iterator[IO[bytes]]:
    archive, bang, member = str(path).partition(ZIP_MEMBER)
    if path == STDIN:
        if sys.stdin is None:
            raise InputError("standard input is closed: name a file.")
        yield sys.stdin.buffer
    elif bang or path.suffix == ".zip":
        with zipfile.ZipFile(f"{archive}.zip" if bang else path) as archive_file:
            name = _member_name(path, archive_file, member or "*")
            with archive_file.open(name) as file:
                yield file
    else:
        if path.suffix in COMPRESSIONS and path.stat().st_size == 0:
            raise EOFError("it is empty")  # as a failed download is; only lzma says so itself
        with OPENERS.get(path.suffix, open)(path, "rb") as file:
            yield file


def _member_name(path: Path, archive: zipfile.ZipFile, pattern: str) -> str:
    names = [name for name in archive.namelist() if fnmatchcase(name, pattern) and not name.endswith("/")]
    if len(names) != 1:
        listed = ", ".join(archive.namelist()[:10])
        raise InputError(
            f"{path}: {len(names)} members fit; name one, as in {archive.filename}!*.en. The archive has: {listed}."
        )
    return names[0]


def _span_blocks(file: IO[bytes], start: int, end: int) -> Iterator[bytes]:
    """The lines that begin in these bytes; whoever reads the span before this one reads the rest of its last line."""
    if start:
        file.seek(start - 1)
        file.readline(MAX_TEXT_BYTES + 1)
    last = b"\n"
    while (left := end - file.tell()) > 0 and (block := file.read(min(left, BLOCK_BYTES))):
        yield block
        last = block[-1:]
    if last != b"\n":
        yield file.readline(MAX_TEXT_BYTES + 1)


def _zstandard_blocks(file: IO[bytes]) -> Iterator[bytes]:
    """Decompress every frame; the library's own stream reader ends silently where a file was cut short."""
    frame = None
    while data := file.read(ZSTD_INPUT_BYTES):
        while data:
            frame = frame or zstandard.ZstdDecompressor().decompressobj()
            text = frame.decompress(data)
            for start in range(0, len(text), BLOCK_BYTES):
                yield text[start : start + BLOCK_BYTES]
            data = frame.unused_data if frame.eof else b""
            frame = None if frame.eof else frame
    if frame is not None:
        raise EOFError("the last frame is not complete")
