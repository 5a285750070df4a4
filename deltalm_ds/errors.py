"""What can go wrong for a user, and the exit code each gives: one contract for people, launchers and schedulers.

0 done. 75 stopped on request, saved: start it again to go on. 2, 3, 4 (wrong usage or input; damaged or mismatched
data; a check did not hold): the same command would fail again. 1 (unexpected: a traceback is printed) and any other,
such as a signal's: it failed, try again.
"""

import difflib
from collections.abc import Iterable

DONE_EXIT_CODE = 0
FAILED_EXIT_CODE = 1
STOPPED_EXIT_CODE = 75


class InputError(ValueError):
    """Something the user gave is wrong: the message says what, where and what to do."""

    exit_code = 2


class DataError(InputError):
    """Files on disk are damaged, altered or do not belong together."""

    exit_code = 3


class CheckError(InputError):
    """A check that guards a result (an export's parity, say) did not hold."""

    exit_code = 4


FINAL_EXIT_CODES = frozenset({InputError.exit_code, DataError.exit_code, CheckError.exit_code})  # do not try again


def os_error_sentence(error: OSError) -> str:
    """What the system could not do, and with which file."""
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}."


def nearest(name: object, known: Iterable[str]) -> str | None:
    """Of the known names the most similar one, to say in a message; None where nothing is known."""
    return next(iter(difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.0)), None)
