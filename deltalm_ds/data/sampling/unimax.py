"""UniMax: the same share for every corpus, as far as its rows last [Chung+23]."""

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from deltalm_ds.data.sampling.base import Sampling, Shares


class UniMaxSampling(Sampling):
    """The same share for every corpus, but no corpus is passed over more than max_passes times."""

    kind: Literal["unimax"] = "unimax"
    max_passes: float = Field(
        gt=0,
        description="Most passes over a corpus, counted from the start of the run; the rest of its share goes to the "
        "others of its group.",
    )
    settled_step: ClassVar[int] = 0

    def shares(self, sizes: np.ndarray) -> Shares:
        return lambda steps: np.full((*np.shape(steps), len(sizes)), 1 / len(sizes))
