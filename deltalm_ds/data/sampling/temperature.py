"""Temperature sampling of languages: p_i ∝ (n_i / Σn)^(1/T), with T constant or rising during training.

mT5's exponent alpha is 1/T. The dynamic temperature of the DeltaLM authors rises once per virtual epoch:
T(e) = min(T_max, T_min + (T_max − T_min)·(e − 1)/W) with e = 1, 2, … [Ma+21 §4.2; Wang+20].
"""

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from pydantic import Field

from deltalm_ds.data.portable_math import exponential, log_shares, ordered_sum
from deltalm_ds.data.sampling.base import Sampling, Shares


class TemperatureSampling(Sampling):
    """p_i ∝ (n_i / Σn)^(1/T), T rising from start to end over the given steps, then constant."""

    kind: Literal["temperature"] = "temperature"
    temperature_start: float = Field(1.0, ge=1.0, description="Temperature at step 0; not used without a rise.")
    temperature_end: float = Field(5.0, ge=1.0, description="Temperature from rise_steps on.")
    rise_steps: int = Field(0, ge=0, description="Steps of the rise; 0 is temperature_end from the first step.")
    interval_steps: int = Field(
        1, gt=0, description="Steps between changes of the temperature; those of a virtual epoch give stairs."
    )

    @property
    def settled_step(self) -> int:
        return -(-self.rise_steps // self.interval_steps) * self.interval_steps

    def temperature(self, steps: ArrayLike) -> np.ndarray:
        """Temperatures, float64, at steps (counted from 0) of any shape."""
        steps = np.asarray(steps)
        if self.rise_steps == 0:
            return np.full(steps.shape, self.temperature_end)
        risen = (steps - steps % self.interval_steps) / self.rise_steps
        return self.temperature_start + (self.temperature_end - self.temperature_start) * np.minimum(risen, 1.0)

    def shares(self, sizes: np.ndarray) -> Shares:
        logs = log_shares(sizes)
        return lambda steps: probabilities(logs, self.temperature(steps))

    def facts(self, step: int) -> dict[str, float]:
        return {"temperature": float(self.temperature(step))}


def probabilities(log_shares: np.ndarray, temperatures: ArrayLike) -> np.ndarray:
    """p_i ∝ (n_i / Σn)^(1/T) for `log_shares` [K] and temperatures of shape [...]; returns [..., K] float64."""
    weights = exponential(log_shares / np.asarray(temperatures, dtype=np.float64)[..., None])
    return weights / ordered_sum(weights)[..., None]
