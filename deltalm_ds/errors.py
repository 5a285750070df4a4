"""What can go wrong for a user, and the exit code each gives.

Exit codes of every command: 0 done, 1 unexpected error (a traceback is printed), 2 wrong usage or input,
3 damaged or mismatched data, 4 a check did not hold, 75 stopped by a signal after saving (run it again to go on).
"""

import difflib
from collections.abc import Iterable

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


def os_error_sentence(error: OSError) -> str:
    """What the system could not do, and with which file."""
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}."


def nearest(name: object, known: Iterable[str]) -> str | None:
    """Of the known names the most similar one, to say in a message; None where nothing is known."""
    return next(iter(difflib.get_close_matches(str(name), list(known), n=1, cutoff=0.0)), None)
