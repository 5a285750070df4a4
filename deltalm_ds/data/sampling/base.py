"""What every kind of sampling offers the sampler that deals sequences to steps. K corpora of a group."""

from abc import abstractmethod
from collections.abc import Callable

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, model_validator

Shares = Callable[[np.ndarray], np.ndarray]


class Sampling(BaseModel):
    """A rule for the share of each corpus in its group's sequences, by step."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    kind: str
    max_passes: float | None = Field(
        None,
        gt=0,
        description="Most passes over a corpus, counted from the start of the run; the rest of its share goes to the "
        "others of its group. Only where shares stay as they are.",
    )

    @model_validator(mode="after")
    def _caps_what_stays(self) -> "Sampling":
        if self.max_passes is not None and self.settled_step > 0:
            raise ValueError(
                f"max_passes={self.max_passes:g} needs shares that stay, and these change up to step "
                f"{self.settled_step:,}: leave out one of them, or let them change from phase to phase (phases)"
            )
        return self

    @property
    @abstractmethod
    def settled_step(self) -> int:
        """The first step from which the shares no longer change."""

    @abstractmethod
    def shares(self, sizes: np.ndarray) -> Shares:
        """The rule for corpora of `sizes` [K] rows: a function from steps [...], from 0, to shares [..., K].

        Shares are float64, at least 0, and add up to 1 at every step. All ranks must come to the same numbers to the
        last bit, whatever their CPU: compute with `portable_math` and + − · / alone.
        """

    def facts(self, step: int) -> dict[str, float]:
        """Numbers about the rule at a step, by name, for logs and plans."""
        return {}
