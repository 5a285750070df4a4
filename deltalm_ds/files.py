"""Writing so that a file or directory is either complete or absent, by one process at a time."""

import errno
import fcntl
import hashlib
import json
import math
import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from deltalm_ds.errors import InputError
from deltalm_ds.streams import say


def fsync_path(path: Path) -> None:
    """Flush a file's or a directory's content to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(path: str | Path, in_use: str) -> Iterator[None]:
    """Hold the lock file `path`, created if need be, for the block.

    The system lets go of the lock when the process ends, however it ends. On a file system without locks, one warning
    on stderr says that nothing keeps a second process out.

    Args:
        in_use: what to say where another process holds it: what is in use, and what to do.

    Raises:
        InputError: another process holds it; the message is `in_use` and, where it is known, which process that is.
    """
    with open(path, "a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read(200).decode(errors="replace").strip()
            raise InputError(f"{in_use} It is held by {holder}." if holder else in_use) from None
        except OSError as error:
            say(
                f"warning: {path} cannot be locked ({error.strerror or error}): see to it yourself that no other "
                "process writes there."
            )
        _name_holder(file, f"process {os.getpid()} on {socket.gethostname()}\n")
        try:
            yield
        finally:
            _name_holder(file, "")


def _name_holder(file: IO[bytes], holder: str) -> None:
    with suppress(OSError):  # a full disk, say: the lock holds without the holder's name
        os.ftruncate(file.fileno(), 0)
        os.write(file.fileno(), holder.encode())


@contextmanager
def naming_full_disk(path: str | Path, advice: str | None = None) -> Iterator[None]:
    """Make the error of a full disk or an exhausted quota say where it was.

    Args:
        path: what is being written; the OSError gets this name where it has none.
        advice: what the user should do; with it the OSError becomes an InputError that says so.

    Raises:
        InputError: the disk got full, and there is advice.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        if advice is not None:
            raise InputError(f"The disk got full while writing to {path}: {advice}") from error
        if error.filename is None:
            error.filename = str(path)
        raise


def temporary_path(path: Path) -> Path:
    """A hidden name beside `path` that this process alone takes: processes of two hosts may have the same number."""
    return path.with_name(f".{path.name}.{socket.gethostname()}.{os.getpid()}.tmp")


@contextmanager
def _named(path: Path, temporary: Path) -> Iterator[None]:
    """Make the errors of a file or directory that is being written name what it will be."""
    try:
        with naming_full_disk(path):
            yield
    except OSError as error:
        if error.filename is not None:
            error.filename = str(error.filename).replace(str(temporary), str(path))
        raise


@contextmanager
def atomic_file(path: str | Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open `path` for writing; it appears under its name only when the block ends without an error."""
    path = Path(path)
    temporary = temporary_path(path)
    try:
        with _named(path, temporary), open(temporary, mode, encoding=None if "b" in mode else "utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        fsync_path(path.parent)
    finally:
        with suppress(OSError):  # it may never have been there
            temporary.unlink()


def write_in_place(path: Path, text: str, size: int, durable: bool = False) -> None:
    """Write text, filled up to so many bytes, over a file's content, as long each time: nobody reads a part of it.

    Args:
        path: the file, created if need be.
        text: shorter than `size` bytes in UTF-8.
        size: in bytes.
        durable: flush it to the disk.
    """
    file = os.open(path, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        os.pwrite(file, text.encode().ljust(size - 1) + b"\n", 0)
        if durable:
            os.fsync(file)
    finally:
        os.close(file)


class Appended:
    """Text appended to a file at once; what a full disk does not take is kept, and goes first the next time."""

    def __init__(self, path: Path) -> None:
        self._file, self._waiting = open(path, "ab", buffering=0), b""  # noqa: SIM115 (open until close)

    def write(self, text: str) -> None:
        """Append; OSError where some of it still waits."""
        self._waiting += text.encode()
        while self._waiting:
            self._waiting = self._waiting[self._file.write(self._waiting) :]

    def close(self) -> None:
        """Try once more to write what waits; OSError if that fails."""
        with self._file:
            self.write("")


@contextmanager
def atomic_directory(path: str | Path) -> Iterator[Path]:
    """Yield a temporary directory that becomes `path` when the block ends without an error.

    Raises:
        InputError: `path` exists already and is not an empty directory.
    """
    path = Path(path)
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise InputError(f"{path} exists already: name a new directory or remove it first.")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_path(path)
    try:
        with _named(path, temporary):
            temporary.mkdir()
            yield temporary
            for entry in temporary.rglob("*"):
                if entry.is_file():
                    fsync_path(entry)
        publish_directory(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def publish_directory(temporary: Path, path: Path) -> None:
    """Rename a complete temporary directory to its final name, durably."""
    fsync_path(temporary)
    os.replace(temporary, path)
    fsync_path(path.parent)


def finite(value: Any) -> Any:
    """The same value with None for each float that is not finite: JSON has neither NaN nor infinity."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {name: finite(inner) for name, inner in value.items()}
    return [finite(inner) for inner in value] if isinstance(value, list | tuple) else value


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented UTF-8 JSON, atomically."""
    text = json.dumps(value, indent=1, ensure_ascii=False)
    with atomic_file(path, "wb") as file:
        # What cannot be UTF-8, as in odd file names, stands there as JSON's own escapes.
        file.write(f"{text}\n".encode(errors="backslashreplace"))


def read_json(path: str | Path) -> Any:
    """Read JSON; a missing or unreadable file is an InputError that names it."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist.") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not valid JSON: {error}.") from None


def sha256_of(path: str | Path) -> str:
    """The SHA-256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
