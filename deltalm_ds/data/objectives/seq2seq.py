"""From a source text to its target, as in translation."""

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from deltalm_ds.arrays.ragged import RaggedRows
from deltalm_ds.data.objectives.base import Lengths, Limits, Objective, Rows


class Seq2Seq(Objective):
    """Source → target, with the target language's tag at the head of the source as in the official fine-tuning."""

    num_columns: ClassVar[int] = 2

    kind: Literal["seq2seq"] = "seq2seq"
    language_tag: bool = Field(
        True, description="Put the target language's tag in front of the source; false for a vocabulary without tags."
    )

    @property
    def takes_tag(self) -> bool:
        return self.language_tag

    def fit(self, raw: np.ndarray, limits: Limits, num_sentinels: int) -> np.ndarray:
        return np.minimum(raw, [[limits.max_source - 1 - self.language_tag], [limits.max_target - 1]])

    def usable(self, raw: np.ndarray) -> np.ndarray:
        return raw.min(axis=0) > 0

    def lengths(self, raw: np.ndarray, keys: np.ndarray) -> Lengths:
        return raw[0] + 1 + self.language_tag, raw[1] + 1

    def build(self, columns: list[RaggedRows], keys: np.ndarray, sentinel_ids: np.ndarray) -> Rows:
        source, target = columns
        return source, target
