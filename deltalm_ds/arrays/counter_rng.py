"""Counter-based random numbers: a value depends on its counters alone, never on the order of calls.

The mixer is the finaliser of SplitMix64 [Steele+14] with the constants of Stafford's "Mix13"; each counter is
folded into the state and mixed again, so `hash_counters(seed, i)` is a bijection of `i` for every seed.
"""

import hashlib

import numpy as np
from numpy.typing import ArrayLike

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MULTIPLIER_1 = np.uint64(0xBF58476D1CE4E5B9)
_MULTIPLIER_2 = np.uint64(0x94D049BB133111EB)
_SHIFT_1, _SHIFT_2, _SHIFT_3 = np.uint64(30), np.uint64(27), np.uint64(31)


def _mix(state: np.ndarray) -> np.ndarray:
    """Go on to the next state and mix it, in place."""
    state = np.asarray(state)  # of a bare number numpy would report the overflow
    state += _GOLDEN
    state ^= state >> _SHIFT_1
    state *= _MULTIPLIER_1
    state ^= state >> _SHIFT_2
    state *= _MULTIPLIER_2
    state ^= state >> _SHIFT_3
    return state


def hash_counters(seed: ArrayLike, *counters: ArrayLike) -> np.ndarray:
    """Mix a seed and integer counters (broadcast against each other) into well-spread uint64 values."""
    return mix_in(_mix(np.asarray(seed).astype(np.uint64)), *counters)


def mix_in(state: np.ndarray, *counters: ArrayLike) -> np.ndarray:
    """Go on from a result of `hash_counters`: `mix_in(hash_counters(s, a), b)` is `hash_counters(s, a, b)`."""
    for counter in counters:
        state = _mix(state ^ np.asarray(counter).astype(np.uint64, copy=False))
    return state


def uniform(seed: ArrayLike, *counters: ArrayLike) -> np.ndarray:
    """Uniform float64 in [0, 1) with 53 random bits."""
    return (hash_counters(seed, *counters) >> np.uint64(11)) * 2.0**-53


def name_key(name: str) -> int:
    """A 64-bit key of a name, the same in every process and version of Python."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
