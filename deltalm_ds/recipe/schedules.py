"""Learning rate as a pure function of the number of updates done."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Schedule(BaseModel):
    """Linear warm-up from `initial_lr` to `peak_lr`, then decay.

    `inverse_sqrt`: peak · √(warmup / n), as the official fine-tuning. `linear`: to 0 at the last step, as the
    pre-training [Ma+21 §3.1]. Update number n (from 1) uses the rate after n - 1 updates, as fairseq does.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    kind: Literal["inverse_sqrt", "linear"] = "inverse_sqrt"
    peak_lr: float = Field(gt=0)
    warmup_steps: int = Field(gt=0)
    initial_lr: float = Field(0.0, ge=0)

    def learning_rate(self, updates_done: int, max_steps: int) -> float:
        """The rate of the next update."""
        if updates_done < self.warmup_steps:
            return self.initial_lr + (self.peak_lr - self.initial_lr) * updates_done / self.warmup_steps
        if self.kind == "inverse_sqrt":
            return self.peak_lr * (self.warmup_steps / updates_done) ** 0.5
        return self.peak_lr * max(0.0, (max_steps - updates_done) / max(1, max_steps - self.warmup_steps))
