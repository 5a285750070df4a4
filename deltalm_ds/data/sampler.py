"""Which samples a step draws, as a pure function of (seed, step).

Every component (a corpus under an objective in a direction) has an endless stream of positions (permutation.py). A step
is due `rate_i = Q · p_i` sequences of component i on average, Q being the size of the global batch in sequences. With
F_i(s) the sum of the rates of all steps before s, step s takes the positions [floor(F_i(s) + φ_i),
floor(F_i(s+1) + φ_i)): after any number of steps each component has been drawn as often as the formula says, ± 1, with
no state to save. F is kept in fixed point, so it is the same integer whichever way a step is reached; and it comes
from operations that every CPU rounds alike (portable_math.py), so that hosts of different make agree on every step.
"""

import math
from collections.abc import Sequence

import numpy as np

from deltalm_ds.arrays.counter_rng import hash_counters
from deltalm_ds.data.portable_math import ordered_sum
from deltalm_ds.data.sampling.base import Sampling
from deltalm_ds.errors import InputError

FRACTION_BITS = 24
BLOCK_STEPS = 256


class Sampler:
    """Deals stream positions of K components to steps.

    Args:
        sizes: [K] rows of each component's corpus, > 0.
        group_of_component: [K] index of each component's group; `sampling` divides a group among its members.
        group_weights: [G] share of sequences of each group; any positive scale.
        sampling: the shares inside a group, by step.
        mean_tokens: [K] expected source + target tokens of one sequence of each component.
        keys: [K] one key per component; decides the phase φ of its draws.
        tokens_per_step: expected source + target tokens of a global batch.

    Raises:
        InputError: the budget, a size or a weight is not positive, or a group is empty.
    """

    def __init__(
        self,
        sizes: Sequence[int] | np.ndarray,
        group_of_component: Sequence[int],
        group_weights: Sequence[float],
        sampling: Sampling,
        mean_tokens: Sequence[float],
        keys: Sequence[int] | np.ndarray,
        tokens_per_step: float,
    ) -> None:
        if tokens_per_step <= 0:
            raise InputError(f"A step needs more than 0 tokens, not {tokens_per_step}.")
        if np.min(sizes, initial=1) <= 0 or np.min(group_weights, initial=1) <= 0:
            raise InputError("A sampler needs components with at least one row and groups of positive weight.")
        self._members = [np.flatnonzero(np.equal(group_of_component, group)) for group in range(len(group_weights))]
        if not (self._members and all(members.size for members in self._members)):
            raise InputError("A sampler needs at least one component in every group.")
        self._shares = [sampling.shares(np.asarray(sizes)[members]) for members in self._members]
        self._group_share = np.asarray(group_weights, dtype=np.float64) / math.fsum(group_weights)
        self._mean_tokens = np.asarray(mean_tokens, dtype=np.float64)
        self._tokens_per_step = tokens_per_step
        phase = hash_counters(np.asarray(keys, dtype=np.uint64)) >> np.uint64(64 - FRACTION_BITS)
        self._phase = phase.astype(np.int64)
        # F at the start of every block until the shares are settled; inside a block it is summed on demand, later on it
        # is a line.
        num_blocks = -(-sampling.settled_step // BLOCK_STEPS)
        self._table = np.zeros((num_blocks + 1, len(self._phase)), dtype=np.int64)
        for block in range(num_blocks):
            steps = np.arange(block * BLOCK_STEPS, (block + 1) * BLOCK_STEPS)
            self._table[block + 1] = self._table[block] + self._rates(steps).sum(axis=0)
        self._summed = -1, self._table[:0]  # the last such block, and F at its steps less F at its start

    def probabilities(self, steps: int | np.ndarray) -> np.ndarray:
        """The probability of each component at steps of shape [...]: [..., K] float64."""
        steps = np.asarray(steps)
        result = np.empty((*steps.shape, len(self._phase)))
        for members, shares, weight in zip(self._members, self._shares, self._group_share, strict=True):
            result[..., members] = weight * shares(steps)
        return result

    def draw(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Component index [N] and stream position [N] (int64) of each sequence of a step, in order of component."""
        first = self.cumulative(step) + self._phase >> FRACTION_BITS
        last = self.cumulative(step + 1) + self._phase >> FRACTION_BITS
        counts = last - first
        component_index = np.repeat(np.arange(len(counts)), counts)
        starts = np.cumsum(counts) - counts
        return component_index, np.arange(counts.sum()) + np.repeat(first - starts, counts)

    def cumulative(self, step: int) -> np.ndarray:
        """F_i(step), [K] int64, in units of 2^-24 sequences."""
        block = min(step // BLOCK_STEPS, len(self._table) - 1)
        first_step = block * BLOCK_STEPS
        if block == len(self._table) - 1:
            return self._table[block] + (step - first_step) * self._rates(np.asarray(first_step))
        summed_block, sums = self._summed
        if block != summed_block:
            rates = self._rates(np.arange(first_step, first_step + BLOCK_STEPS))
            sums = np.cumsum(rates, axis=0) - rates
            self._summed = block, sums
        return self._table[block] + sums[step - first_step]

    def _rates(self, steps: np.ndarray) -> np.ndarray:
        shares = self.probabilities(steps)
        num_sequences = self._tokens_per_step / ordered_sum(shares * self._mean_tokens)
        return np.rint(shares * num_sequences[..., None] * 2.0**FRACTION_BITS).astype(np.int64)
