"""Span corruption of a sentence and its translation, laid end to end."""

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from deltalm_ds.arrays.counter_rng import hash_counters
from deltalm_ds.arrays.ragged import RaggedRows, join_rows, stack
from deltalm_ds.data.corruption import MIN_RAW_TOKENS, SpanNoise
from deltalm_ds.data.objectives.base import Lengths, Limits, Objective, Rows


class TranslationSpanCorruption(SpanNoise, Objective):
    """Spans of a pair of sentences are replaced by sentinels and asked for [Ma+21 §2.3; Chi+21 §3.2]."""

    num_columns: ClassVar[int] = 2
    joins_sides: ClassVar[bool] = True

    kind: Literal["translation_span_corruption"] = "translation_span_corruption"
    noise_density: float = Field(0.5, gt=0, lt=1, description="Share of the raw tokens that are noise.")
    sides: Literal["both", "one"] = Field(
        "both",
        description="Corrupt the pair as one text (both: DeltaLM), or one of its sentences, drawn for each pair, and "
        "keep the other whole (one: mT6).",
    )

    def fit(self, raw: np.ndarray, limits: Limits, num_sentinels: int) -> np.ndarray:
        longest = self.max_raw_tokens(limits.max_source - 1, limits.max_target - 1, num_sentinels)
        if self.sides == "one":
            raw, longest = np.minimum(raw, longest), limits.max_source - 1
        # The longer sentence gives way first, down to half of the room.
        first = np.minimum(raw[0], np.maximum(longest - raw[1], (longest + 1) // 2))
        return np.stack([first, np.minimum(raw[1], longest - first)])

    def usable(self, raw: np.ndarray) -> np.ndarray:
        longer = raw.max(axis=0) if self.sides == "one" else raw.sum(axis=0)
        return (longer >= MIN_RAW_TOKENS) & (raw.min(axis=0) > 0)

    def lengths(self, raw: np.ndarray, keys: np.ndarray) -> Lengths:
        if self.sides == "both":
            source_lengths, target_lengths = self.corrupted_lengths(raw.sum(axis=0))
            return source_lengths + 1, target_lengths + 1
        noisy = self._noisy_side(raw, keys)
        rows = np.arange(raw.shape[1])
        source_lengths, target_lengths = self.corrupted_lengths(raw[noisy, rows])
        return source_lengths + raw[1 - noisy, rows] + 1, target_lengths + 1

    def build(self, columns: list[RaggedRows], keys: np.ndarray, sentinel_ids: np.ndarray) -> Rows:
        if self.sides == "both":
            return self.corrupt(join_rows(*columns), keys, sentinel_ids)
        rows, both = np.arange(len(keys)), stack(columns)
        noisy = self._noisy_side(np.stack([column.lengths for column in columns]), keys)
        source, target = self.corrupt(both.take(noisy * len(keys) + rows), keys, sentinel_ids)
        mixed = stack([source, both.take((1 - noisy) * len(keys) + rows)])
        first, second = mixed.take(noisy * len(keys) + rows), mixed.take((1 - noisy) * len(keys) + rows)
        return join_rows(first, second), target

    def _noisy_side(self, raw: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """[N] 0 or 1: the side to corrupt; a one-token sentence is never chosen."""
        drawn = (hash_counters(keys, 2) >> np.uint64(63)).astype(np.int64)
        return np.where(raw.min(axis=0) < MIN_RAW_TOKENS, raw.argmax(axis=0), drawn)
