"""Dealing a global batch to ranks and micro-batches, from lengths alone.

Every rank computes the same plan. Sequences are sorted by length and cut into world_size · m contiguous runs of
about equal cost, m being the smallest number for which every run fits the memory budget; the runs are dealt in
turn, so that the micro-batches that ranks work on at the same time are alike and no rank waits long.
"""

import numpy as np

from deltalm_ds.errors import InputError

QUADRATIC_TOKENS = 4608
"""Length at which attention costs as much as the linear layers: 6 · model width, here that of `base`."""


def plan(
    source_lengths: np.ndarray,
    target_lengths: np.ndarray,
    world_size: int,
    micro_batch_tokens: int,
    min_micro_batches: int = 1,
) -> list[list[np.ndarray]]:
    """Split N sequences into micro-batches.

    Args:
        source_lengths: [N] tokens; target_lengths: [N] tokens.
        world_size: number of ranks.
        micro_batch_tokens: most source + target tokens in a micro-batch.
        min_micro_batches: fewest micro-batches per rank (gradient accumulation).

    Returns:
        For each rank the same number of index arrays (int64); an empty one is a padding micro-batch.

    Raises:
        InputError: a sequence is longer than the budget of a micro-batch.
    """
    tokens = np.asarray(source_lengths, dtype=np.int64) + np.asarray(target_lengths, dtype=np.int64)
    longest = int(tokens.max(initial=0))
    if longest > micro_batch_tokens:
        raise InputError(
            f"A sequence pair has {longest} tokens but a micro-batch holds {micro_batch_tokens}: "
            "raise micro_batch_tokens or lower the maximum lengths."
        )
    order = np.lexsort((source_lengths, tokens))
    tokens = tokens[order]
    cost = tokens * (QUADRATIC_TOKENS + tokens)
    middle = 2 * np.cumsum(cost) - cost  # twice the cost up to the middle of each sequence: integers throughout
    num_micro = max(min_micro_batches, -(-int(tokens.sum()) // (world_size * micro_batch_tokens)), 1)
    while True:
        num_runs = world_size * num_micro
        run = middle * num_runs // max(2 * int(cost.sum()), 1)
        if np.bincount(run, weights=tokens, minlength=num_runs).max() <= micro_batch_tokens:
            break
        num_micro += 1
    runs = np.split(order, np.searchsorted(run, np.arange(1, num_runs)))
    return [runs[rank::world_size] for rank in range(world_size)]
