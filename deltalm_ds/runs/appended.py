"""A file of JSON lines that somebody else is writing: each look reads what was appended since the one before."""

import json
import os
from pathlib import Path
from typing import IO, Any


class AppendedLines:
    """The objects of a file of JSON lines, as they come.

    A resumed run writes its log anew up to the checkpoint; the file is then another one, or shorter, and begins again.

    Attributes:
        begins_again: whether the last `read` gave the file from its beginning.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._file, self._position, self._rest = path, -1, 0, b""
        self.begins_again = False

    def read(self) -> list[dict[str, Any]]:
        """What was appended, without a last line that is not whole yet and whatever is no JSON object."""
        try:
            with open(self._path, "rb") as file:
                return self._read(file)
        except FileNotFoundError:
            return []

    def _read(self, file: IO[bytes]) -> list[dict[str, Any]]:
        facts = os.fstat(file.fileno())
        self.begins_again = facts.st_ino != self._file or facts.st_size < self._position
        if self.begins_again:
            self._file, self._position, self._rest = facts.st_ino, 0, b""
        file.seek(self._position)
        content = file.read()
        self._position += len(content)
        *lines, self._rest = (self._rest + content).split(b"\n")
        return [found for line in lines if (found := _object_of(line)) is not None]


def _object_of(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
