"""The checkpoints of a run directory: which there are, where each one stands, which is best. Needs no DeepSpeed."""

from dataclasses import dataclass, field
from pathlib import Path

from deltalm_ds.errors import DataError, InputError
from deltalm_ds.files import read_json


@dataclass
class TrainingState:
    """Where a run is; everything else is a pure function of it."""

    step: int = 0  # global batches consumed
    updates: int = 0  # updates applied: steps less those skipped for an inf or nan gradient
    loss_scaler: dict[str, float] | None = None  # fp16 only
    validation: dict[str, float] = field(default_factory=dict)


def checkpoint_directories(run: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    return sorted((run / "checkpoints").glob("step_*"))


def read_state(checkpoint: Path) -> TrainingState:
    """The state.json of a checkpoint; DataError if it is damaged."""
    try:
        return TrainingState(**read_json(checkpoint / "state.json"))
    except (InputError, TypeError) as error:
        raise damaged(checkpoint, error) from None


def damaged(checkpoint: Path, error: Exception) -> DataError:
    """The error to raise for a checkpoint that cannot be read."""
    return DataError(f"The checkpoint {checkpoint} is damaged ({error}): remove it to go on from another.")


def best_checkpoint(run: Path) -> Path | None:
    """The checkpoint with the lowest validation loss, if any was validated."""
    validated = [
        (state.validation["loss"], directory)
        for directory in checkpoint_directories(run)
        if "loss" in (state := read_state(directory)).validation
    ]
    return min(validated)[1] if validated else None


def model_directory(path: Path) -> Path:
    """The model directory that a path means: itself, or the newest checkpoint of a run directory.

    Raises:
        InputError: a run directory without checkpoints.
    """
    if not (path / "checkpoints").is_dir():
        return path
    checkpoints = checkpoint_directories(path)
    if not checkpoints:
        raise InputError(f"The run {path} has no checkpoint yet.")
    return checkpoints[-1]
