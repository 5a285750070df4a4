"""The inverse square root of the updates."""

from typing import Literal

from deltalm_ds.recipe.schedules.base import Schedule


class InverseSqrt(Schedule):
    """peak · √(warmup / n) after n updates, as in the official fine-tuning; knows no last step [Vaswani+17 §5.3]."""

    kind: Literal["inverse_sqrt"] = "inverse_sqrt"

    def decayed(self, updates_done: int, max_steps: int) -> float:
        return self.peak_lr * (self.warmup_steps / updates_done) ** 0.5
