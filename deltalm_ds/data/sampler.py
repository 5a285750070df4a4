"""Which samples a step draws, as a pure function of (seed, step).

Every component (a corpus under an objective in a direction) has an endless stream of positions (permutation.py). A step
is due `rate_i = Q · p_i` sequences of component i on average, Q being the size of the global batch in sequences. With
F_i(s) the sum of the rates of all steps before s, step s takes the positions [floor(F_i(s) + φ_i),
floor(F_i(s+1) + φ_i)): after any number of steps each component has been drawn as often as the formula says, ± 1, with
no state to save. F is kept in fixed point, so it is the same integer whichever way a step is reached; and it comes
from operations that every CPU rounds alike (portable_math.py), so that hosts of different make agree on every step.

What is divided how may change from a step on (`Mix`). F goes on across such a change, so that a component that is drawn
before and after it goes on with the rows it has not had yet.
"""

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from deltalm_ds.arrays.counter_rng import hash_counters
from deltalm_ds.data.capping import capped_draws
from deltalm_ds.data.portable_math import ordered_sum
from deltalm_ds.data.sampling.base import Sampling, Shares
from deltalm_ds.errors import InputError

FRACTION_BITS = 24
BLOCK_STEPS = 256


@dataclass(frozen=True)
class Mix:
    """How the sequences of a step are divided, from `first_step` to the next mix or to the end.

    Attributes:
        groups: the component indices of each group; `sampling` divides a group among its members.
        weights: share of sequences of each group; any positive scale.
        sampling: the shares inside a group, by steps counted from `sampling_step`.
    """

    first_step: int
    groups: Sequence[Sequence[int]]
    weights: Sequence[float]
    sampling: Sampling
    sampling_step: int = 0


class Sampler:
    """Deals stream positions of K components to steps.

    Args:
        sizes: [K] rows of each component's corpus, > 0.
        mixes: in the order of their first steps, the first one's 0.
        mean_tokens: [K] expected source + target tokens of one sequence of each component.
        keys: [K] one key per component; decides the offset φ of its draws.
        tokens_per_step: expected source + target tokens of a global batch.
        num_steps: of the run; only caps of passes (`Sampling.max_passes`) depend on it.

    Attributes:
        first_steps: of the mixes.
        capped_at: [K] by which step a component has had all its passes; -1 where no cap is reached.

    Raises:
        InputError: the budget, a size or a weight is not positive, a group is empty, mixes do not follow each other, or
            the corpora are used up before the end.
    """

    def __init__(
        self,
        sizes: Sequence[int] | np.ndarray,
        mixes: Sequence[Mix],
        mean_tokens: Sequence[float],
        keys: Sequence[int] | np.ndarray,
        tokens_per_step: float,
        num_steps: int,
    ) -> None:
        if tokens_per_step <= 0:
            raise InputError(f"A step needs more than 0 tokens, not {tokens_per_step}.")
        if np.min(sizes, initial=1) <= 0 or any(np.min(mix.weights, initial=1) <= 0 for mix in mixes):
            raise InputError("A sampler needs components with at least one row and groups of positive weight.")
        if not all(mix.groups and all(len(members) for members in mix.groups) for mix in mixes):
            raise InputError("A sampler needs at least one component in every group.")
        self.first_steps = [mix.first_step for mix in mixes]
        ends = [*self.first_steps[1:], num_steps]
        if self.first_steps[:1] != [0] or any(end <= first for first, end in pairwise([*self.first_steps, num_steps])):
            raise InputError(f"Phases begin at the steps {self.first_steps}, not one after the other from 0 on.")
        self._mean_tokens, self._tokens_per_step = np.asarray(mean_tokens, dtype=np.float64), tokens_per_step
        offset = hash_counters(np.asarray(keys, dtype=np.uint64)) >> np.uint64(64 - FRACTION_BITS)
        self._offset = offset.astype(np.int64)
        self.capped_at = np.full(len(self._offset), -1)
        self._parts: list[_Part] = []
        drawn = np.zeros_like(self._offset)
        for number, mix in enumerate(mixes):
            part = _Part(mix, np.asarray(sizes), self._mean_tokens, tokens_per_step)
            if (max_passes := mix.sampling.max_passes) is not None:
                left = np.maximum(max_passes * part.sizes - drawn / 2.0**FRACTION_BITS, 0.0)
                self._cap(part, left, _steps_left(mixes[number:], ends[number:], len(drawn)), ends[number])
            is_last = number == len(mixes) - 1
            part.sum_from(drawn, None if is_last else ends[number])
            self._parts.append(part)
            drawn = part.cumulative(ends[number])

    def _cap(self, part: "_Part", left: np.ndarray, steps_left: np.ndarray, end: int) -> None:
        """Let a part draw no more of the sequences `left` [K] than its share of the steps for which they are left."""
        num_steps = end - part.mix.first_step
        limits = left * (num_steps / np.maximum(steps_left, num_steps))
        wanted = num_steps * self._tokens_per_step
        uncapped = part.probabilities(np.asarray(part.mix.first_step))
        draws = capped_draws(wanted, part.groups, part.weights, uncapped, limits, self._mean_tokens)
        if draws.tokens < wanted:
            raise InputError(
                f"max_passes={part.mix.sampling.max_passes:g} is enough for "
                f"{int(draws.tokens / self._tokens_per_step):,} of the {num_steps:,} steps from step "
                f"{part.mix.first_step:,} on: then all corpora of a group are used up. Raise it, add data, or end "
                "earlier."
            )
        part.fix_shares(draws.sequences)
        used_up = (draws.sequences == left) & (left > 0)
        self.capped_at[used_up] = end

    def probabilities(self, steps: int | np.ndarray) -> np.ndarray:
        """The probability of each component at steps of shape [...]: [..., K] float64."""
        steps = np.asarray(steps)
        result = np.empty((*steps.shape, len(self._offset)))
        part_of_step = np.searchsorted(self.first_steps, steps, side="right") - 1
        for number, part in enumerate(self._parts):
            there = part_of_step == number
            result[there] = part.probabilities(steps[there])
        return result

    def draw(self, step: int) -> tuple[np.ndarray, np.ndarray]:
        """Component index [N] and stream position [N] (int64) of each sequence of a step, in order of component."""
        first = self.cumulative(step) + self._offset >> FRACTION_BITS
        last = self.cumulative(step + 1) + self._offset >> FRACTION_BITS
        counts = last - first
        component_index = np.repeat(np.arange(len(counts)), counts)
        starts = np.cumsum(counts) - counts
        return component_index, np.arange(counts.sum()) + np.repeat(first - starts, counts)

    def cumulative(self, step: int) -> np.ndarray:
        """F_i(step), [K] int64, in units of 2^-24 sequences."""
        return self._parts[self.phase(step)].cumulative(step)

    def phase(self, step: int) -> int:
        """Which of the mixes holds at a step."""
        return bisect_right(self.first_steps, step) - 1


def _steps_left(mixes: Sequence[Mix], ends: Sequence[int], num_components: int) -> np.ndarray:
    """[K] steps in which a component is drawn under the sampling of the first of these mixes."""
    steps = np.zeros(num_components)
    for mix, end in zip(mixes, ends, strict=True):
        if mix.sampling_step == mixes[0].sampling_step:
            for members in mix.groups:
                steps[list(members)] += end - mix.first_step
    return steps


def _fixed(shares: np.ndarray) -> Shares:
    return lambda steps: np.broadcast_to(shares, (*steps.shape, len(shares)))


class _Part:
    """The steps of one mix: its shares, and F from its first step on."""

    def __init__(self, mix: Mix, sizes: np.ndarray, mean_tokens: np.ndarray, tokens_per_step: float) -> None:
        self.mix, self.sizes = mix, sizes
        self.groups = [np.asarray(members) for members in mix.groups]
        self.weights = np.asarray(mix.weights, dtype=np.float64) / math.fsum(mix.weights)
        self._shares: list[Shares] = [mix.sampling.shares(sizes[members]) for members in self.groups]
        self._mean_tokens, self._tokens_per_step = mean_tokens, tokens_per_step

    def fix_shares(self, sequences: np.ndarray) -> None:
        """Let the share of each member of a group be that of its `sequences` [K], whatever the step."""
        self._shares = [_fixed(sequences[members] / ordered_sum(sequences[members])) for members in self.groups]

    def sum_from(self, drawn: np.ndarray, end: int | None) -> None:
        """Take `drawn` [K] as F of the first step, and sum on from there; as far as `end`, if there is one."""
        # F at the start of every block until the shares are settled; inside a block it is summed on demand, later on it
        # is a line.
        settled_step = self.mix.sampling_step + self.mix.sampling.settled_step
        settled_step = settled_step if end is None else min(settled_step, end)
        num_blocks = max(-(-(settled_step - self.mix.first_step) // BLOCK_STEPS), 0)
        self._table = np.zeros((num_blocks + 1, len(drawn)), dtype=np.int64)
        self._table[0] = drawn
        for block in range(num_blocks):
            self._table[block + 1] = self._table[block] + self.rates(self._steps_of(block)).sum(axis=0)
        self._summed = -1, self._table[:0]  # the last such block, and F at its steps less F at its start

    def cumulative(self, step: int) -> np.ndarray:
        block = min((step - self.mix.first_step) // BLOCK_STEPS, len(self._table) - 1)
        first_step = self.mix.first_step + block * BLOCK_STEPS
        if block == len(self._table) - 1:
            return self._table[block] + (step - first_step) * self.rates(np.asarray(first_step))
        summed_block, sums = self._summed
        if block != summed_block:
            rates = self.rates(self._steps_of(block))
            sums = np.cumsum(rates, axis=0) - rates
            self._summed = block, sums
        return self._table[block] + sums[step - first_step]

    def _steps_of(self, block: int) -> np.ndarray:
        return self.mix.first_step + np.arange(block * BLOCK_STEPS, (block + 1) * BLOCK_STEPS)

    def probabilities(self, steps: np.ndarray) -> np.ndarray:
        result = np.zeros((*steps.shape, len(self.sizes)))
        for members, shares, weight in zip(self.groups, self._shares, self.weights, strict=True):
            result[..., members] = weight * shares(steps - self.mix.sampling_step)
        return result

    def rates(self, steps: np.ndarray) -> np.ndarray:
        probabilities = self.probabilities(steps)
        num_sequences = self._tokens_per_step / ordered_sum(probabilities * self._mean_tokens)
        return np.rint(probabilities * num_sequences[..., None] * 2.0**FRACTION_BITS).astype(np.int64)
