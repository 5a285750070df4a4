"""Messages on stderr, also where nobody reads them any more: a closed terminal must not end what runs for a week."""

import io
import sys
from contextlib import suppress
from typing import Any


def say(message: object, sender: str = "deltalm") -> None:
    """On stderr and at once, as a line that begins with who says it."""
    print(f"{sender}: {message}", file=sys.stderr, flush=True)


class _Forgiving(io.FileIO):
    """Takes what cannot be written as if it were."""

    def write(self, data: Any) -> int:
        with suppress(OSError):
            return super().write(data)
        return len(data)


def survive_lost_terminal() -> None:
    """Let this process's stdout and stderr lose what they cannot write, where a write would raise OSError."""
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        stream = getattr(sys, name)
        if stream is not None and stream is getattr(sys, f"__{name}__"):  # what a caller put in its place stays
            raw = io.BufferedWriter(_Forgiving(descriptor, "w", closefd=False))
            setattr(sys, name, io.TextIOWrapper(raw, "utf-8", "backslashreplace", line_buffering=True))
