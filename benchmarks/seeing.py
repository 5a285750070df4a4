"""What a step of a run takes beside its arithmetic: records, monitors, spikes, watchdog: `make bench-seeing`.

DeltaLM-base in float32 on one rank, 100 languages, a record at every step. After each step of a real trainer the same
micro-batches go through `train_step` once more, bare; so both are timed in turn, in one process.

    python -m benchmarks.seeing --record          also: --steps, --directory
"""

import tempfile
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from torch import distributed

from benchmarks.feeding_loaders import LANGUAGES, PIECES, vocabulary
from benchmarks.recording import parser, report
from benchmarks.train_step_kinds import join_alone
from deltalm_ds.data.manifest import CorpusManifest, Manifest
from deltalm_ds.data.shards import ragged_batch, write_corpus
from deltalm_ds.data.stream import StepBatches
from deltalm_ds.recipe.schema import Recipe
from deltalm_ds.runs.metrics import read_metrics
from deltalm_ds.training.prepare import prepare_run
from deltalm_ds.training.sections import Sections
from deltalm_ds.training.spikes import not_finite_or_one
from deltalm_ds.training.startup import Startup
from deltalm_ds.training.step import train_step
from deltalm_ds.training.trainer import Trainer
from deltalm_ds.training.watchdog import watched

ROWS, TOKENS_PER_STEP = 200, 600  # of a language; of source and target
FIRST_STEPS = 3  # not counted: memory is taken
NOTE = (
    "Step: from one to the next, with its record in metrics.jsonl, TensorBoard and CSV, the search for spikes and the "
    "watchdog beside it. Bare: `train_step` on the same micro-batches. Medians; cost: of the differences."
)


def main() -> None:
    """Train for some steps and show the table."""
    options = parser(__doc__)
    options.add_argument("--steps", type=int, default=20, help="timed steps")
    options.add_argument("--directory", type=Path, help="where the run goes; default: a temporary one")
    arguments = options.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
        rows = [_measure(Path(directory), arguments.steps + FIRST_STEPS)]
    size = f"DeltaLM-base, vocabulary of {PIECES:,}, {TOKENS_PER_STEP} tokens a step, float32, one rank"
    title = f"A step of a run beside its arithmetic: {size}"
    report(arguments, title, "python -m benchmarks.seeing", rows, [NOTE])


class _EnoughSteps(Exception):
    """There is no need to write a checkpoint."""


class _Timed(Trainer):
    """A trainer that makes every step once more, bare, and keeps the seconds of both."""

    def __init__(self, run: Path, sections: Sections, num_steps: int) -> None:
        super().__init__(run, sections, Startup())
        self.whole: list[float] = []
        self.bare: list[float] = []
        self._num_steps, self._since = num_steps, time.perf_counter()

    def _update(self, batches: StepBatches) -> None:
        """What follows the bare step, with the record of this one, is of the next whole one."""
        super()._update(batches)
        began = time.perf_counter()
        settings = 1e-5, 0.1, (0, self.state.step), _no_stop, Sections(), not_finite_or_one
        train_step(self.ds_engine, batches.micro_batches, batches.num_target_tokens, *settings)
        self.whole.append(began - self._since)
        self._since = time.perf_counter()
        self.bare.append(self._since - began)
        if len(self.bare) == self._num_steps:
            raise _EnoughSteps


def _measure(directory: Path, num_steps: int) -> dict[str, Any]:
    run = directory / "run"
    recipe = _recipe(directory)
    prepare_run(recipe, run)
    join_alone()
    with watched(run, recipe.training.limits, 0) as sections, suppress(_EnoughSteps):
        trainer = _Timed(run, sections, num_steps)
        trainer.train()
    distributed.destroy_process_group()
    whole, bare = (values[FIRST_STEPS:] for values in (trainer.whole, trainer.bare))
    record = read_metrics(run)[-1]
    return {
        "steps": len(whole),
        "step s": median(whole),
        "bare s": median(bare),
        "cost ms": 1e3 * median(one - other for one, other in zip(whole, bare, strict=True)),
        "cost %": 100 * median(one / other - 1 for one, other in zip(whole, bare, strict=True)),
        "numbers in a record": _num_numbers(record),
    }


def _num_numbers(value: Any) -> int:
    if isinstance(value, dict):
        return sum(map(_num_numbers, value.values()))
    return 1


def _no_stop() -> None:
    pass


def _recipe(directory: Path) -> Recipe:
    """Write vocabulary and shards."""
    vocabulary().save(directory / "vocabulary")
    (directory / "train").mkdir()
    _write_shards(directory / "train", np.random.default_rng(0))
    return Recipe.model_validate(
        {
            "name": "seeing",
            "vocabulary": directory / "vocabulary",
            "model": {"preset": "base"},
            "data": {
                "train": [{"path": directory / "train", "objective": "span_corruption"}],
                "max_source_tokens": 250,
                "max_target_tokens": 250,
            },
            "batch": {"tokens_per_step": TOKENS_PER_STEP, "micro_batch_tokens": TOKENS_PER_STEP},
            "schedule": {"peak_lr": 1e-5, "warmup_steps": 10},
            "training": {
                "max_steps": 1000,
                "save_every": 1000,
                "log_every": 1,
                "monitors": ["csv"],
                "spikes": {"policy": "skip"},
            },
        }
    )


def _write_shards(directory: Path, generator: np.random.Generator) -> None:
    manifest = Manifest(vocabulary().hash, vocabulary().num_tokens)
    corpora = [_corpus(directory, manifest, language, generator) for language in LANGUAGES]
    replace(manifest, corpora=tuple(corpora)).write(directory)


def _corpus(directory: Path, manifest: Manifest, language: str, generator: np.random.Generator) -> CorpusManifest:
    lengths = np.clip(generator.gamma(2.0, 14.0, ROWS), 2, 120).astype(np.int64)
    tokens = generator.integers(4, 4 + PIECES, lengths.sum()).astype(np.uint16)
    batch = ragged_batch({"source": (tokens, lengths)}, np.dtype(np.uint16))
    return write_corpus(directory, manifest, CorpusManifest(language, "mono", (language,)), [batch])


if __name__ == "__main__":
    main()
