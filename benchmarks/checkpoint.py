"""What a save costs training: a step, the copy that it waits for, and steps beside the thread that writes.

DeltaLM-base in float32 under DeepSpeed, one rank, as `deltalm train` does it.

    python -m benchmarks.checkpoint --directory /disk    also: --steps
"""

import tempfile
import time
from pathlib import Path
from statistics import mean, median
from typing import Any

import torch

from benchmarks.device import DEVICE
from benchmarks.recording import parser, report
from benchmarks.train_step_kinds import SIZE, SMOOTHING, ds_engine_of, make_batch
from deltalm_ds.recipe.loading import load_recipe, recipe_path
from deltalm_ds.runs.checkpoints import TrainingState, checkpoint_directories
from deltalm_ds.training.checkpoint_writer import CheckpointWriter
from deltalm_ds.training.sections import Sections
from deltalm_ds.training.spikes import not_finite_or_one
from deltalm_ds.training.step import LossSums, train_step
from deltalm_ds.vocabulary import Vocabulary

EVERY = 500  # steps between saves, over which their cost is spread
NOTE = (
    "Copy: what the step at a save waits for. Writing: seconds until the checkpoint is published, and steps meanwhile. "
    "Cost: what a save takes from training, as a part of 500 steps. The second save reuses the memory of the first, "
    "which is taken before training."
)


def main() -> None:
    """Measure two saves and show the table."""
    options = parser(__doc__)
    options.add_argument("--directory", type=Path, help="where checkpoints are written; default: a temporary one")
    options.add_argument("--steps", type=int, default=5, help="timed steps without a save")
    arguments = options.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.directory) as run:
        rows = _measure(Path(run), arguments.steps)
    title = f"A save beside training: DeltaLM-base, {SIZE.tokens(1)} tokens a step, float32, one rank"
    report(arguments, title, "python -m benchmarks.checkpoint", rows, [NOTE])


def _measure(run: Path, num_steps: int) -> list[dict[str, Any]]:
    ds_engine, _ = ds_engine_of(torch.float32)
    batch, sums, state = make_batch(1), LossSums(1, DEVICE), TrainingState()

    def step_seconds() -> float:
        start = time.perf_counter()
        size, key = len(batch.labels), (0, state.step)
        done = train_step(ds_engine, [batch], size, 1e-4, SMOOTHING, key, _no_stop, Sections(), not_finite_or_one)
        sums.add(*done.losses[0])
        state.step, state.updates = state.step + 1, state.updates + 1
        return time.perf_counter() - start

    start = time.perf_counter()
    saves = CheckpointWriter(ds_engine, _vocabulary(run), load_recipe(recipe_path("cldr_en_de")), run, state)
    taking_memory = time.perf_counter() - start
    step_seconds()
    plain = [step_seconds() for _ in range(num_steps)]
    rows = []
    for number in ("first", "second"):
        start = time.perf_counter()
        saves.save(state)
        copied = time.perf_counter()
        beside = [step_seconds()]
        while len(checkpoint_directories(run)) == len(rows):
            beside.append(step_seconds())
        written = time.perf_counter() - copied
        saves.wait(state.step)
        copy, step = copied - start, median(plain)
        cost = copy + sum(beside) - len(beside) * step
        rows.append(
            {
                "save": number,
                "memory taken before, s": taking_memory,
                "step s": step,
                "copy s": copy,
                "copy / step": copy / step,
                "writing s": written,
                "steps beside it": len(beside),
                "step beside it s": mean(beside),
                "cost s": cost,
                f"cost at save_every {EVERY}, %": 100 * cost / (EVERY * step),
            }
        )
    return rows


def _no_stop() -> None:
    pass


def _vocabulary(directory: Path) -> Vocabulary:
    (directory / "dict.txt").write_text("".join(f"piece{number} 1\n" for number in range(10)))
    return Vocabulary.from_dict(directory / "dict.txt", num_sentinels=1, languages=("de", "en"))


if __name__ == "__main__":
    main()
