"""Dealing a global batch to ranks and micro-batches, from lengths alone.

Every rank computes the same division. Sequences are sorted by length and cut into world_size · m contiguous runs of
about equal cost, m being the smallest number for which every run fits the memory budget; the runs are dealt in
turns, so that the micro-batches that ranks work on at the same time are alike and no rank waits long. Runs of few, long
sequences cannot be cut evenly, which shows where m is 1 or 2: a few sequences then change places.
"""

import numpy as np

from deltalm_ds.arrays.ragged import quickly_sorted
from deltalm_ds.errors import InputError

QUADRATIC_TOKENS = 4608
"""Length at which attention costs as much as the linear layers: 6 · model width, here that of `base`."""
TOLERATED_IMBALANCE = 0.01
"""Of the dearest rank over the cheapest; real lengths come this close with a few swaps."""


def deal_micro_batches(
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
    source_lengths = np.asarray(source_lengths, dtype=np.int64)
    tokens = source_lengths + np.asarray(target_lengths, dtype=np.int64)
    longest = int(tokens.max(initial=0))
    if longest > micro_batch_tokens:
        raise InputError(
            f"A sequence pair has {longest} tokens but a micro-batch holds {micro_batch_tokens}: "
            "raise micro_batch_tokens or lower the maximum lengths."
        )
    order = np.lexsort((quickly_sorted(source_lengths), quickly_sorted(tokens)))
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
    runs = np.split(np.arange(len(order)), np.searchsorted(run, np.arange(1, num_runs)))
    ranks = _deal(runs, np.bincount(run, weights=cost, minlength=num_runs), world_size)
    _even_out(ranks, cost, tokens, micro_batch_tokens)
    return [[order[members] for members in micro_batches] for micro_batches in ranks]


def _deal(runs: list[np.ndarray], costs: np.ndarray, world_size: int) -> list[list[np.ndarray]]:
    """One run of each turn to each rank: from the last turn, whose runs differ most, the dearest to who has least."""
    micro_batches: list[list[np.ndarray]] = [[] for _ in range(world_size)]
    load = np.zeros(world_size)
    for first in reversed(range(0, len(runs), world_size)):
        turn = first + np.argsort(-costs[first : first + world_size], kind="stable")
        ranks = np.argsort(load, kind="stable")
        load[ranks] += costs[turn]
        for rank, number in zip(ranks, turn, strict=True):
            micro_batches[rank].insert(0, runs[number])
    return micro_batches


def _even_out(ranks: list[list[np.ndarray]], cost: np.ndarray, tokens: np.ndarray, micro_batch_tokens: int) -> None:
    """Swap sequences of the dearest rank and cheaper ones, in place, until all are alike or no swap helps."""
    load = np.array([sum(cost[run].sum() for run in runs) for runs in ranks])
    for _ in range(4 * len(ranks)):
        dear, *others = np.argsort(-load, kind="stable").tolist()
        if load[dear] <= (1 + TOLERATED_IMBALANCE) * load.min():
            return
        for cheap in reversed(others):
            gap = int(load[dear] - load[cheap])
            if gap and (moved := _swap(ranks[dear], ranks[cheap], gap, cost, tokens, micro_batch_tokens)):
                break
        else:
            return
        load[dear] -= moved
        load[cheap] += moved


def _swap(
    dear: list[np.ndarray], cheap: list[np.ndarray], gap: int, cost: np.ndarray, tokens: np.ndarray, most_tokens: int
) -> int:
    """Let a sequence of `dear` and one of `cheap` (or none) change places; what that moves of the gap, 0 < moved < gap.

    The swap is the one that halves the gap best, in the turn where the two differ most; 0 where none makes it smaller.
    """
    turn = int(np.argmax([cost[a].sum() - cost[b].sum() for a, b in zip(dear, cheap, strict=True)]))
    giver, taker = dear[turn], cheap[turn]
    moved = cost[giver][:, None] - np.append(cost[taker], 0)
    more_tokens = tokens[giver][:, None] - np.append(tokens[taker], 0)
    fits = more_tokens <= most_tokens - tokens[taker].sum()  # the giver has fewer tokens after any swap that helps
    miss = np.where(fits, abs(2 * moved - gap), gap)
    a, b = divmod(int(miss.argmin()), miss.shape[1])
    if miss[a, b] >= gap:
        return 0
    dear[turn] = np.append(np.delete(giver, a), taker[b : b + 1])
    cheap[turn] = np.append(taker[np.arange(len(taker)) != b], giver[a])
    return int(moved[a, b])
