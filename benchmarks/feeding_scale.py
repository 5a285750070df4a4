"""Feeding as the number of shards grows 1x, 10x, 100x, to 10,000 with 10^9 sequences: `make bench-feeding_scale`.

Opening, first batch, seeking, feeding and memory of one of 32 ranks, each size in a process of its own, all sizes in
turn several times, of which the one of least CPU counts. 100 languages of sentences of 28 tokens under span corruption,
the shards of a language being hard links to one file; imports are not measured, and the page cache is warm.

    OMP_NUM_THREADS=1 python -m benchmarks.feeding_scale --record
"""

import itertools
import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.feeding import SCRATCH, best_rows
from benchmarks.feeding_loaders import LANGUAGES, PIECES, make_stream, vocabulary
from benchmarks.recording import parser, report
from deltalm_ds.data.manifest import CorpusManifest, Manifest
from deltalm_ds.data.mixture import Component
from deltalm_ds.data.objectives import OBJECTIVES
from deltalm_ds.data.shards import ShardDataset, ragged_batch, write_corpus
from deltalm_ds.files import atomic_directory

GROWTH = (1, 10, 100)  # shards a language
WORLD_SIZE, TOKENS_PER_STEP = 32, 128 * 4096  # as 128 GPUs of 4,096 tokens, on the paper's 32 [facts: fine-tuning]
SOURCE_TOKENS_PER_SECOND = 32_500  # of a V100 in the paper's pre-training [facts: pre-training]


def main() -> None:
    """Build the data where it is missing, measure every size in its own process, and show the table."""
    options = parser(__doc__)
    options.add_argument("--rows-per-shard", type=int, default=100_000)
    options.add_argument("--seconds", type=float, default=10.0, help="how long feeding is timed in a round")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--work", type=Path, default=SCRATCH, help="where the data lies")
    arguments = options.parse_args()
    cases = []
    for shards in GROWTH:
        directory = arguments.work / f"scale-{arguments.rows_per_shard}-{shards}"
        if not directory.exists():
            _build(directory, arguments.rows_per_shard, shards)
        cases.append((directory, arguments.seconds))
    rows = best_rows(_measure, cases, arguments.rounds, lambda row: -row["CPU per GPU %"])
    notes = [
        "First batch: the sampler's tables, mapping the shards it needs, and making it; imports are not measured.",
        f"CPU per GPU: one rank's share of a core at {SOURCE_TOKENS_PER_SECOND:,} source tokens/s a GPU; {WORLD_SIZE} "
        f"ranks, {TOKENS_PER_STEP:,} tokens a step.",
        "Memory after feeding: own, and with the process's part of the page cache it has mapped (pss).",
    ]
    report(arguments, "Feeding as the number of shards grows", "python -m benchmarks.feeding_scale", rows, notes)


def _build(directory: Path, rows_per_shard: int, num_shards: int) -> None:
    generator, manifest, corpora = np.random.default_rng(0), Manifest(vocabulary().hash, vocabulary().num_tokens), []
    with atomic_directory(directory) as temporary:
        for language in LANGUAGES:
            lengths = np.clip(generator.gamma(2.0, 14.0, rows_per_shard), 2, 250).astype(np.int64)
            tokens = generator.integers(4, 4 + PIECES, lengths.sum()).astype(np.uint16)
            batch = ragged_batch({"source": (tokens, lengths)}, np.dtype(np.uint16))
            corpus = CorpusManifest(language, "mono", (language,))
            (first,) = write_corpus(temporary, manifest, corpus, [batch], rows_per_shard).shards
            names = [f"{language}.{number:05d}.arrow" for number in range(num_shards)]
            for name in names[1:]:
                os.link(temporary / first.file, temporary / name)
            corpora.append(replace(corpus, shards=tuple(replace(first, file=name) for name in names)))
        replace(manifest, corpora=tuple(corpora)).write(temporary)


def _measure(directory: Path, least_seconds: float) -> list[dict[str, Any]]:
    """Open, make the first batch, seek, feed, and look at the memory."""
    before = _memory_mb()
    times = [time.perf_counter()]
    dataset = ShardDataset.open(directory)
    times.append(time.perf_counter())
    cpu = time.process_time()
    components = tuple(Component(corpus, OBJECTIVES["span_corruption"]()) for corpus in dataset.corpora.values())
    stream = make_stream(components, TOKENS_PER_STEP)
    stream.micro_batches(0, 0, WORLD_SIZE)
    cpu_of_first = time.process_time() - cpu
    times.append(time.perf_counter())
    stream.sequences_drawn(1_000_000)
    times.append(time.perf_counter())
    stream.global_batch(1_000_000)
    times.append(time.perf_counter())
    cpu, source_tokens, tokens = time.process_time(), 0, 0
    for step in itertools.count(1):
        made = stream.micro_batches(step, 0, WORLD_SIZE)
        source_tokens += made.num_source_tokens
        tokens += sum(len(batch.source.tokens) + len(batch.labels) for batch in made.micro_batches)
        if (seconds := time.perf_counter() - times[-1]) > least_seconds:
            break
    gpu_seconds = source_tokens / WORLD_SIZE / SOURCE_TOKENS_PER_SECOND
    after = _memory_mb()
    row = {
        "shards": sum(len(corpus.shards) for corpus in dataset.manifest.corpora),
        "sequences": sum(corpus.num_rows for corpus in dataset.corpora.values()),
        "open s": times[1] - times[0],
        "first batch s": times[2] - times[1],
        "its CPU s": cpu_of_first,
        "seek to step 10^6 ms": 1e3 * (times[3] - times[2]),
        "global batch there ms": 1e3 * (times[4] - times[3]),
        "tokens/s of one rank": tokens / seconds,
        "CPU per GPU %": 100 * (time.process_time() - cpu) / gpu_seconds,
        "own MB": after["own"],
        "more than before opening MB": after["own"] - before["own"],
        "pss MB": after["pss"],
    }
    return [row]


def _memory_mb() -> dict[str, float]:
    """Own memory (not of files), and all with the process's part of shared pages, of Linux."""
    kilobytes = {}
    with open("/proc/self/smaps_rollup") as file:
        for line in list(file)[1:]:
            name, value, *_ = line.split()
            kilobytes[name] = int(value)
    return {"own": kilobytes["Anonymous:"] / 1e3, "pss": kilobytes["Pss:"] / 1e3}


if __name__ == "__main__":
    main()
