"""An endless stream of row numbers, each row once per pass, in O(1) memory.

Position `p` of the stream belongs to pass `p // num_rows`, which has a permutation of its own. The permutation
is computed, not stored, by Feistel networks [Luby+88] on arbitrary sizes; values that fall outside the wanted
size are permuted again until they fall inside ("cycle walking" [Black+02]), which keeps it a bijection.

It works block-wise so that reads stay local: chunks of neighbouring rows are dealt to windows at random, and rows
are mixed freely within a window. At any time the reader touches `window_chunks` chunks only.
"""

import numpy as np
from numpy.typing import ArrayLike

from deltalm_ds.arrays.counter_rng import hash_counters, mix_in

NUM_ROUNDS = 10
"""With fewer, permutations of less than 20 values are measurably uneven (the test counts images of pairs)."""

CHUNK_ROWS = 1024
WINDOW_CHUNKS = 64


def permuted_rows(
    positions: np.ndarray,
    num_rows: ArrayLike,
    key: ArrayLike,
    chunk_rows: int = CHUNK_ROWS,
    window_chunks: int = WINDOW_CHUNKS,
) -> np.ndarray:
    """The rows at stream positions, of one stream or of many at once.

    Args:
        positions: [N] int64, >= 0, without upper bound.
        num_rows: rows of the corpus, one number or [N]; every aligned run of `num_rows` positions of a stream is a
            permutation of them.
        key: names the stream, one number or [N]; another key gives another order.
        chunk_rows: neighbouring rows that travel together between windows.
        window_chunks: chunks whose rows are mixed with each other.

    Returns:
        [N] int64 rows in [0, num_rows).
    """
    sizes = np.broadcast_to(np.asarray(num_rows, dtype=np.int64), np.shape(positions))
    passes, rows = np.divmod(np.asarray(positions, dtype=np.int64), sizes)
    states = hash_counters(hash_counters(key, passes))
    rows = _shuffled(rows, sizes, states, chunk_rows, window_chunks)
    # The last chunk may be padded beyond num_rows.
    while (outside := np.flatnonzero(rows >= sizes)).size:
        rows[outside] = _shuffled(rows[outside], sizes[outside], states[outside], chunk_rows, window_chunks)
    return rows


def _shuffled(values: np.ndarray, sizes: np.ndarray, states: np.ndarray, rows: int, window_chunks: int) -> np.ndarray:
    """Permute each value within [0, size rounded up to whole chunks)."""
    chunk_rows = np.minimum(rows, sizes)
    num_chunks = -(-sizes // chunk_rows)
    window, offset = np.divmod(values, window_chunks * chunk_rows)
    first_slot = window * window_chunks
    window_rows = np.minimum(window_chunks, num_chunks - first_slot) * chunk_rows
    slot, row = np.divmod(feistel(offset, window_rows, mix_in(states, 0, window)), chunk_rows)
    return feistel(first_slot + slot, num_chunks, mix_in(states, 1)) * chunk_rows + row


def feistel(values: np.ndarray, sizes: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Permute each value within [0, size) by the permutation that its key names; all [N], int64 and uint64."""
    # The network works on pairs of digits to the base ceil(sqrt(size)): little more than `size` values.
    base, states = np.ceil(np.sqrt(sizes)).astype(np.uint64), hash_counters(keys)
    values = _network(values, base, states)
    while (outside := np.flatnonzero(values >= sizes)).size:
        values[outside] = _network(values[outside], base[outside], states[outside])
    return values


def _network(values: np.ndarray, base: np.ndarray, states: np.ndarray) -> np.ndarray:
    """One walk through the network: a bijection of [0, base²)."""
    left, right = np.divmod(values.astype(np.uint64), base)
    for round_number in range(NUM_ROUNDS):
        total = mix_in(states, right * np.uint64(NUM_ROUNDS) + np.uint64(round_number))
        total %= base
        total += left
        left, right = right, np.minimum(total, total - base)  # below the base the difference wraps around, far above
    return (left * base + right).astype(np.int64)
