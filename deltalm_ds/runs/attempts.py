"""Attempts of a supervised run, by number: of several that may be alive somewhere, only the newest may write.

A host that is cut off, and a process that somebody stopped, may wake up when another attempt has long gone on in the
run directory. Nobody waits for them: RUN/launch/attempt has the number that may write, and ranks that find another one
there end. What they find out too late they would write under names of their own attempt, or into files that are not
in the directory any more.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from deltalm_ds.errors import FAILED_EXIT_CODE
from deltalm_ds.files import write_in_place
from deltalm_ds.streams import say

ATTEMPT = "DELTALM_ATTEMPT"  # environment of a rank: the number of its attempt; without it nothing is fenced
_BYTES = 16


class TakenOver(Exception):
    """Another attempt has begun: this one must not write any more."""


@dataclass(frozen=True)
class Fence:
    """Around the run directory.

    Attributes:
        run: the run directory.
        number: of the attempt that is let through while no later one has begun; None: all are.
    """

    run: Path
    number: int | None

    def check(self) -> None:
        """TakenOver if a later attempt has begun."""
        if self.number is not None and (newest := current_attempt(self.run)) > self.number:
            raise TakenOver(
                f"Attempt {newest} goes on in {self.run}: this process, of attempt {self.number}, ends and writes "
                "nothing any more."
            )


def attempt_name(number: int) -> str:
    """As it stands in names of files and directories."""
    return f"attempt_{number:04d}"


def temporary_of_attempt(path: Path) -> Path:
    """A hidden name beside `path`, for all ranks of this process's attempt: those of another one write elsewhere."""
    attempt = own_attempt()
    return path.with_name(f".{path.name}.tmp" if attempt is None else f".{path.name}.{attempt_name(attempt)}.tmp")


def begin_attempt(run: Path) -> int:
    """Begin the next attempt, which fences off all before it; its number, from 1. The caller holds the run's lock.

    The number is written in place, as clients of a network file system see another content at the next look, but
    another file only after a while.
    """
    number = current_attempt(run) + 1
    path = _path(run)
    path.parent.mkdir(exist_ok=True)
    write_in_place(path, str(number), _BYTES, durable=True)
    return number


def current_attempt(run: Path) -> int:
    """The number of the newest attempt; 0 before the first one."""
    try:
        return int(_path(run).read_text() or 0)
    except FileNotFoundError:
        return 0


def _path(run: Path) -> Path:
    return run / "launch" / "attempt"


def own_attempt() -> int | None:
    """The attempt that this process belongs to; None if to none."""
    number = os.environ.get(ATTEMPT)
    return int(number) if number else None


def end_if_taken_over(run: Path) -> None:
    """To be called before a rank writes into its run: end this process, with a sentence, if it must not any more.

    At once, from whatever thread: on its way out a rank would close its logs and record its end.
    """
    try:
        Fence(run, own_attempt()).check()
    except TakenOver as error:
        say(error)
        os._exit(FAILED_EXIT_CODE)
