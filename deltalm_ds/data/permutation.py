"""An endless stream of row numbers, each row once per pass, in O(1) memory.

Position `p` of the stream belongs to pass `p // num_rows`, which has a permutation of its own. The permutation
is computed, not stored, by Feistel networks [Luby+88] on arbitrary sizes; values that fall outside the wanted
size are permuted again until they fall inside ("cycle walking" [Black+02]), which keeps it a bijection.

It works block-wise so that reads stay local: chunks of neighbouring rows are dealt to windows at random, and rows
are mixed freely within a window. At any time the reader touches `window_chunks` chunks only.
"""

import numpy as np

from deltalm_ds.data.randomness import hash_counters

NUM_ROUNDS = 10
"""With fewer, permutations of less than 20 values are measurably uneven (the test counts images of pairs)."""

CHUNK_ROWS = 1024
WINDOW_CHUNKS = 64


def permuted_rows(
    positions: np.ndarray,
    num_rows: int,
    key: int,
    chunk_rows: int = CHUNK_ROWS,
    window_chunks: int = WINDOW_CHUNKS,
) -> np.ndarray:
    """The rows at stream positions.

    Args:
        positions: [N] int64, >= 0, without upper bound.
        num_rows: rows of the corpus; every aligned run of `num_rows` positions is a permutation of them.
        key: names the stream; another key gives another order.
        chunk_rows: neighbouring rows that travel together between windows.
        window_chunks: chunks whose rows are mixed with each other.

    Returns:
        [N] int64 rows in [0, num_rows).
    """
    passes, rows = np.divmod(np.asarray(positions, dtype=np.int64), num_rows)
    keys = hash_counters(key, passes)
    chunk_rows = min(chunk_rows, num_rows)
    num_chunks = -(-num_rows // chunk_rows)

    def shuffled(values: np.ndarray, keys: np.ndarray) -> np.ndarray:
        window, offset = np.divmod(values, window_chunks * chunk_rows)
        first_slot = window * window_chunks
        window_rows = np.minimum(window_chunks, num_chunks - first_slot) * chunk_rows
        slot, row = np.divmod(feistel(offset, window_rows, hash_counters(keys, 0, window)), chunk_rows)
        chunk = feistel(first_slot + slot, np.full_like(slot, num_chunks), hash_counters(keys, 1))
        return chunk * chunk_rows + row

    rows = shuffled(rows, keys)
    # The last chunk may be padded beyond num_rows.
    while (outside := np.flatnonzero(rows >= num_rows)).size:
        rows[outside] = shuffled(rows[outside], keys[outside])
    return rows


def feistel(values: np.ndarray, sizes: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Permute each value within [0, size) by the permutation that its key names; all [N], int64 and uint64."""
    # The network works on pairs of digits to the base ceil(sqrt(size)): little more than `size` values.
    base = np.ceil(np.sqrt(sizes)).astype(np.int64)

    def permuted(values: np.ndarray, base: np.ndarray, keys: np.ndarray) -> np.ndarray:
        left, right = np.divmod(values, base)
        for round_number in range(NUM_ROUNDS):
            noise = hash_counters(keys, right * NUM_ROUNDS + round_number)
            left, right = right, (left + (noise % base.astype(np.uint64)).astype(np.int64)) % base
        return left * base + right

    values = permuted(values, base, keys)
    while (outside := np.flatnonzero(values >= sizes)).size:
        values[outside] = permuted(values[outside], base[outside], keys[outside])
    return values
