"""Lengths and unknown tokens of a shard data set, per corpus and side."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from deltalm_ds.data.shards import Corpus, ShardDataset
from deltalm_ds.vocabulary import Vocabulary


@dataclass(frozen=True)
class SideStatistics:
    """One side of a corpus. Lengths are in tokens; a percentile is the length that so many rows do not exceed."""

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


def corpus_statistics(corpus: Corpus) -> Iterator[SideStatistics]:
    """Read all tokens of a corpus once a side; percentiles are exact."""
    for side, language in zip(corpus.sides, corpus.languages, strict=True):
        histogram = np.zeros(1, np.int64)
        unknown = 0
        for batch in corpus.record_batches():
            counts = np.bincount(np.diff(batch[side].offsets), minlength=len(histogram))
            counts[: len(histogram)] += histogram
            histogram = counts
            unknown += int(np.count_nonzero(batch[side].tokens == Vocabulary.unk_id))
        rows, tokens = corpus.num_rows, corpus.num_tokens[side]
        ranks = np.ceil(np.array([0.5, 0.9, 0.99, 1.0]) * rows)
        median, p90, p99, longest = np.searchsorted(np.cumsum(histogram), ranks).tolist()
        yield SideStatistics(
            corpus=corpus.name,
            side=side,
            language=language,
            rows=rows,
            tokens=tokens,
            mean_length=tokens / max(rows, 1),
            median_length=median,
            p90_length=p90,
            p99_length=p99,
            max_length=longest,
            unknown_rate=unknown / max(tokens, 1),
        )


def statistics(dataset: ShardDataset) -> list[SideStatistics]:
    """The statistics of every side of every corpus."""
    return [side for corpus in dataset.corpora.values() for side in corpus_statistics(corpus)]
