"""Which checkpoints of a run stay, and how one goes: out of sight first, so that nothing half-removed looks whole."""

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from deltalm_ds.errors import InputError
from deltalm_ds.recipe.training_section import BestCheckpoints, TrainingSection
from deltalm_ds.runs.checkpoints import TrainingState, ranked_checkpoints, readable_states, step_of
from deltalm_ds.training.patience import is_highest_best


def keep_checkpoints(run: Path, training: TrainingSection, newest: Path) -> None:
    """Remove the checkpoints of a run that its recipe does not keep.

    What cannot be removed is one warning: it is no reason to stop training.

    Args:
        run: the run directory.
        training: how many last and best ones stay, and of which steps all.
        newest: the checkpoint just published. Those of later steps were damaged, or the run had not gone on from here:
            they are neither counted nor removed, and replaced when the run comes to their steps. Nor is one between
            two saves whose state is damaged: the run will not come to its step again.
    """
    try:
        states = {path: state for path, state in readable_states(run).items() if step_of(path) <= step_of(newest)}
        existing = list(states)
        kept = {*existing[-training.keep_last :], *_best(states, training.keep_best)}
        for checkpoint in existing:
            is_permanent = training.keep_every is not None and step_of(checkpoint) % training.keep_every == 0
            if checkpoint not in kept and not is_permanent:
                shutil.rmtree(_hide(checkpoint))
    except (OSError, InputError) as error:
        print(f"Old checkpoints of {run} stay: {str(error).removesuffix('.')}.", file=sys.stderr)


def _best(states: dict[Path, TrainingState], keep: BestCheckpoints) -> list[Path]:
    ranked = ranked_checkpoints(states, keep.metric, higher_is_better=is_highest_best(keep.metric))
    return ranked[: keep.count]


def _hide(checkpoint: Path) -> Path:
    hidden = checkpoint.with_name(f".{checkpoint.name}.old")
    if hidden.exists():  # an earlier removal that failed half-way
        shutil.rmtree(hidden)
    return checkpoint.rename(hidden)


@contextmanager
def replaced(path: Path) -> Iterator[None]:
    """Put what is at `path`, if anything, out of the way of what the block publishes there; back if that fails."""
    hidden = _hide(path) if path.exists() else None
    try:
        yield
    except BaseException:
        if hidden is not None and not path.exists():
            hidden.rename(path)
        raise
    if hidden is not None:
        shutil.rmtree(hidden, ignore_errors=True)


def remove_leftovers(run: Path) -> None:
    """Remove what saves and removals that were interrupted left in a run directory; nobody else writes there."""
    for leftover in (run / "checkpoints").glob(".step_*"):
        shutil.rmtree(leftover, ignore_errors=True)
