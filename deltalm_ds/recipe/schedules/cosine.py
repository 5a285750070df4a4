"""Half a cosine."""

import math
from typing import Literal

from pydantic import Field, model_validator

from deltalm_ds.recipe.schedules.base import Schedule


class Cosine(Schedule):
    """final + ½ · (peak − final) · (1 + cos(π · t)), t from 0 at the peak to 1 at the last step [Loshchilov+17 §3]."""

    kind: Literal["cosine"] = "cosine"
    final_lr: float = Field(0.0, ge=0, description="Learning rate at the last step.")

    @model_validator(mode="after")
    def _falls(self) -> "Cosine":
        if self.final_lr > self.peak_lr:
            raise ValueError(f"final_lr={self.final_lr} is above peak_lr={self.peak_lr}: the rate has to fall")
        return self

    def decayed(self, updates_done: int, max_steps: int) -> float:
        share = min(1.0, (updates_done - self.warmup_steps) / max(1, max_steps - self.warmup_steps))
        return self.final_lr + (self.peak_lr - self.final_lr) * (1 + math.cos(math.pi * share)) / 2
