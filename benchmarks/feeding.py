"""Feeding: packed micro-batches from shards on disk, one process, against the usual loaders: `make bench-feeding`.

Ours, Hugging Face `datasets` (map-style Arrow, shuffled), MosaicML `streaming`, and PyTorch's `DataLoader` over a
map-style data set feed the same rows. Each peer fetches row by row, as numpy arrays, and collates with our own
vectorised objective and collation, so what differs is choosing, reading and batching. `torch` cuts its rows from
`np.memmap`, as such data sets are mostly written; `torch-arrays` from the same maps as plain arrays, of which numpy
cuts a slice in a ninth of the time. Cold is the first pass at most, after the loader's files were dropped from the page
cache; warm is later. `gather` is the limit: numpy picks the ids of random rows from the map, by indices made
beforehand, 16 bits each, and does nothing else.

Every loader and objective has a process of its own, and all of them run in turn several times, of which the best
counts: a shared machine can change its speed threefold within seconds, which would decide the ratios of rows that were
each timed once.

The peers want other versions than ours, so they live in an environment of their own that also sees ours:

    python -m venv bench && bench/bin/pip install datasets brotli zstd python-snappy xxhash catalogue
    bench/bin/pip install --no-deps mosaicml-streaming        # its pins exclude numpy 2.2 and transformers 5
    echo $PWD/.venv/lib/python3.*/site-packages > bench/lib/python3.*/site-packages/ours.pth
    # streaming imports torchvision for images; where the build for your torch is not at hand, three lines will do:
    cd bench/lib/python3.*/site-packages && mkdir -p torchvision/transforms && cd torchvision
    touch __init__.py transforms/__init__.py
    echo "VisionDataset = object" > datasets.py; echo "to_tensor = None" > transforms/functional.py

    OMP_NUM_THREADS=1 bench/bin/python -m benchmarks.feeding --record
"""

import importlib.util
import itertools
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.feeding_loaders import BUILDERS, FEEDERS, mean_rows
from benchmarks.recording import parser, report
from deltalm_ds.data.collation import Batch
from deltalm_ds.files import atomic_directory

LOADERS = ("ours", "datasets", "streaming", "torch", "torch-arrays", "gather")
PEERS = ("datasets", "streaming")  # to be installed, see above
ASKED = {"seq2seq": 5e6, "span_corruption": 2e6}  # tokens/s a core
SCRATCH = Path(tempfile.gettempdir()) / "deltalm-feeding"


def main() -> None:
    """Build the data where it is missing, measure every loader in processes of its own, and show the table."""
    options = parser(__doc__)
    options.add_argument("--rows", type=int, default=400_000, help="pairs")
    options.add_argument("--seconds", type=float, default=1.5, help="how long each loader is timed in a round")
    options.add_argument("--rounds", type=int, default=3)
    options.add_argument("--work", type=Path, default=SCRATCH, help="where the data lies")
    arguments = options.parse_args()
    present = [loader for loader in LOADERS if loader not in PEERS or importlib.util.find_spec(loader)]
    for loader in set(PEERS) - set(present):
        print(f"{loader} is not installed: its rows are missing (see the head of this file).", file=sys.stderr)
    places = {loader: arguments.work / f"{_data_of(loader)}-{arguments.rows}" for loader in present}
    for directory in places.values():
        in_own_process(build_rows, directory, arguments.rows)
    cases = [
        (places[loader], loader, objective, arguments.seconds, arguments.rows)
        for loader, objective in itertools.product(present, ASKED)
    ]
    rows = best_rows(_feed, cases, arguments.rounds, lambda row: row["tokens/s"])
    ours = {(row["objective"], row["cache"]): row["tokens/s"] for row in rows if row["loader"] == "ours"}
    for row in rows:
        row["ours is x times as fast"] = ours[row["objective"], row["cache"]] / row["tokens/s"]
    title = f"Feeding, one process: {arguments.rows:,} pairs, best of {arguments.rounds} rounds"
    limit = {row["objective"]: row["tokens/s"] for row in rows if row["loader"] == "gather"}
    notes = [
        f"{objective}, warm: {ours[objective, 'warm'] / 1e6:.1f}M tokens/s, about {asked / 1e6:.0f}M asked for; "
        f"a numpy gather of the same ids, the limit, {limit[objective] / 1e6:.0f}M."
        for objective, asked in ASKED.items()
    ]
    notes.append(
        "torch: rows cut from np.memmap; torch-arrays: from plain arrays over the same map. Both: our collation."
    )
    report(arguments, title, "python -m benchmarks.feeding", rows, notes)


def _data_of(loader: str) -> str:
    return "torch" if loader in ("torch-arrays", "gather") else loader


def best_rows(
    measure: Callable[..., list[dict[str, Any]]],
    cases: Sequence[tuple[Any, ...]],
    num_rounds: int,
    merit: Callable[[dict[str, Any]], float],
) -> list[dict[str, Any]]:
    """Of each case's rows those of greatest merit, all cases being measured in turn, round after round."""
    rounds = [[row for case in cases for row in in_own_process(measure, *case)] for _ in range(num_rounds)]
    return [max(rows, key=merit) for rows in zip(*rounds, strict=True)]


def in_own_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function returns in a process that has done nothing before but import what all of them need."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.feeding_loaders"])
    with ProcessPoolExecutor(1, context) as pool:
        result = pool.submit(function, *arguments).result()
    print(json.dumps(result), file=sys.stderr, flush=True)
    return result


def build_rows(directory: Path, num_rows: int) -> dict[str, Any]:
    """Write the rows as a loader wants them, unless they are there."""
    if not directory.exists():
        with atomic_directory(directory) as temporary:
            BUILDERS[directory.name.partition("-")[0]](temporary, num_rows)
    return {"built": directory.name, "bytes": sum(path.stat().st_size for path in directory.rglob("*"))}


def _feed(directory: Path, loader: str, objective: str, seconds: float, num_rows: int) -> list[dict[str, Any]]:
    """Micro-batches a second over about the given time: from the first one on, each row at most once, and later."""
    about = {"loader": loader, "objective": objective}
    if loader == "gather":
        load_into_cache(directory)
        return [about | {"cache": "warm"} | _gather(directory, objective, seconds)]
    _drop_from_cache(directory)
    batches = FEEDERS[loader](directory, objective)
    cold = _time(batches, seconds, num_rows)
    load_into_cache(directory)
    warm = _time(batches, seconds)
    return [about | {"cache": "cold"} | cold, about | {"cache": "warm"} | warm]


def _time(batches: Iterator[Batch], seconds: float, most_rows: float = math.inf) -> dict[str, float]:
    num_batches = num_tokens = num_rows = 0
    start = time.perf_counter()
    while (spent := time.perf_counter() - start) < seconds and num_rows < most_rows:
        batch = next(batches)
        num_batches, num_tokens = num_batches + 1, num_tokens + len(batch.source.tokens) + len(batch.labels)
        num_rows += len(batch.component_index)
    return {"micro-batches/s": num_batches / spent, "tokens/s": num_tokens / spent}


def _gather(directory: Path, objective: str, seconds: float) -> dict[str, float]:
    """Copy as many ids as a micro-batch has, from random rows, the indices known beforehand."""
    rows, sides = mean_rows(objective), ("source", "target")[: 2 if objective == "seq2seq" else 1]
    generator, work = np.random.default_rng(0), []
    for side in sides:
        tokens, ends = (np.load(directory / f"{side}{part}.npy", mmap_mode="r") for part in ("", "_ends"))
        for _ in range(200):
            chosen = generator.integers(1, len(ends), rows)
            runs = [np.arange(begin, end) for begin, end in zip(ends[chosen - 1], ends[chosen], strict=True)]
            work.append((np.asarray(tokens), np.concatenate(runs)))
    num_batches = num_tokens = 0
    start = time.perf_counter()
    while (spent := time.perf_counter() - start) < seconds:
        tokens, indices = work[num_batches % len(work)]
        num_tokens, num_batches = num_tokens + len(tokens[indices]), num_batches + 1
    return {"micro-batches/s": num_batches / len(sides) / spent, "tokens/s": num_tokens / spent}


def _drop_from_cache(directory: Path) -> None:
    for path in directory.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def load_into_cache(directory: Path) -> None:
    for path in directory.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                while file.read(1 << 24):
                    pass


if __name__ == "__main__":
    main()
