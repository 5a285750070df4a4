"""Lengths, unknown tokens and fertility of a shard data set, per corpus and side."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np

from deltalm_ds.data.shards import Corpus, ShardDataset
from deltalm_ds.files import atomic_file
from deltalm_ds.progress import progress
from deltalm_ds.report.charts import Line, line_chart, palette
from deltalm_ds.report.page import html_page
from deltalm_ds.token_ids import UNK_ID
from deltalm_ds.vocabulary import Vocabulary

ROWS_AT_A_TIME = 65_536
WORD_START = "▁"


@dataclass(frozen=True)
class SideStatistics:
    """One side of a corpus. Lengths are in tokens; a percentile is the length that so many rows do not exceed.

    Attributes:
        histogram: rows by length: of each bin the longest length in it, and the rows; two bins to a doubling.
        tokens_per_word: fertility: tokens per word between spaces; None where the vocabulary was not given. Of
            languages that are written without spaces it says nothing.
        characters_per_token: of the decoded text, an unknown token being one character; None as above.
    """

    corpus: str
    side: str
    language: str
    rows: int
    tokens: int
    mean_length: float
    median_length: int
    p90_length: int
    p99_length: int
    max_length: int
    unknown_rate: float
    histogram: dict[int, int]
    tokens_per_word: float | None
    characters_per_token: float | None


def statistics(dataset: ShardDataset, vocabulary: Vocabulary | None = None) -> list[SideStatistics]:
    """The statistics of every side of every corpus; reads all tokens once.

    Args:
        vocabulary: the one that the data set was built with; it knows the pieces' characters, for the fertility.

    Raises:
        DataError: a shard is damaged.
    """
    num_ids = dataset.manifest.vocabulary_num_tokens
    sides = [(corpus, side) for corpus in dataset.corpora.values() for side in corpus.sides]
    found = []
    with progress("Reading", sum(corpus.num_rows for corpus, _ in sides), unit="rows") as advance:
        for corpus, side in sides:
            rows_of_length, uses_of_id = np.zeros(1, dtype=np.int64), np.zeros(num_ids, dtype=np.int64)
            for begin in range(0, corpus.num_rows, ROWS_AT_A_TIME):
                rows = corpus.tokens(side, np.arange(begin, min(begin + ROWS_AT_A_TIME, corpus.num_rows)))
                rows_of_length = _sum(rows_of_length, np.bincount(rows.lengths))
                uses_of_id = _sum(uses_of_id, np.bincount(rows.values))
                advance(len(rows.lengths))
            found.append(_side_statistics(corpus, side, rows_of_length, uses_of_id, vocabulary))
    return found


def plot_lengths(sides: Sequence[SideStatistics], path: str | Path) -> None:
    """Write an HTML page with, of every side, the share of rows that are no longer than a length."""
    colour_of = palette(range(len(sides)))
    lines = [
        Line(
            f"{side.corpus} {side.language}",
            [*side.histogram],
            [100 * rows / max(side.rows, 1) for rows in accumulate(side.histogram.values())],
            colour_of[number],
        )
        for number, side in enumerate(sides)
    ]
    chart = line_chart("Rows (%) of at most so many tokens", lines, from_zero=True, x_name="tokens")
    with atomic_file(path) as file:
        file.write(html_page("Lengths in tokens", [chart]))


def _side_statistics(
    corpus: Corpus, side: str, rows_of_length: np.ndarray, uses_of_id: np.ndarray, vocabulary: Vocabulary | None
) -> SideStatistics:
    rows, tokens = corpus.num_rows, int(uses_of_id.sum())
    ranks = np.ceil(np.array([0.5, 0.9, 0.99, 1.0]) * rows)
    median, p90, p99, longest = np.searchsorted(np.cumsum(rows_of_length), ranks).tolist()
    words, characters = _words_and_characters(vocabulary, uses_of_id) if vocabulary else (0, 0)
    return SideStatistics(
        corpus=corpus.name,
        side=side,
        language=corpus.languages[corpus.sides.index(side)],
        rows=rows,
        tokens=tokens,
        mean_length=tokens / max(rows, 1),
        median_length=median,
        p90_length=p90,
        p99_length=p99,
        max_length=longest,
        unknown_rate=int(uses_of_id[UNK_ID]) / max(tokens, 1),
        histogram=_histogram(rows_of_length),
        tokens_per_word=tokens / max(words, 1) if vocabulary else None,
        characters_per_token=characters / max(tokens, 1) if vocabulary else None,
    )


def _histogram(rows_of_length: np.ndarray) -> dict[int, int]:
    """Rows in the bins up to 0, 1, 2, 3, 4, 6, 8, 12, 16, … tokens."""
    bounds = [0, 1]
    while bounds[-1] < len(rows_of_length) - 1:
        bounds.append(2 * bounds[-2] if len(bounds) > 3 else bounds[-1] + 1)
    bins = np.searchsorted(bounds, np.arange(len(rows_of_length)))
    return dict(zip(bounds, np.bincount(bins, rows_of_length, len(bounds)).astype(int).tolist(), strict=True))


def _words_and_characters(vocabulary: Vocabulary, uses_of_id: np.ndarray) -> tuple[int, int]:
    """Words and characters (spaces between words included) of the text that tokens stand for."""
    pieces = vocabulary.blocks["pieces"]
    uses = uses_of_id[vocabulary.block_start("pieces") :][: len(pieces)]
    words = int(uses @ np.array([piece.count(WORD_START) for piece in pieces]))
    characters = int(uses @ np.array([_num_characters(piece) for piece in pieces]))
    return words, characters + int(uses_of_id[UNK_ID])


def _num_characters(piece: str) -> int:
    """The characters that a piece adds to a text; of the bytes of a character (`<0xE2>`) the first counts for all."""
    if len(piece) == 6 and piece.startswith("<0x"):
        return int(not 0x80 <= int(piece[3:5], 16) < 0xC0)
    return len(piece)


def _sum(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The sum of two arrays of counts, the shorter one padded with zeros."""
    longer, shorter = (first, second) if len(first) >= len(second) else (second, first)
    total = longer.copy()
    total[: len(shorter)] += shorter
    return total
