"""Standard input in chunks of what has come, so that a line is answered before the next one is written."""

import os
import select
import stat
import sys
import time
from collections.abc import Iterator

from deltalm_ds.generation.translate import CHUNK_LINES
from deltalm_ds.lines import STDIN, line_blocks

WAIT_S = 0.05  # for more, once something has come: whoever writes a file into a pipe gets full chunks


def is_live() -> bool:
    """Whether standard input is a terminal, a pipe or a socket, where more may come later, and not a file."""
    try:
        return sys.stdin is not None and not stat.S_ISREG(os.fstat(sys.stdin.fileno()).st_mode)
    except OSError:  # no file of the system's at all
        return False


def live_lines() -> Iterator[list[str]]:
    """The lines of standard input, in chunks of those that have come and those that follow within `WAIT_S`.

    Raises:
        InputError: as `line_blocks`.
    """
    blocks = line_blocks(STDIN)
    for lines in blocks:
        end = time.monotonic() + WAIT_S
        while len(lines) < CHUNK_LINES and select.select([sys.stdin], [], [], max(0.0, end - time.monotonic()))[0]:
            more = next(blocks, None)
            if more is None:
                break
            lines += more
        yield lines
