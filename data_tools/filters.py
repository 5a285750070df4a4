"""What of a corpus becomes rows: the settings of a build, and the reasons for which a record is left out.

A record is counted once, under the first of `REASONS` that holds. Control characters are looked for in the text as it
is; scripts and duplicates in the text as the SentencePiece model normalises it (NFKC as a rule, under which full-width
and compatibility letters are the plain ones and control characters are gone). Tokens are those of the same model.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from deltalm_ds.data.shards import ROWS_PER_SHARD
from deltalm_ds.data_tools.scripts import script_shares
from deltalm_ds.errors import InputError
from deltalm_ds.languages import scripts_of
from deltalm_ds.vocabulary import Vocabulary

REASONS = ("", "control", "script", "duplicate", "empty", "short", "overlong", "ratio")
CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\ufffd]")  # and U+FFFD, which stands for bytes lost before


@dataclass(frozen=True)
class Settings:
    """All that decides what a build makes of its text.

    Attributes:
        max_tokens: the longest a side may be, `</s>` and tags not counted; None for any length.
        overlong: what happens to a longer one: `truncate` cuts it, `drop` leaves the whole record out.
        min_tokens: the shortest a side (or document) may be.
        max_ratio: how many times longer in tokens one side may be than the other.
        min_script_share: of a text's letters, the share that must be in a script of its language.
        drop_control: leave out records with control characters or U+FFFD.
        deduplicate: leave out records that occurred before in the corpus.
        window_tokens: the records of monolingual corpora are documents, and rows are windows of so many tokens; the
            rest of a document is a shorter row. None: a record is a row.
        cross_documents: windows run on from one document to the next, without a separator, within a shard.
        subword_samples: rows made of each record with different, drawn segmentations (subword regularisation,
            [Kudo18]); 0 makes one row with the best segmentation.
        sample_alpha: smoothing of the drawn segmentations; the smaller, the more varied.
        seed: of the drawn segmentations.
        rows_per_shard: records of a shard, times the samples; where texts are long, fewer.
    """

    max_tokens: int | None = None
    overlong: str = "truncate"
    min_tokens: int = 1
    max_ratio: float | None = None
    min_script_share: float | None = None
    drop_control: bool = False
    deduplicate: bool = False
    window_tokens: int | None = None
    cross_documents: bool = False
    subword_samples: int = 0
    sample_alpha: float = 0.1
    seed: int = 0
    rows_per_shard: int = ROWS_PER_SHARD

    def __post_init__(self) -> None:
        if self.overlong not in ("truncate", "drop"):
            raise InputError(f"Overlong rows are handled by 'truncate' or 'drop', not {self.overlong!r}.")
        if self.rows_per_shard < 1 or self.min_tokens < 1 or self.subword_samples < 0:
            raise InputError("Numbers of rows and tokens must be 1 or more, of subword samples 0 or more.")
        if any(longest is not None and longest < 1 for longest in (self.max_tokens, self.window_tokens)):
            raise InputError("The longest row must have 1 token or more.")
        if self.max_ratio is not None and not self.max_ratio >= 1:
            raise InputError("The ratio of the sides' lengths is longer to shorter: 1 or more.")
        if self.min_script_share is not None and not 0 < self.min_script_share <= 1:
            raise InputError("The share of letters in the language's script is above 0 and at most 1.")
        if self.window_tokens is not None and self.max_tokens is not None:
            raise InputError("Documents are cut into windows: give their length, and no maximum of tokens.")
        if self.window_tokens is not None and self.subword_samples:
            raise InputError("Subword samples are for sentences: build documents without them.")
        if not (0 < self.sample_alpha < math.inf and 0 <= self.seed < 1 << 63):
            raise InputError(
                "Drawn segmentations need a smoothing above 0, and a seed of 0 or more with at most 63 bits."
            )
        if self.cross_documents and self.window_tokens is None:
            raise InputError("Only documents can be crossed: give the length of windows too.")


def text_reasons(
    columns: Sequence[list[bytes]],
    languages: Sequence[str],
    is_duplicate: np.ndarray,
    vocabulary: Vocabulary,
    settings: Settings,
) -> np.ndarray:
    """The first of `REASONS` to leave a record out by its texts.

    Args:
        columns: a column of UTF-8 texts a side, all of [records].
        languages: of each side.
        is_duplicate: [records] bool.
        vocabulary: normalises the texts before their scripts are looked at.
        settings: which reasons count.

    Returns:
        [records] uint8, the reason's number; 0 for none.
    """
    reasons = np.zeros(len(columns[0]), np.uint8)
    if settings.drop_control:
        for texts in columns:
            _mark(reasons, "control", np.array([CONTROL.search(text.decode()) is not None for text in texts]))
    if settings.min_script_share is not None:
        for texts, language in zip(columns, languages, strict=True):
            normal = [text.decode() for text in vocabulary.normalize(texts)]
            shares = script_shares(normal, scripts_of(language))
            _mark(reasons, "script", shares < settings.min_script_share)
    _mark(reasons, "duplicate", is_duplicate)
    return reasons


def token_reasons(lengths: np.ndarray, settings: Settings) -> np.ndarray:
    """[records] uint8: the first of `REASONS` to leave a record out by its sides' tokens, [sides, records]; or 0."""
    shortest, longest = lengths.min(axis=0), lengths.max(axis=0)
    reasons = np.zeros(lengths.shape[1], np.uint8)
    _mark(reasons, "empty", shortest == 0)
    _mark(reasons, "short", shortest < settings.min_tokens)
    if settings.max_tokens is not None and settings.overlong == "drop":
        _mark(reasons, "overlong", longest > settings.max_tokens)
    if settings.max_ratio is not None:
        _mark(reasons, "ratio", longest > settings.max_ratio * shortest)
    return reasons


def count_reasons(reasons: np.ndarray) -> Counter[str]:
    """How many records are left out for each reason."""
    counts = np.bincount(reasons, minlength=len(REASONS)).tolist()
    return +Counter(dict(zip(REASONS[1:], counts[1:], strict=True)))


def _mark(reasons: np.ndarray, reason: str, holds: np.ndarray) -> None:
    reasons[(reasons == 0) & holds] = REASONS.index(reason)
