"""A line to zero."""

from typing import Literal

from deltalm_ds.recipe.schedules.base import Schedule


class Linear(Schedule):
    """From the peak on a line to 0 at the last step, as in the pre-training [Ma+21 §3.1]."""

    kind: Literal["linear"] = "linear"

    def decayed(self, updates_done: int, max_steps: int) -> float:
        return self.peak_lr * max(0.0, (max_steps - updates_done) / max(1, max_steps - self.warmup_steps))
