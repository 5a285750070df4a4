"""Temperature sampling of languages: p_i ∝ (n_i / Σn)^(1/T), with T constant or rising during training.

mT5's exponent alpha is 1/T. The dynamic temperature of the DeltaLM authors rises once per virtual epoch:
T(e) = min(T_max, T_min + (T_max − T_min)·(e − 1)/W) with e = 1, 2, … (FACTS §2).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from deltalm_ds.errors import InputError


@dataclass(frozen=True)
class TemperatureSchedule:
    """T as a function of the step: a rise from `start` to `end` over `rise_steps`, then constant.

    Attributes:
        start: temperature at step 0 (unused without a rise).
        end: temperature from `rise_steps` on.
        rise_steps: length of the rise; 0 means `end` from the first step.
        interval_steps: the temperature changes every so many steps; 1 is a straight line, and the steps of a
            virtual epoch give the authors' staircase.
    """

    start: float = 1.0
    end: float = 5.0
    rise_steps: int = 0
    interval_steps: int = 1

    def __post_init__(self) -> None:
        if not (self.start > 0 and self.end > 0):
            raise InputError(f"A sampling temperature must be positive, not {self.start} or {self.end}.")
        if self.rise_steps < 0 or self.interval_steps < 1:
            raise InputError("The temperature's rise must have >= 0 steps and its interval >= 1.")

    @property
    def settled_step(self) -> int:
        """The first step from which the temperature no longer changes."""
        return -(-self.rise_steps // self.interval_steps) * self.interval_steps

    def at(self, steps: ArrayLike) -> np.ndarray:
        """Temperatures, float64, at steps (counted from 0) of any shape."""
        steps = np.asarray(steps)
        if self.rise_steps == 0:
            return np.full(steps.shape, self.end)
        risen = (steps - steps % self.interval_steps) / self.rise_steps
        return self.start + (self.end - self.start) * np.minimum(risen, 1.0)


def probabilities(sizes: ArrayLike, temperatures: ArrayLike) -> np.ndarray:
    """p_i ∝ (n_i / Σn)^(1/T) for sizes [K] > 0 and temperatures of shape [...]; returns [..., K]."""
    sizes = np.asarray(sizes, dtype=np.float64)
    # Shares relative to the largest: the greatest term is 1, so no temperature can overflow.
    weights = (sizes / sizes.max()) ** (1.0 / np.asarray(temperatures, dtype=np.float64)[..., None])
    return weights / weights.sum(axis=-1, keepdims=True)
