"""Span corruption as T5 defines it [Raffel+20 §3.1.4 and its code], vectorised over a batch of rows.

Of L raw tokens n = clip(round(L · density), 1, L − 1) are noise, in k = max(1, round(n / mean span)) spans. Noise and
the rest are each cut uniformly at random into k non-empty parts, which alternate; a row starts with a kept part
and ends with a noise span. In the input each span is replaced by one sentinel S0, S1, …; the target lists each
sentinel and its span. Neither has `</s>` here; collation adds it.
"""

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from deltalm_ds.arrays.counter_rng import hash_counters, mix_in
from deltalm_ds.arrays.ragged import RaggedRows, gather
from deltalm_ds.errors import InputError

MIN_RAW_TOKENS = 2
"""A shorter row has no room for a kept token and a noise token: it cannot be corrupted."""


class SpanNoise(BaseModel):
    """How much is corrupted."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    noise_density: float = Field(0.15, gt=0, lt=1, description="Share of the raw tokens that are noise.")
    mean_span_length: float = Field(3.0, ge=1, description="Mean length of a noise span, in tokens.")
    sentinels_in_target: bool = Field(
        True, description="Put each span's sentinel in front of it in the target; false for zero-shot fine-tuning."
    )

    def counts(self, raw_lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Noise tokens and noise spans of rows of `raw_lengths` (>= 2), int64. Halves round to even, as in T5."""
        num_noise = np.clip(np.rint(raw_lengths * self.noise_density).astype(np.int64), 1, raw_lengths - 1)
        num_spans = np.maximum(1, np.rint(num_noise / self.mean_span_length).astype(np.int64))
        # Only at densities above 0.75 are there fewer kept tokens than spans.
        return num_noise, np.minimum(num_spans, raw_lengths - num_noise)

    def corrupted_lengths(self, raw_lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Lengths of input and target, without `</s>`, of rows of `raw_lengths` (>= 2)."""
        num_noise, num_spans = self.counts(raw_lengths)
        target_lengths = num_noise + num_spans if self.sentinels_in_target else num_noise
        return raw_lengths - num_noise + num_spans, target_lengths

    def max_raw_tokens(self, max_input: int, max_target: int, num_sentinels: int) -> int:
        """The longest row whose input and target (without `</s>`) fit the limits and that has enough sentinels.

        Raises:
            InputError: not even the shortest row fits.
        """
        # Kept tokens and noise tokens are at most the two limits, so no longer row can fit.
        raw_lengths = np.arange(MIN_RAW_TOKENS, max(MIN_RAW_TOKENS, max_input + max_target) + 1)
        input_lengths, target_lengths = self.corrupted_lengths(raw_lengths)
        _, num_spans = self.counts(raw_lengths)
        fits = (input_lengths <= max_input) & (target_lengths <= max_target) & (num_spans <= num_sentinels)
        if not fits[0]:
            raise InputError(
                f"Span corruption cannot work with {num_sentinels} sentinels, {max_input + 1} source and "
                f"{max_target + 1} target tokens: add sentinels to the vocabulary or raise the maximum lengths."
            )
        return int(raw_lengths[fits][-1])

    def corrupt(self, raw: RaggedRows, keys: np.ndarray, sentinel_ids: np.ndarray) -> tuple[RaggedRows, RaggedRows]:
        """Corrupt every row.

        Args:
            raw: N rows of at least two tokens.
            keys: [N] uint64, one per row: the same key and length give the same spans.
            sentinel_ids: the vocabulary's sentinels, S0 first.

        Returns:
            Inputs and targets, without `</s>`.

        Raises:
            InputError: a row has more spans than there are sentinels.
        """
        num_noise, num_spans = self.counts(raw.lengths)
        if num_spans.max(initial=0) > len(sentinel_ids):
            raise InputError(
                f"A sequence of {raw.lengths[num_spans.argmax()]} tokens has {num_spans.max()} noise spans, but the "
                f"vocabulary has {len(sentinel_ids)} sentinels: use shorter sequences or more sentinels."
            )
        keys_of_both = np.concatenate([hash_counters(keys, 0), hash_counters(keys, 1)])
        items_of_both = np.concatenate([raw.lengths - num_noise, num_noise])
        parts = random_segmentation(items_of_both, np.tile(num_spans, 2), keys_of_both)
        kept, noise = parts.reshape(2, -1)
        # Kept and noise parts alternate through all rows. Each is copied with one token more, where its sentinel goes.
        noise_starts = np.cumsum(kept + noise) - noise
        first_spans = np.repeat(np.cumsum(num_spans) - num_spans, num_spans)
        sentinels = sentinel_ids[np.arange(len(noise)) - first_spans]
        source = gather(raw.values, noise_starts - kept, kept + 1).values
        source[np.cumsum(kept + 1) - 1] = sentinels
        if self.sentinels_in_target:
            target = gather(raw.values, noise_starts - 1, noise + 1).values
            target[np.cumsum(noise + 1) - (noise + 1)] = sentinels
        else:
            target = gather(raw.values, noise_starts, noise).values
        source_lengths, target_lengths = self.corrupted_lengths(raw.lengths)
        return RaggedRows(source, source_lengths), RaggedRows(target, target_lengths)


def random_segmentation(num_items: np.ndarray, num_parts: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """Cut `num_items` [N] into `num_parts` [N] non-empty parts, every way equally likely.

    A row of n items has n − 1 inner boundaries, of which k − 1 are cut. They are drawn by Floyd's algorithm
    [Bentley+87], which needs one random number each: for j = n − k + 1, …, n − 1 it draws one of the boundaries
    1 … j and cuts there, or at j where that is cut already. All rows take their i-th draw at the same time.

    Returns:
        Part lengths, row after row: int64 [sum of num_parts].
    """
    starts, total = np.cumsum(num_items) - num_items, int(num_items.sum())
    is_start = np.zeros(total, dtype=bool)
    is_start[starts] = True
    rows = np.arange(len(num_items))
    for draw in range(1, int(num_parts.max(initial=1))):
        rows = rows[num_parts[rows] > draw]
        last = num_items[rows] - num_parts[rows] + draw
        drawn = 1 + (mix_in(keys[rows], draw) % last.astype(np.uint64)).astype(np.int64)
        boundary = starts[rows] + drawn
        is_start[np.where(is_start[boundary], starts[rows] + last, boundary)] = True
    return np.diff(np.flatnonzero(is_start), append=total)
