"""Temperature sampling of languages: p_i ∝ (n_i / Σn)^(1/T), where T stays, rises or falls during training.

T = 1 takes the corpora as they are, a high T makes all alike. mT5's exponent alpha is 1/T. The dynamic temperature of
the DeltaLM authors rises once per virtual epoch: T(e) = min(T_max, T_min + (T_max − T_min)·(e − 1)/W) with e = 1, 2, …
[Ma+21 §4.2; Wang+20]. A falling one shows small corpora early and repeats them less often [Li+24].
"""

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from pydantic import AliasChoices, Field

from deltalm_ds.data.portable_math import exponential, log_shares, ordered_sum
from deltalm_ds.data.sampling.base import Sampling, Shares


class TemperatureSampling(Sampling):
    """p_i ∝ (n_i / Σn)^(1/T), T going from start to end over change_steps, then staying."""

    kind: Literal["temperature"] = "temperature"
    temperature_start: float = Field(
        1.0, ge=1.0, description="Temperature at the first step; not used where change_steps is 0."
    )
    temperature_end: float = Field(
        5.0, ge=1.0, description="Temperature from change_steps on; above temperature_start it rises, below it falls."
    )
    change_steps: int = Field(
        0,
        ge=0,
        validation_alias=AliasChoices("change_steps", "rise_steps"),
        description="Steps from temperature_start to temperature_end; 0: it is temperature_end all the time. Its old "
        "name is rise_steps.",
    )
    interval_steps: int = Field(
        1, gt=0, description="Steps between changes of the temperature; those of a virtual epoch give stairs."
    )

    @property
    def settled_step(self) -> int:
        return -(-self.change_steps // self.interval_steps) * self.interval_steps

    def temperature(self, steps: ArrayLike) -> np.ndarray:
        """Temperatures, float64, at steps (counted from 0) of any shape."""
        steps = np.asarray(steps)
        if self.change_steps == 0:
            return np.full(steps.shape, self.temperature_end)
        done = (steps - steps % self.interval_steps) / self.change_steps
        return self.temperature_start + (self.temperature_end - self.temperature_start) * np.minimum(done, 1.0)

    def shares(self, sizes: np.ndarray) -> Shares:
        logs = log_shares(sizes)
        return lambda steps: probabilities(logs, self.temperature(steps))

    def facts(self, step: int) -> dict[str, float]:
        return {"temperature": float(self.temperature(step))}


def probabilities(log_shares: np.ndarray, temperatures: ArrayLike) -> np.ndarray:
    """p_i ∝ (n_i / Σn)^(1/T) for `log_shares` [K] and temperatures of shape [...]; returns [..., K] float64."""
    weights = exponential(log_shares / np.asarray(temperatures, dtype=np.float64)[..., None])
    return weights / ordered_sum(weights)[..., None]
