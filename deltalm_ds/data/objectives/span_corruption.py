"""Span corruption of monolingual text, or of one side of a pair."""

from typing import ClassVar, Literal

import numpy as np

from deltalm_ds.arrays.ragged import RaggedRows
from deltalm_ds.data.corruption import MIN_RAW_TOKENS, SpanNoise
from deltalm_ds.data.objectives.base import Lengths, Limits, Objective, Rows


class SpanCorruption(SpanNoise, Objective):
    """Spans of the text are replaced by sentinels and asked for, as in mT5 [Xue+21]."""

    num_columns: ClassVar[int] = 1

    kind: Literal["span_corruption"] = "span_corruption"

    def fit(self, raw: np.ndarray, limits: Limits, num_sentinels: int) -> np.ndarray:
        return np.minimum(raw, self.max_raw_tokens(limits.max_source - 1, limits.max_target - 1, num_sentinels))

    def usable(self, raw: np.ndarray) -> np.ndarray:
        return raw[0] >= MIN_RAW_TOKENS

    def lengths(self, raw: np.ndarray, keys: np.ndarray) -> Lengths:
        source_lengths, target_lengths = self.corrupted_lengths(raw[0])
        return source_lengths + 1, target_lengths + 1

    def build(self, columns: list[RaggedRows], keys: np.ndarray, sentinel_ids: np.ndarray) -> Rows:
        return self.corrupt(columns[0], keys, sentinel_ids)
