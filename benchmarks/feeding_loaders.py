"""The loaders that benchmarks/feeding.py compares: how each wants the rows on disk, and packed micro-batches of it."""

import itertools
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from deltalm_ds.arrays.counter_rng import hash_counters
from deltalm_ds.arrays.ragged import RaggedRows
from deltalm_ds.data.collation import Batch, collate, frame
from deltalm_ds.data.manifest import CorpusManifest, Manifest
from deltalm_ds.data.mixture import Component, ComponentGroup, Phase
from deltalm_ds.data.objectives import OBJECTIVES
from deltalm_ds.data.objectives.base import Limits
from deltalm_ds.data.sampling.temperature import TemperatureSampling
from deltalm_ds.data.shards import ShardDataset, ragged_batch, write_corpus
from deltalm_ds.data.stream import TrainingStream
from deltalm_ds.vocabulary import BLOCK_NAMES, Vocabulary
from deltalm_ds.vocabulary.blocks import sentinel

PIECES, SENTINELS = 32_000, 100
MICRO_BATCH_TOKENS, MICRO_BATCHES = 8_192, 16
LANGUAGES = tuple(f"{first}{second}" for first in "abcdefghij" for second in "abcdefghij")


# --- the data ---


def vocabulary() -> Vocabulary:
    """Pieces, sentinels and the tags of 100 languages."""
    blocks: dict[str, tuple[str, ...]] = dict.fromkeys(BLOCK_NAMES, ())
    blocks |= {
        "special": ("<s>", "<pad>", "</s>", "<unk>"),
        "pieces": tuple(f"p{number}" for number in range(PIECES)),
        "sentinels": tuple(map(sentinel, range(SENTINELS))),
        "languages": tuple(f"__{language}__" for language in LANGUAGES),
    }
    return Vocabulary(blocks)


def _pairs(num_rows: int) -> Iterator[dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Ids and lengths of both sides, some rows at a time: lengths like those of WMT, 25 to 30 tokens on average."""
    for begin in range(0, num_rows, 50_000):
        generator = np.random.default_rng(begin)
        common = generator.gamma(2.0, 14.0, min(50_000, num_rows - begin))
        sides = {}
        for side in ("source", "target"):
            lengths = np.clip(common * generator.uniform(0.8, 1.2, len(common)), 2, 250).astype(np.int64)
            sides[side] = generator.integers(4, 4 + PIECES, lengths.sum()).astype(np.uint16), lengths
        yield sides


def _rows(columns: tuple[np.ndarray, np.ndarray]) -> list[np.ndarray]:
    tokens, lengths = columns
    return list(RaggedRows(tokens, lengths))


def _build_ours(directory: Path, num_rows: int) -> None:
    manifest = Manifest(vocabulary().hash, vocabulary().num_tokens)
    corpus = CorpusManifest("aa-ab", "parallel", ("aa", "ab"))
    batches = (ragged_batch(sides, np.dtype(np.uint16)) for sides in _pairs(num_rows))
    replace(manifest, corpora=(write_corpus(directory, manifest, corpus, batches),)).write(directory)


def _build_datasets(directory: Path, num_rows: int) -> None:
    import datasets

    def examples() -> Iterator[dict[str, np.ndarray]]:
        for sides in _pairs(num_rows):
            for source, target in zip(_rows(sides["source"]), _rows(sides["target"]), strict=True):
                yield {"source": source, "target": target}

    ids = datasets.Sequence(datasets.Value("uint16"))
    features = datasets.Features({"source": ids, "target": ids})
    made = datasets.Dataset.from_generator(examples, features=features, cache_dir=str(directory / "cache"))
    made.save_to_disk(str(directory / "data"))
    shutil.rmtree(directory / "cache")


def _build_streaming(directory: Path, num_rows: int) -> None:
    import streaming

    columns = {"source": "ndarray:uint16", "target": "ndarray:uint16"}
    with streaming.MDSWriter(out=str(directory / "data"), columns=columns) as writer:
        for sides in _pairs(num_rows):
            for source, target in zip(_rows(sides["source"]), _rows(sides["target"]), strict=True):
                writer.write({"source": source, "target": target})


def _build_torch(directory: Path, num_rows: int) -> None:
    parts = list(_pairs(num_rows))
    for side in ("source", "target"):
        np.save(directory / f"{side}.npy", np.concatenate([part[side][0] for part in parts]))
        lengths = np.concatenate([part[side][1] for part in parts])
        np.save(directory / f"{side}_ends.npy", np.cumsum(lengths))


# --- the loaders; each yields packed micro-batches for ever ---


def _collator(objective_name: str) -> Callable[[list[dict[str, np.ndarray]]], Batch]:
    """The collation of ours, for loaders that hand over a list of rows."""
    objective, ids, drawn = OBJECTIVES[objective_name](), vocabulary(), itertools.count()
    sides = ("source", "target")[: objective.num_columns]
    tag = ids.language_id("ab") if objective.takes_tag else 0

    def pack(rows: list[dict[str, np.ndarray]]) -> Batch:
        columns = [RaggedRows.from_rows([row[side] for row in rows]) for side in sides]
        order, zeros = np.arange(len(rows)), np.zeros(len(rows), dtype=np.int64)
        source, target = objective.build(columns, hash_counters(next(drawn), order), ids.sentinel_ids)
        tagged = frame(source, order, zeros + tag)
        return collate(tagged, frame(target, order, zeros), zeros, [len(rows)])[0]

    return pack


def mean_rows(objective: str) -> int:
    """Rows of a micro-batch on average."""
    return MICRO_BATCH_TOKENS // (59 if objective == "seq2seq" else 34)


def _forever(loader: Any) -> Iterator[Batch]:
    while True:
        yield from loader


def make_stream(components: tuple[Component, ...], tokens_per_step: int) -> TrainingStream:
    """What training would read of tasks, with a rising temperature."""
    return TrainingStream(
        [Phase(0, (ComponentGroup("all", components),), TemperatureSampling(change_steps=100_000))],
        vocabulary(),
        Limits(512, 512),
        seed=1,
        micro_batch_tokens=MICRO_BATCH_TOKENS,
        tokens_per_step=tokens_per_step,
        num_steps=100_000,
    )


def _feed_ours(directory: Path, objective: str) -> Iterator[Batch]:
    corpus = ShardDataset.open(directory).corpora["aa-ab"]
    stream = make_stream((Component(corpus, OBJECTIVES[objective]()),), MICRO_BATCHES * MICRO_BATCH_TOKENS)
    for step in itertools.count():
        yield from stream.micro_batches(step, 0, 1).micro_batches


def _feed_datasets(directory: Path, objective: str) -> Iterator[Batch]:
    import datasets
    from torch.utils.data import DataLoader

    rows = datasets.load_from_disk(str(directory / "data")).shuffle(seed=0).with_format("numpy")
    if objective != "seq2seq":
        rows = rows.select_columns(["source"])
    return _forever(DataLoader(rows, mean_rows(objective), collate_fn=_collator(objective)))


def _feed_streaming(directory: Path, objective: str) -> Iterator[Batch]:
    import streaming
    from torch.utils.data import DataLoader

    streaming.base.util.clean_stale_shared_memory()
    size = mean_rows(objective)
    rows = streaming.StreamingDataset(local=str(directory / "data"), shuffle=True, batch_size=size)
    return _forever(DataLoader(rows, size, collate_fn=_collator(objective)))


class _MemoryMapped:
    """A PyTorch map-style data set over numpy memory maps; `view` is what rows are cut from."""

    def __init__(self, directory: Path, sides: tuple[str, ...], view: Callable[[np.ndarray], np.ndarray]) -> None:
        self._tokens = {side: view(np.load(directory / f"{side}.npy", mmap_mode="r")) for side in sides}
        self._ends = {side: view(np.load(directory / f"{side}_ends.npy", mmap_mode="r")) for side in sides}

    def __len__(self) -> int:
        return len(self._ends["source"])

    def __getitem__(self, row: int) -> dict[str, np.ndarray]:
        found = {}
        for side, ends in self._ends.items():
            begin = ends[row - 1] if row else 0
            found[side] = self._tokens[side][begin : ends[row]]
        return found


def _feed_torch(
    directory: Path, objective: str, view: Callable[[np.ndarray], np.ndarray] = np.asanyarray
) -> Iterator[Batch]:
    from torch.utils.data import DataLoader

    rows: Any = _MemoryMapped(directory, ("source", "target")[: 2 if objective == "seq2seq" else 1], view)
    return _forever(DataLoader(rows, mean_rows(objective), shuffle=True, collate_fn=_collator(objective)))


BUILDERS: dict[str, Callable[[Path, int], None]] = {
    "ours": _build_ours,
    "datasets": _build_datasets,
    "streaming": _build_streaming,
    "torch": _build_torch,
}
FEEDERS: dict[str, Callable[[Path, str], Iterator[Batch]]] = {
    "ours": _feed_ours,
    "datasets": _feed_datasets,
    "streaming": _feed_streaming,
    "torch": _feed_torch,
    "torch-arrays": partial(_feed_torch, view=np.asarray),
}
