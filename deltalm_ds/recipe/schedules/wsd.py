"""Warm-up, stable phase, decay."""

from typing import Literal

from pydantic import Field

from deltalm_ds.recipe.schedules.base import Schedule


class WarmupStableDecay(Schedule):
    """The peak, and from it a short fall to 0 at the last step [Hu+24 §4; Hägele+24 §3].

    The fall may be decided on later: the rate depends on the last step only behind `max_steps - decay_steps`.
    """

    kind: Literal["wsd"] = "wsd"
    decay_steps: int = Field(gt=0, description="Updates of the decay, the last ones of the run.")
    decay_shape: Literal["linear", "1-sqrt"] = Field(
        "1-sqrt", description="Of the decay, from 1 at its begin: 1 - t or 1 - √t, t the share of it that is done."
    )

    def decayed(self, updates_done: int, max_steps: int) -> float:
        begin = max(self.warmup_steps, max_steps - self.decay_steps)
        share = (updates_done - begin) / max(1, max_steps - begin)
        share = min(1.0, max(0.0, share))
        return self.peak_lr * (1 - (share if self.decay_shape == "linear" else share**0.5))
