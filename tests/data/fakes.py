"""An in-memory corpus with the reader's interface, and a small vocabulary."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from deltalm_ds.arrays.ragged import RaggedRows, gather
from deltalm_ds.vocabulary import BLOCK_NAMES, Vocabulary

NUM_SENTINELS = 100
FIRST_PIECE, NUM_PIECES = 4, 1000


def small_vocabulary(num_sentinels: int = NUM_SENTINELS, languages: tuple[str, ...] = ("de", "en", "fr")) -> Vocabulary:
    """`<s> <pad> </s> <unk>`, 1000 pieces, sentinels, language tags."""
    blocks: dict[str, tuple[str, ...]] = dict.fromkeys(BLOCK_NAMES, ())
    blocks |= {
        "special": ("<s>", "<pad>", "</s>", "<unk>"),
        "pieces": tuple(f"p{i}" for i in range(NUM_PIECES)),
        "sentinels": tuple(f"<extra_id_{i}>" for i in range(num_sentinels)),
        "languages": tuple(f"__{language}__" for language in languages),
    }
    return Vocabulary(blocks)


@dataclass(eq=False)
class FakeCorpus:
    """Rows of ids in memory; see `deltalm_ds.data.shards.Corpus`, and `mapped_shards.MappedShards` for the reader."""

    name: str
    languages: tuple[str, ...]
    rows: dict[str, list[np.ndarray]]
    kind: str = field(init=False)

    def __post_init__(self) -> None:
        self.kind = "mono" if len(self.rows) == 1 else "parallel"
        self.sides = tuple(self.rows)
        self.num_rows = len(self.rows["source"])
        self.num_tokens = {side: sum(map(len, rows)) for side, rows in self.rows.items()}
        self.reader, self.first_row = self, 0
        self._flat = RaggedRows.from_rows([row for side in self.sides for row in self.rows[side]])

    def spans(self, column: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        numbers = column * self.num_rows + rows
        return self._flat.starts[numbers], self._flat.lengths[numbers]

    def gather(self, begins: np.ndarray, lengths: np.ndarray) -> RaggedRows:
        return gather(self._flat.values, begins, lengths)


def random_corpus(name: str, num_rows: int, mean_length: float = 12, seed: int = 0) -> Any:
    """A corpus of random rows, a pair when the name is one (`en-de`), with long-tailed lengths of at least two."""
    generator = np.random.default_rng([seed, num_rows])
    languages = tuple(name.split("-"))
    sides = ("source", "target")[: len(languages)]
    rows: dict[str, list[np.ndarray]] = {}
    common = generator.gamma(2.0, mean_length / 2, num_rows)
    for side in sides:
        lengths = np.maximum(2, (common * generator.uniform(0.8, 1.2, num_rows)).astype(int))
        tokens = generator.integers(FIRST_PIECE, FIRST_PIECE + NUM_PIECES, lengths.sum()).astype(np.uint16)
        rows[side] = np.split(tokens, np.cumsum(lengths)[:-1])
    return FakeCorpus(name, languages, rows)
