"""Another vocabulary and other lengths for a model: rows of its tables by what they mean, never by their number.

V_s source rows, V target rows (padding rows included), M model dim, P positions. A token keeps its row if the source
has a token of the same name; any other token gets a new row, close to the mean of the rows kept: scores and outputs
change little by it, as the output layer is tied to the table [Hewitt21], and noise tells new rows apart.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from deltalm_ds.arrays.counter_rng import name_key, uniform
from deltalm_ds.errors import DataError, InputError
from deltalm_ds.vocabulary import Vocabulary

NOISE = 0.1  # times the standard deviation of the rows kept
_CHUNK_ROWS = 16384


@dataclass(frozen=True)
class RowMap:
    """Where each row of a target's table comes from. Rows are those of the target unless said otherwise.

    Attributes:
        kept: row -> source row of the token of that name.
        copied: row -> source row of the token that the user named for it.
        new: rows without a source -> their tokens.
        dropped: tokens of the source that the target has not.
        num_unnamed: source rows that no token names; none is taken.
        num_source_rows, num_rows: rows of either table; of the target's, those in no mapping are padding.
    """

    kept: dict[int, int]
    copied: dict[int, int]
    new: dict[int, str]
    dropped: tuple[str, ...]
    num_unnamed: int
    num_source_rows: int
    num_rows: int


def map_rows(
    source_tokens: Sequence[str | None], target: Vocabulary, copies: Mapping[str, str] | None = None
) -> RowMap:
    """Map rows by token string.

    Args:
        source_tokens: the name of each row of the source's table; None for a row that none is known of, or padding.
        copies: new token -> the source's token whose row it starts from.

    Raises:
        DataError: two rows of the source have the same name.
        InputError: `copies` names a token that the target or the source has not, or one that keeps its own row.
    """
    copies = copies or {}
    source_row = _rows_of_names(source_tokens)
    row_of = {target.token(row): row for row in range(target.num_tokens)}
    for new, old in copies.items():
        if new not in row_of:
            raise InputError(f"There is no token {new!r} in the new vocabulary to copy a row to.")
        if new in source_row:
            raise InputError(f"The token {new!r} keeps its own row: it cannot be a copy of {old!r}.")
        if old not in source_row:
            raise InputError(f"There is no token {old!r} in the source to copy to {new!r}.")
    return RowMap(
        kept={row: source_row[token] for token, row in row_of.items() if token in source_row},
        copied={row_of[new]: source_row[old] for new, old in copies.items()},
        new={row: token for token, row in row_of.items() if token not in source_row and token not in copies},
        dropped=tuple(token for token in source_row if token not in row_of),
        num_unnamed=len(source_tokens) - len(source_row),
        num_source_rows=len(source_tokens),
        num_rows=target.size,
    )


def _rows_of_names(tokens: Sequence[str | None]) -> dict[str, int]:
    rows: dict[str, int] = {}
    for row, token in enumerate(tokens):
        if token in rows:
            raise DataError(f"The token {token!r} names two rows of the source, {rows[token]} and {row}.")
        if token is not None:
            rows[token] = row
    return rows


def new_table(table: Tensor, row_map: RowMap, seed: int) -> Tensor:
    """The target's table [V, M] from the source's [V_s, M].

    A new row is mean + `NOISE`·std·z, with mean and standard deviation of the rows kept in each dimension and z
    standard normal; z depends on (seed, token string) alone. Padding rows are zero.

    Raises:
        DataError: the table has not as many rows as the source has tokens. InputError: no row is kept.
    """
    if len(table) != row_map.num_source_rows:
        raise DataError(f"The token table has {len(table):,} rows, its vocabulary {row_map.num_source_rows:,}.")
    if not row_map.kept:
        raise InputError("No token of the source is in the new vocabulary: they do not belong together.")
    result = table.new_zeros(row_map.num_rows, table.shape[1])
    taken = list((row_map.kept | row_map.copied).items())
    for start in range(0, len(taken), _CHUNK_ROWS):
        rows, source_rows = zip(*taken[start : start + _CHUNK_ROWS], strict=True)
        result[list(rows)] = table[list(source_rows)]
    if row_map.new:
        mean, std = _moments(table, list(row_map.kept.values()))
        for row, token in row_map.new.items():
            result[row] = torch.from_numpy(mean + NOISE * std * _normal(seed, token, len(mean)))
    return result


def _moments(table: Tensor, rows: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation [M] of some rows, summed in float64."""
    total, squares = (torch.zeros(table.shape[1], dtype=torch.float64) for _ in range(2))
    for start in range(0, len(rows), _CHUNK_ROWS):
        chunk = table[rows[start : start + _CHUNK_ROWS]].double()
        total += chunk.sum(0)
        squares += chunk.square().sum(0)
    mean = total / len(rows)
    return mean.numpy(), (squares / len(rows) - mean.square()).clamp(min=0).sqrt().numpy()


def _normal(seed: int, token: str, size: int) -> np.ndarray:
    """[size] float64 standard normal numbers of a token, by Box and Muller's transform."""
    first, second = (uniform(seed, name_key(token), half, np.arange(size)) for half in range(2))
    return np.sqrt(-2 * np.log1p(-first)) * np.cos(2 * np.pi * second)


def fit_positions(positions: Tensor, wanted: int, how: Literal["truncate", "extend"] | None) -> Tensor:
    """A position table [wanted, M] from [P, M].

    "truncate" takes the first rows. "extend" keeps all rows and goes on with copies of them from the first
    [Beltagy+20 §5]: what is no longer than before gets the same output, and neighbours stay neighbours but where a
    copy begins. Interpolation would move every row of the short inputs that the model has learned.

    Raises:
        InputError: the lengths differ and `how` does not allow for it.
    """
    num_positions = len(positions)
    if wanted == num_positions:
        return positions
    needed = "truncate" if wanted < num_positions else "extend"
    if how != needed:
        raise InputError(
            f"The source has {num_positions:,} positions and {wanted:,} are wanted: allow it with "
            f"--fit-positions {needed}, or keep {num_positions:,} with --positions {num_positions}."
        )
    return positions[torch.arange(wanted) % num_positions]
