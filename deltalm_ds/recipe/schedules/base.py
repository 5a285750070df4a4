"""What every schedule is: a linear warm-up and a decay, as a pure function of the number of updates done."""

from abc import abstractmethod

from pydantic import BaseModel, ConfigDict, Field


class Schedule(BaseModel):
    """The learning rate rises on a line from `initial_lr` to `peak_lr`; then the kind of schedule decides.

    Update number n (from 1) uses the rate after n - 1 updates, as fairseq does.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    kind: str
    peak_lr: float = Field(gt=0, description="Learning rate at the end of the warm-up.")
    warmup_steps: int = Field(gt=0, description="Updates of the warm-up.")
    initial_lr: float = Field(0.0, ge=0, description="Learning rate of the first update.")

    def learning_rate(self, updates_done: int, max_steps: int) -> float:
        """The rate of the next update of a run of `max_steps`."""
        if updates_done < self.warmup_steps:
            return self.initial_lr + (self.peak_lr - self.initial_lr) * updates_done / self.warmup_steps
        return self.decayed(updates_done, max_steps)

    @abstractmethod
    def decayed(self, updates_done: int, max_steps: int) -> float:
        """The rate from the end of the warm-up on, where it is `peak_lr`."""
