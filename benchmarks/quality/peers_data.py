"""What all systems of `peers` are given, and what is asked of them: Multi30k as `multi30k.py` prepares it.

The ids are those of our vocabulary of 6,000 pieces, without language tags and `</s>`. Training pairs are the eight
drawn segmentations of every pair that our shards hold, so that no system has other data than another.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from benchmarks.quality.study import STUDIES
from deltalm_ds.data.shards import ShardDataset
from deltalm_ds.vocabulary import Vocabulary

WORK = STUDIES / "multi30k"
VOCABULARY, SHARDS = WORK / "de" / "vocabulary", WORK / "de" / "sampled"
# of recipes/multi30k_en_de.yaml, as far as others have it too
WIDTH, FFN, HEADS, LAYERS, BLOCKS = 192, 512, 4, 3, 3
DROPOUT, SMOOTHING, CLIP, BETAS = 0.2, 0.1, 1.0, (0.9, 0.98)
PEAK_LR, WARMUP = 3e-3, 800  # then by the inverse square root of the steps, which no budget of seconds changes
TOKENS_A_STEP = 2400  # of both sides
LONGEST = 128
SAVE_EVERY, LOG_EVERY = 100, 50  # steps
BEAM = 5

Ids = list[int]


@dataclass(frozen=True)
class Pairs:
    """Sources and targets, without `</s>`."""

    sources: list[Ids]
    targets: list[Ids]

    def tokens_of_pair(self) -> float:
        """Mean tokens of both sides, each with its `</s>`."""
        return sum(len(ids) + 1 for ids in [*self.sources, *self.targets]) / len(self.sources)


@cache
def vocabulary() -> Vocabulary:
    return Vocabulary.load(VOCABULARY)


def training_pairs() -> Pairs:
    """Every drawn segmentation of every pair, in the order of the shards."""
    (corpus,) = ShardDataset.open(SHARDS).corpora.values()
    rows = np.arange(corpus.num_rows)
    sides = [[ids.tolist() for ids in corpus.tokens(side, rows)] for side in corpus.sides]
    kept = [pair for pair in zip(*sides, strict=True) if max(map(len, pair)) < LONGEST]
    return Pairs(*map(list, zip(*kept, strict=True)))


def validation_pairs() -> Pairs:
    """The most probable segmentation of every pair."""
    return Pairs(*([vocabulary().encode(line).tolist() for line in lines("dev", side)] for side in ("en", "de")))


def test_sources() -> list[Ids]:
    return [vocabulary().encode(line).tolist() for line in lines("test", "en")]


def lines(split: str, language: str) -> list[str]:
    return text_file(split, language).read_text(encoding="utf-8").splitlines()


def text_file(split: str, language: str) -> Path:
    return WORK / "text" / f"{split}.{language}"


def in_batches(sequences: list[Ids], size: int = 50) -> list[list[int]]:
    """Indices, those of similar length together."""
    order = sorted(range(len(sequences)), key=lambda index: len(sequences[index]))
    return [order[start : start + size] for start in range(0, len(order), size)]
