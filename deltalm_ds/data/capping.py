"""Shares of corpora of which none may be passed over too often: UniMax [Chung+23, algorithm 1], for any shares.

The tokens of a run are given, and with them how many sequences it takes, which depends on whose they are. All sums are
taken in a stated order, as `portable_math` says.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deltalm_ds.data.portable_math import ordered_sum


@dataclass(frozen=True)
class CappedDraws:
    """What K components give in a number of steps.

    Attributes:
        sequences: [K] float64 of each component.
        tokens: of all of them; less than asked for where the limits of a group do not suffice.
    """

    sequences: np.ndarray
    tokens: float


def divided(total: float, shares: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """`total` in proportion to `shares` [K] > 0, but no part above its limit; what a limit cuts off goes to the others.

    Where the limits do not add up to `total` they are the parts.
    """
    order = np.argsort(limits / shares, kind="stable")
    ordered_shares, ordered_limits = shares[order], limits[order]
    shares_left = np.cumsum(ordered_shares[::-1])[::-1]
    total_left = total - (np.cumsum(ordered_limits) - ordered_limits)
    is_within = total_left * ordered_shares <= ordered_limits * shares_left
    if not is_within.any():
        return limits.copy()
    first = is_within.argmax()
    return np.minimum(limits, total_left[first] / shares_left[first] * shares)


def capped_draws(
    tokens: float,
    groups: Sequence[np.ndarray],
    weights: Sequence[float] | np.ndarray,
    probabilities: np.ndarray,
    limits: np.ndarray,
    mean_tokens: np.ndarray,
) -> CappedDraws:
    """The sequences of each component that make `tokens` together, groups keeping their weights.

    Args:
        tokens: source and target, of all sequences.
        groups: indices of the members of each group.
        weights: share of the sequences of each group; they add up to 1.
        probabilities: [K] share of each component, were there no limits.
        limits: [K] most sequences of each component.
        mean_tokens: [K] expected tokens of a sequence.
    """

    def draws(sequences: float) -> CappedDraws:
        of_component = np.zeros(len(limits))
        for members, weight in zip(groups, weights, strict=True):
            of_component[members] = divided(sequences * weight, probabilities[members], limits[members])
        return CappedDraws(of_component, float(ordered_sum(of_component * mean_tokens)))

    low = 0.0
    high = min(float(ordered_sum(limits[members])) / weight for members, weight in zip(groups, weights, strict=True))
    found = draws(high)
    while found.tokens >= tokens and low < (middle := (low + high) / 2) < high:
        half = draws(middle)
        if half.tokens >= tokens:
            high, found = middle, half
        else:
            low = middle
    return found
