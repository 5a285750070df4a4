"""No decay."""

from typing import Literal

from deltalm_ds.recipe.schedules.base import Schedule


class Constant(Schedule):
    """The peak rate, for ever."""

    kind: Literal["constant"] = "constant"

    def decayed(self, updates_done: int, max_steps: int) -> float:
        return self.peak_lr
