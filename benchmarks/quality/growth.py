"""How tokens/s, memory and the start of `deltalm train` grow along an axis: `make bench-quality/growth`.

One thing is multiplied, all else stays: a tiny model of 8,000 pieces, 2,000 tokens a step (500 along `model`), one
rank of a thread a core (a thread a rank along `ranks`), one corpus of 20,000 pairs of two languages, drawn at random,
as what is measured does not depend on what the tokens say. Every point is a `deltalm train` of its own that is ended
after some steps. A figure, and the slope of each line: 1 is proportional, 0 does not grow.

    python -m benchmarks.quality.growth --axis vocabulary --record
"""

import math
import shutil
import statistics
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from benchmarks.quality.figures import FIGURES, log_log
from benchmarks.quality.peers_deltalm import Ours
from benchmarks.quality.peers_running import Running, environment, start
from benchmarks.quality.study import zero1
from benchmarks.recording import ROOT, keep, parser, report
from deltalm_ds.checkpoints.directory import parameter_shapes
from deltalm_ds.data.manifest import CorpusManifest, Manifest, token_type
from deltalm_ds.data.shards import ragged_batch, write_corpus
from deltalm_ds.files import atomic_directory
from deltalm_ds.model.config import DeltaLMConfig
from deltalm_ds.runs.metrics import read_metrics
from deltalm_ds.vocabulary import Vocabulary
from deltalm_ds.vocabulary.blocks import make_blocks

WORK = ROOT / "runs" / "growth"
LETTERS = "abcdefghijklmnopqrstuvwxyz"
LANGUAGES = tuple(first + second for first in LETTERS for second in LETTERS)
NUM_PAIRS = 20_000
MICRO_BATCH_TOKENS = 4_000
LOG_EVERY, RECORDS = 2, 3  # steps; records at least, of which the first, of the warm-up, does not count
LIMIT_S = 150.0  # of a point


@dataclass(frozen=True)
class Case:
    """A point: the preset of the model, tokens of a step, ranks, pieces, corpora of NUM_PAIRS, and languages."""

    model: str = "tiny"
    tokens: int = 2_000
    ranks: int = 1
    vocabulary: int = 8_000
    corpus: int = 1
    languages: int = 2

    def config(self) -> DeltaLMConfig:
        """The model's."""
        return DeltaLMConfig.preset(self.model, vocabulary_size=_vocabulary(self).size)

    def recipe(self) -> list[str]:
        """What differs from `recipes/cldr_en_de.yaml`."""
        data = _data(self)
        micro = min(self.tokens, MICRO_BATCH_TOKENS)
        return [
            f"vocabulary={data}/vocabulary",
            f"data.train=[{{path: {data}/shards, directions: both}}]",
            f"model={{preset: {self.model}, dropout: 0.1}}",
            f"batch={{tokens_per_step: {self.tokens}, micro_batch_tokens: {micro}}}",
            "validation=null",
            f"training={{max_steps: 1000000, save_every: 1000000, log_every: {LOG_EVERY}}}",
            zero1(),
        ]


AXES: dict[str, tuple[Case, ...]] = {
    "model": tuple(Case(model=name, tokens=500) for name in ("tiny", "base", "large")),
    "tokens": tuple(Case(tokens=number) for number in (500, 2_000, 8_000, 32_000)),
    "ranks": tuple(Case(ranks=number) for number in (1, 2, 4)),
    "vocabulary": tuple(Case(vocabulary=number) for number in (8_000, 64_000, 250_000)),
    "corpus": tuple(Case(corpus=times) for times in (1, 10, 100)),
    "languages": tuple(Case(languages=number) for number in (2, 20, 100, 300)),
}
MEASURED = ("tokens/s", "peak GiB", "first step s")


def main() -> None:
    """Measure every point of the axis, draw the figure and show the table."""
    options = parser(__doc__)
    options.add_argument("--axis", required=True, choices=AXES)
    options.add_argument("--seconds", type=float, default=8.0, help="how long a point trains after its first step")
    arguments = options.parse_args()
    rows = []
    for case in AXES[arguments.axis]:
        rows.append(keep(arguments, "growth", _measure(case, arguments.axis, arguments.seconds)))
    x_name = "parameters" if arguments.axis == "model" else arguments.axis
    lines = {name: [(float(row[x_name]), float(row[name])) for row in rows] for name in MEASURED}
    slopes = {name: _slope(points) for name, points in lines.items()}
    title = f"Growth with the {arguments.axis}"
    note = "Slopes on logarithmic axes: " + ", ".join(f"{name} {slope:+.2f}" for name, slope in slopes.items()) + "."
    if arguments.record:
        log_log(FIGURES / f"growth_{arguments.axis}.svg", x_name, lines)
    report(arguments, title, f"python -m benchmarks.quality.growth --axis {arguments.axis}", rows, [note])


def _measure(case: Case, axis: str, seconds: float) -> dict[str, Any]:
    _build(case)
    out = WORK / "run"
    shutil.rmtree(out, ignore_errors=True)
    command = [sys.executable, *Ours().train(out, case.ranks, "cldr_en_de", case.recipe())]
    running = start(Ours(), out, command, environment(threads=1 if axis == "ranks" else None))
    try:
        rates = _await_rates(running, seconds)
    finally:
        running.stop(at_once=True)
    parameters = sum(math.prod(shape) for shape in parameter_shapes(case.config()).values())
    measured = (statistics.median(rates), running.peak_bytes / 2**30, running.first_step_s)
    return {axis: getattr(case, axis), "parameters": parameters, **dict(zip(MEASURED, measured, strict=True))}


def _await_rates(running: Running, seconds: float) -> list[float]:
    """Tokens of both sides a second in the records of so long after the first step, that of the warm-up aside."""
    while time.time() - running.started < LIMIT_S:
        running.look()
        if running.first_step_s and time.time() - running.started > running.first_step_s + seconds:
            records = [record for record in read_metrics(running.out) if record["kind"] == "train"]
            if len(records) >= RECORDS:
                return [record["tokens_per_second"] for record in records[1:]]
    raise SystemExit(f"{running.out}: not {RECORDS} records in {LIMIT_S:.0f} seconds: see {running.out}.log")


def _slope(points: list[tuple[float, float]]) -> float:
    x, y = np.log(np.array(points)).T
    return float(np.polyfit(x, y, 1)[0])


# --- the data ---


def _data(case: Case) -> Path:
    return WORK / f"data-{case.vocabulary}-{case.corpus}-{case.languages}"


def _vocabulary(case: Case) -> Vocabulary:
    pieces = [f"p{number}" for number in range(case.vocabulary)]
    return Vocabulary(make_blocks(pieces, languages=LANGUAGES[: case.languages]))


def _build(case: Case) -> None:
    """A corpus of the first language with each other one; more shards of it are hard links to its first."""
    if _data(case).exists():
        return
    vocabulary, generator, corpora = _vocabulary(case), np.random.default_rng(0), []
    first, *others = LANGUAGES[: case.languages]
    with atomic_directory(_data(case)) as directory:
        vocabulary.save(directory / "vocabulary")
        shards = directory / "shards"
        shards.mkdir()
        manifest = Manifest(vocabulary.hash, vocabulary.num_tokens)
        for other in others:
            batch = _pairs(case, NUM_PAIRS // len(others), generator)
            corpus = CorpusManifest(f"{first}-{other}", "parallel", (first, other))
            (shard,) = write_corpus(shards, manifest, corpus, [batch]).shards
            names = [f"{corpus.name}.{number:05d}.arrow" for number in range(case.corpus)]
            for name in names[1:]:
                (shards / name).hardlink_to(shards / shard.file)
            corpora.append(replace(corpus, shards=tuple(replace(shard, file=name) for name in names)))
        replace(manifest, corpora=tuple(corpora)).write(shards)


def _pairs(case: Case, count: int, generator: np.random.Generator) -> pa.RecordBatch:
    """Sides of 2 to 100 tokens, 25 on average."""
    sides = {}
    kind = token_type(_vocabulary(case).num_tokens)
    for side in ("source", "target"):
        lengths = np.clip(generator.gamma(2.0, 12.0, count), 2, 100).astype(np.int64)
        sides[side] = generator.integers(4, 4 + case.vocabulary, lengths.sum()).astype(kind), lengths
    return ragged_batch(sides, kind)


if __name__ == "__main__":
    main()
