"""What a model learns from a row: translation (seq2seq), span corruption, translation span corruption.

Each objective says which columns it reads, how long the results will be (known from raw lengths alone, so that all
ranks can plan a step without reading tokens), and builds source and target rows, to which collation adds `</s>` and
the language tag.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, ClassVar, Literal, Protocol

import numpy as np

from deltalm_ds.arrays.counter_rng import hash_counters
from deltalm_ds.arrays.ragged import RaggedRows, join, stack
from deltalm_ds.data.corruption import MIN_RAW_TOKENS, SpanNoise
from deltalm_ds.errors import InputError

Lengths = tuple[np.ndarray, np.ndarray]
Rows = tuple[RaggedRows, RaggedRows]


@dataclass(frozen=True)
class Limits:
    """The longest source and target a model is given, in tokens with `</s>` and language tag, and what to do then.

    Attributes:
        overlong: `truncate` keeps the first tokens, `drop` leaves the sequence out; both are counted.
    """

    max_source: int
    max_target: int
    overlong: Literal["truncate", "drop"] = "truncate"

    def __post_init__(self) -> None:
        if min(self.max_source, self.max_target) < 3:
            raise InputError("The maximum source and target lengths must be at least 3 tokens.")
        if self.overlong not in ("truncate", "drop"):
            raise InputError(f"The policy for overlong sequences is 'truncate' or 'drop', not {self.overlong!r}.")


class Objective(Protocol):
    """The interface of the three; `raw` lengths are [columns, N] int64, `keys` [N] uint64, one per sample."""

    name: ClassVar[str]
    num_columns: ClassVar[int]

    @property
    def language_tag(self) -> bool:
        """Whether the target language's tag stands in front of the source."""
        ...

    def fit(self, raw: np.ndarray, limits: Limits, num_sentinels: int) -> np.ndarray:
        """Raw lengths cut down so that the results keep the limits."""
        ...

    def usable(self, raw: np.ndarray) -> np.ndarray:
        """[N] bool: whether rows of these raw lengths are long enough for the objective."""
        ...

    def lengths(self, raw: np.ndarray, keys: np.ndarray) -> Lengths:
        """Lengths of source and target, with `</s>` and language tag, of usable rows."""
        ...

    def build(self, columns: list[RaggedRows], keys: np.ndarray, sentinel_ids: np.ndarray) -> Rows:
        """Source and target rows, without `</s>` and language tag, from raw token rows."""
        ...


@dataclass(frozen=True)
class Seq2Seq:
    """Source → target, with the target language's tag at the head of the source (FACTS §1)."""

    language_tag: bool = True
    name: ClassVar[str] = "seq2seq"
    num_columns: ClassVar[int] = 2

    def fit(self, raw: np.ndarray, limits: Limits, num_sentinels: int) -> np.ndarray:
        return np.minimum(raw, [[limits.max_source - 1 - self.language_tag], [limits.max_target - 1]])

    def usable(self, raw: np.ndarray) -> np.ndarray:
        return raw.min(axis=0) > 0

    def lengths(self, raw: np.ndarray, keys: np.ndarray) -> Lengths:
        return raw[0] + 1 + self.language_tag, raw[1] + 1

    def build(self, columns: list[RaggedRows], keys: np.ndarray, sentinel_ids: np.ndarray) -> Rows:
        source, target = columns
        return source, target


@dataclass(frozen=True)
class SpanCorruption:
    """mT5's span corruption of monolingual text (or of one side of a pair)."""

    noise: SpanNoise = field(default_factory=SpanNoise)
    name: ClassVar[str] = "span_corruption"
    language_tag: ClassVar[bool] = False
    num_columns: ClassVar[int] = 1

    def fit(self, raw: np.ndarray, limits: Limits, num_sentinels: int) -> np.ndarray:
        longest = self.noise.max_raw_tokens(limits.max_source - 1, limits.max_target - 1, num_sentinels)
        return np.minimum(raw, longest)

    def usable(self, raw: np.ndarray) -> np.ndarray:
        return raw[0] >= MIN_RAW_TOKENS

    def lengths(self, raw: np.ndarray, keys: np.ndarray) -> Lengths:
        source_lengths, target_lengths = self.noise.corrupted_lengths(raw[0])
        return source_lengths + 1, target_lengths + 1

    def build(self, columns: list[RaggedRows], keys: np.ndarray, sentinel_ids: np.ndarray) -> Rows:
        return self.noise.corrupt(columns[0], keys, sentinel_ids)


@dataclass(frozen=True)
class TranslationSpanCorruption:
    """Span corruption of a sentence and its translation, concatenated [Ma+21 §2.3].

    Attributes:
        sides: `both` corrupts the pair as one text (DeltaLM); `one` corrupts one sentence, chosen by the sample's
            key, and keeps the other whole (mT6) [Chi+21 §3.2].
    """

    noise: SpanNoise = field(default_factory=lambda: SpanNoise(noise_density=0.5))
    sides: Literal["both", "one"] = "both"
    name: ClassVar[str] = "translation_span_corruption"
    language_tag: ClassVar[bool] = False
    num_columns: ClassVar[int] = 2

    def __post_init__(self) -> None:
        if self.sides not in ("both", "one"):
            raise InputError(f"Translation span corruption has sides 'both' or 'one', not {self.sides!r}.")

    def fit(self, raw: np.ndarray, limits: Limits, num_sentinels: int) -> np.ndarray:
        longest = self.noise.max_raw_tokens(limits.max_source - 1, limits.max_target - 1, num_sentinels)
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
            source_lengths, target_lengths = self.noise.corrupted_lengths(raw.sum(axis=0))
            return source_lengths + 1, target_lengths + 1
        noisy = self._noisy_side(raw, keys)
        rows = np.arange(raw.shape[1])
        source_lengths, target_lengths = self.noise.corrupted_lengths(raw[noisy, rows])
        return source_lengths + raw[1 - noisy, rows] + 1, target_lengths + 1

    def build(self, columns: list[RaggedRows], keys: np.ndarray, sentinel_ids: np.ndarray) -> Rows:
        if self.sides == "both":
            return self.noise.corrupt(join(*columns), keys, sentinel_ids)
        rows, both = np.arange(len(keys)), stack(columns)
        noisy = self._noisy_side(np.stack([column.lengths for column in columns]), keys)
        source, target = self.noise.corrupt(both.take(noisy * len(keys) + rows), keys, sentinel_ids)
        mixed = stack([source, both.take((1 - noisy) * len(keys) + rows)])
        first, second = mixed.take(noisy * len(keys) + rows), mixed.take((1 - noisy) * len(keys) + rows)
        return join(first, second), target

    def _noisy_side(self, raw: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """[N] 0 or 1: the side to corrupt; a one-token sentence is never chosen."""
        drawn = (hash_counters(keys, 2) >> np.uint64(63)).astype(np.int64)
        return np.where(raw.min(axis=0) < MIN_RAW_TOKENS, raw.argmax(axis=0), drawn)


OBJECTIVES: dict[str, Callable[..., Objective]] = {
    objective.name: objective for objective in (Seq2Seq, SpanCorruption, TranslationSpanCorruption)
}
"""The objectives by the name a recipe gives them."""


def make_objective(name: str, *, sides: str | None = None, **noise: Any) -> Objective:
    """The objective that a recipe calls `name`; `noise` are fields of SpanNoise, by default as published [FACTS §2]."""
    objective: Any = OBJECTIVES[name]()
    if noise:
        objective = replace(objective, noise=replace(objective.noise, **noise))
    return replace(objective, sides=sides) if sides else objective


def describe(objective: Objective) -> str:
    """The objective's name, with the options that are not as published: `span_corruption(noise_density=0.3)`."""
    given, published = _options(objective), _options(OBJECTIVES[objective.name]())
    changed = ",".join(f"{key}={value}" for key, value in given.items() if value != published[key])
    return f"{objective.name}({changed})" if changed else objective.name


def _options(objective: Any) -> dict[str, Any]:
    options = asdict(objective)
    noise = options.pop("noise", {})
    return {**options, **noise}
