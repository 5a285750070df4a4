"""fairseq's dict.txt: `token count` a line, in the order of the ids."""

import re
from pathlib import Path

from deltalm_ds.errors import InputError
from deltalm_ds.lines import line_blocks
from deltalm_ds.token_ids import SPECIAL_TOKENS

OVERWRITE = " #fairseq:overwrite"


def read_fairseq_dict(path: str | Path) -> list[str]:
    """The tokens of a fairseq dict.txt; line i, from 0, has id 4 + i [facts: token ids].

    Counts do not matter here: they may be negative or missing. Empty lines at the end are left out. Of two lines with
    the same token the later one has it, if it says so as fairseq wants it (`#fairseq:overwrite`); the earlier one keeps
    its id and is called `<overwritten_5>`. So is the later one itself if the token is one of the special ones, which
    have the ids 0 to 3.

    Raises:
        InputError: a line is malformed or a token stands there twice (the message has the numbers), or this is the
            .vocab of a SentencePiece model.
    """
    tokens: list[str] = []
    line_of = dict.fromkeys(SPECIAL_TOKENS, 0)
    for number, line in enumerate(_lines(Path(path)), start=1):
        token, overwrites = _entry(path, number, line)
        first = line_of.get(token)
        if first is not None and not overwrites:
            where = f"it is in line {first} already" if first else "every dictionary has it before its first line"
            raise InputError(f"{path}, line {number}: the token {token!r} stands there twice: {where}.")
        tokens.append(token)
        if first is None:
            line_of[token] = number
        elif first:
            tokens[first - 1], line_of[token] = _dead_row(first), number
        else:
            tokens[-1] = _dead_row(number)
    if not tokens:
        raise InputError(f"{path} is empty: expected one 'token count' a line.")
    return tokens


def _lines(path: Path) -> list[str]:
    lines = [line for block in line_blocks(path) for line in block]
    while lines and not lines[-1].strip():
        lines.pop()
    return lines


def _entry(path: str | Path, number: int, line: str) -> tuple[str, bool]:
    """The token of a line, and whether it takes the place of an earlier one."""
    if re.fullmatch(r"[^\t]+\t-?\d[\d.e+-]*", line):
        raise InputError(
            f"{path}, line {number}: a piece and its score, as in the .vocab of a SentencePiece model: give the model "
            f"itself (deltalm vocab import --spm {Path(path).with_suffix('.model')})."
        )
    entry = line.rstrip()
    overwrites = entry.endswith(OVERWRITE)
    token, space, count = entry.removesuffix(OVERWRITE).rpartition(" ")
    if token and re.fullmatch(r"-?\d+", count):
        return token, overwrites
    if count and not space:
        return count, overwrites
    raise InputError(f"{path}, line {number}: expected 'token count', found {entry!r}.")


def _dead_row(number: int) -> str:
    """The name of the row of a line whose token has another row; nothing gives its id."""
    return f"<overwritten_{len(SPECIAL_TOKENS) + number - 1}>"
