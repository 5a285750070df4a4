"""Text files for every verb: plain, .gz, .xz, .bz2, .zst, a member of a .zip, or standard input (`-`).

Text is strict UTF-8 without NUL; a byte order mark at its start is left out. Lines end with "\\n" or "\\r\\n" and
nothing else. Memory is that of one block and the longest line, which has a limit; whatever is wrong is an InputError
that names file and line.
"""

import bz2
import codecs
import gzip
import lzma
import sys
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from itertools import chain
from pathlib import Path
from typing import IO, Any

import zstandard

from deltalm_ds.errors import InputError

BLOCK_BYTES = 1 << 17
MAX_TEXT_BYTES = 8 << 20  # of a line, record or document: text comes in memory whole
STDIN = Path("-")
OPENERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open, ".bz2": bz2.open}
COMPRESSIONS = (*OPENERS, ".zst")
ZIP_MEMBER = ".zip!"  # in `corpus.zip!member.en`; the member may be a pattern that fits one name
ZSTD_INPUT_BYTES = 1 << 16
# How files that are no text begin, and what to do with them.
FIRST_BYTES = {
    b"\x1f\x8b": "this is gzip: its name must end in .gz.",
    b"\xfd7zXZ": "this is xz: its name must end in .xz.",
    b"BZh": "this is bzip2: its name must end in .bz2.",
    b"\x28\xb5\x2f\xfd": "this is zstandard: its name must end in .zst.",
    b"PK\x03\x04": "this is a .zip archive, or a document that is one: name it so, or save the document as text.",
    b"PAR1": "this is Parquet: its name must end in .parquet.",
    b"\xff\xfe": "this is UTF-16: convert it to UTF-8.",
    b"\xfe\xff": "this is UTF-16: convert it to UTF-8.",
}


# --- reading ---


def read_lines(path: str | Path) -> list[str]:
    """All lines of a file without their ends; see `line_blocks`."""
    return list(chain.from_iterable(line_blocks(Path(path))))


def numbered_lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """Yield each line's number, from 1, and the line without its end; see `line_blocks`."""
    return enumerate(chain.from_iterable(line_blocks(Path(path))), start=1)


def read_parallel_lines(first: str | Path, second: str | Path) -> tuple[list[str], list[str]]:
    """The lines of two files that belong together line by line.

    Raises:
        InputError: they have different numbers of lines, or both are standard input; or see `line_blocks`.
    """
    sides = read_all_parallel_lines([Path(first), Path(second)])
    return sides[0], sides[1]


def read_all_parallel_lines(paths: Sequence[Path]) -> list[list[str]]:
    """The lines of files that belong together line by line; raises as `read_parallel_lines`."""
    if list(paths).count(STDIN) > 1:
        raise InputError("Standard input can be read only once: name a file for the other side.")
    sides = [read_lines(path) for path in paths]
    for path, lines in zip(paths, sides, strict=True):
        if len(lines) != len(sides[0]):
            raise unequal_lines(paths[0], len(sides[0]), path, len(lines))
    return sides


def unequal_lines(first: str | Path, num_first: int, second: str | Path, num_second: int) -> InputError:
    """The error that two files have different numbers of lines.

    Args:
        first: a file.
        num_first: its lines.
        second: the other file.
        num_second: the other's lines.
    """
    return InputError(
        f"{name_of(first)} has {num_first:,} lines but {name_of(second)} has {num_second:,}: the two must agree line "
        "by line."
    )


def line_blocks(path: Path, span: tuple[int, int] | None = None) -> Iterator[list[str]]:
    """Yield the lines of a file without their ends, some at a time; no block is empty.

    Lines of standard input are yielded as they come.

    Args:
        span: of a plain file, the bytes in which the lines begin: from the first number up to the second. The errors
            then count lines from there.

    Raises:
        InputError: the file cannot be read or decoded, has a NUL byte or a line over `MAX_TEXT_BYTES`, or has
            carriage returns for line ends.
    """
    number, pending = 1, b""
    at_start = span is None or span[0] == 0
    for block in _blocks(path, span):
        end = block.rfind(b"\n") + 1
        # Only a line that began in an earlier block can be too long.
        if len(pending) + (block.find(b"\n") if end else len(block)) > MAX_TEXT_BYTES:
            raise InputError(f"{name_of(path)}, line {number}: {too_long('line')}")
        if end:
            lines = _decode_lines(path, pending + block[:end], number, at_start)
            yield lines
            number += len(lines)
            pending = block[end:]
        else:
            pending += block
    if pending:
        lines = _decode_lines(path, pending, number, at_start)
        if number == 1 and at_start and "\r" in lines[0]:
            raise InputError(
                f"{name_of(path)}, line 1: lines end with carriage returns alone: convert them to line feeds, as with "
                "tr '\\r' '\\n'."
            )
        yield lines


def text_blocks(path: Path) -> Iterator[str]:
    """Yield the text of a file, some at a time, for formats in which a line may have any length; see `line_blocks`."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    number, first = 1, b""
    for block in chain(_blocks(path), [b""]):
        first = first or block
        try:
            text = decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            number += error.object.count(b"\n", 0, error.start)
            raise _not_utf8(path, number, f"byte 0x{error.object[error.start]:02x}", first) from None
        if "\0" in text:
            raise _nul(path, number + text.count("\n", 0, text.index("\0")), first)
        number += text.count("\n")
        yield text


def read_whole(path: str | Path) -> bytes:
    """The decompressed bytes of a file.

    Raises:
        InputError: it cannot be read.
    """
    return b"".join(_blocks(Path(path)))


def decoded(data: bytes, path: Path) -> str:
    """All the text of a file, with its byte order mark and line ends as they are.

    Raises:
        InputError: it is no text in UTF-8, has a NUL byte, or is longer than `MAX_TEXT_BYTES`.
    """
    if len(data) > MAX_TEXT_BYTES:
        raise InputError(f"{name_of(path)}: {too_long('document')}")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        number = 1 + data.count(b"\n", 0, error.start)
        raise _not_utf8(path, number, f"byte 0x{data[error.start]:02x}", data) from None
    if "\0" in text:
        raise _nul(path, 1 + text.count("\n", 0, text.index("\0")), data)
    return text


# --- names ---


def name_of(path: str | Path) -> str:
    """How messages call a file: by its path, or as standard input."""
    return "standard input" if Path(path) == STDIN else str(path)


def is_plain(path: Path) -> bool:
    """Whether this is a file whose bytes are the text's, so that it can be read from any place."""
    return path != STDIN and _compression(path) is None and _archive_and_member(path) is None


def file_of(path: Path) -> Path:
    """The file that is opened for a name: the archive of a member, else the file itself."""
    found = _archive_and_member(path)
    return found[0] if found else path


def text_name(path: Path) -> str:
    """The name that tells what text this is: a member's for an archive, and without the suffix of a compression.

    Raises:
        InputError: the archive cannot be read, or the name fits none or several of its members.
    """
    if found := _archive_and_member(path):
        with _naming_faults(path), zipfile.ZipFile(found[0]) as archive:
            return _member_name(path, archive, found[1])
    return path.name if _compression(path) is None else path.stem


def too_long(what: str) -> str:
    """The end of the message that refuses an over-long text."""
    return f"the {what} is longer than {MAX_TEXT_BYTES:,} bytes: divide it, or leave it out."


def _compression(path: Path) -> str | None:
    suffix = path.suffix.lower()
    return suffix if suffix in COMPRESSIONS else None


def _archive_and_member(path: Path) -> tuple[Path, str] | None:
    """The archive and the pattern of the member; None for a file that is no archive."""
    archive, bang, member = str(path).partition(ZIP_MEMBER)
    if bang:
        return Path(f"{archive}.zip"), member
    return (path, "*") if path.suffix.lower() == ".zip" else None


def _member_name(path: Path, archive: zipfile.ZipFile, pattern: str) -> str:
    names = [name for name in archive.namelist() if fnmatchcase(name, pattern) and not name.endswith("/")]
    if len(names) != 1:
        listed = ", ".join(archive.namelist()[:10])
        raise InputError(
            f"{path}: {len(names)} members fit; name one, as in {archive.filename}!*.en. The archive has: {listed}."
        )
    return names[0]


# --- decoding ---


def _decode_lines(path: Path, data: bytes, number: int, at_start: bool) -> list[str]:
    """The lines of `data`, of which the first has this number, counted from the start of the file or a later place."""
    at_start = at_start and number == 1
    first = data if at_start else b""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        position = error.start - data.rfind(b"\n", 0, error.start)
        what = f"byte 0x{data[error.start]:02x} at position {position}"
        raise _not_utf8(path, number + data.count(b"\n", 0, error.start), what, first) from None
    if b"\0" in data:
        raise _nul(path, number + text.count("\n", 0, text.index("\0")), first)
    lines = (text.removeprefix("\ufeff") if at_start else text).removesuffix("\n").split("\n")
    return [line.removesuffix("\r") for line in lines] if b"\r" in data else lines


def _not_utf8(path: Path, line: int, what: str, first: bytes) -> InputError:
    advice = _advice(first) or "convert the file to UTF-8."
    return InputError(f"{name_of(path)}, line {line}: not valid UTF-8 ({what}): {advice}")


def _nul(path: Path, line: int, first: bytes) -> InputError:
    advice = _advice(first) or "is this a text file in UTF-8?"
    return InputError(f"{name_of(path)}, line {line}: contains a NUL byte; {advice}")


def _advice(first: bytes) -> str | None:
    """What the first bytes of a file that is no text tell of it."""
    return next((advice for start, advice in FIRST_BYTES.items() if first.startswith(start)), None)


# --- bytes ---


def _blocks(path: Path, span: tuple[int, int] | None = None) -> Iterator[bytes]:
    """The decompressed bytes, at most `BLOCK_BYTES` at a time."""
    with _naming_faults(path), _open(path) as file:
        if _compression(path) == ".zst":
            yield from _zstandard_blocks(file)
        elif span is not None:
            yield from _span_blocks(file, *span)
        else:
            # What has come through a pipe is not kept waiting for more.
            read = getattr(file, "read1", file.read) if path == STDIN else file.read
            while block := read(BLOCK_BYTES):
                yield block


@contextmanager
def _naming_faults(path: Path) -> Iterator[None]:
    try:
        yield
    except (EOFError, lzma.LZMAError, zlib.error, zstandard.ZstdError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is damaged or cut short, or not a {path.suffix} file: {error}.") from None
    except OSError as error:
        raise InputError(f"{name_of(path)} cannot be read: {error.strerror or error}.") from None


@contextmanager
def _open(path: Path) -> Iterator[IO[bytes]]:
    if path == STDIN:
        if sys.stdin is None:
            raise InputError("standard input is closed: name a file.")
        yield sys.stdin.buffer
    elif found := _archive_and_member(path):
        with zipfile.ZipFile(found[0]) as archive:
            try:
                member = archive.open(_member_name(path, archive, found[1]))
            except RuntimeError as error:  # it is encrypted, or compressed in a way that the library has not
                raise InputError(f"{path} cannot be read: {error}.") from None
            with member:
                yield member
    else:
        compression = _compression(path)
        if compression and path.stat().st_size == 0:
            raise EOFError("it is empty")  # as a failed download is; only lzma says so itself
        with OPENERS.get(compression or "", open)(path, "rb") as file:
            yield file


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
