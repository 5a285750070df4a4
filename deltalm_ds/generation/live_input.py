"""Standard input in chunks of what has come, so that a line is answered before the next one is written."""

import os
import select
import stat
import time
from collections.abc import Iterator
from pathlib import Path

from deltalm_ds.lines import lines_of, standard_input

READ_BYTES = 1 << 16  # what a pipe holds
CHUNK_BYTES = 1 << 21  # about as many lines as `translate` sorts together
WAIT_S = 0.05  # for more, once something has come: whoever writes a file into a pipe gets full chunks


def is_live() -> bool:
    """Whether standard input is a terminal, a pipe or a socket, where more may come later, and not a file.

    Raises:
        InputError: it is closed.
    """
    try:
        return not stat.S_ISREG(os.fstat(standard_input().fileno()).st_mode)
    except OSError:  # not a file of the system's at all
        return False


def live_lines() -> Iterator[list[str]]:
    """The lines of standard input, in chunks of what has come; InputError as `line_blocks`."""
    return lines_of(Path("standard input"), _chunks(standard_input().fileno()))


def _chunks(descriptor: int) -> Iterator[bytes]:
    """Wait for something, then take what else comes within `WAIT_S`. Nothing else may read from the descriptor."""
    while chunk := os.read(descriptor, READ_BYTES):
        end = time.monotonic() + WAIT_S
        while len(chunk) < CHUNK_BYTES and select.select([descriptor], [], [], max(0.0, end - time.monotonic()))[0]:
            more = os.read(descriptor, READ_BYTES)
            if not more:  # the end, which a terminal says only once
                yield chunk
                return
            chunk += more
        yield chunk
