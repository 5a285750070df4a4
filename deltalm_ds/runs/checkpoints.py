"""The checkpoints of a run directory: which there are, where each one stands, which is best. Needs no DeepSpeed."""

import math
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import ConfigDict, TypeAdapter, ValidationError

from deltalm_ds.errors import DataError, InputError
from deltalm_ds.files import read_json

LOSSES = ("loss", "nll")  # what every validation measures; the lowest is the best


@dataclass
class TrainingState:
    """Where a run is; everything else is a pure function of it."""

    __pydantic_config__ = ConfigDict(extra="forbid")

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
        return TypeAdapter(TrainingState).validate_python(read_json(checkpoint / "state.json"))
    except InputError as error:
        raise damaged(checkpoint, error) from None
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"])) or "all of it"
        raise damaged(checkpoint, f"{where} in state.json: {fault['msg']}") from None


def damaged(checkpoint: Path, error: Exception | str) -> DataError:
    """The error to raise for a checkpoint that cannot be read."""
    return DataError(f"The checkpoint {checkpoint} is damaged ({error}): remove it to go on from another.")


def ranked_checkpoints(run: Path, metric: str, *, higher_is_better: bool) -> list[Path]:
    """The checkpoints that have a validation metric (one of `LOSSES`, or a metric of translations), best first."""
    sign = -1 if higher_is_better else 1
    validated = [
        (sign * value, directory)
        for directory in checkpoint_directories(run)
        if math.isfinite(value := read_state(directory).validation.get(metric, math.nan))
    ]
    return [directory for _, directory in sorted(validated)]


def best_checkpoint(run: Path) -> Path | None:
    """The checkpoint with the lowest validation loss, if any was validated."""
    return next(iter(ranked_checkpoints(run, "loss", higher_is_better=False)), None)


def newest_checkpoints(run: Path, count: int) -> list[Path]:
    """The `count` newest checkpoints of a run, oldest first; InputError if it has fewer."""
    checkpoints = checkpoint_directories(run)
    if not checkpoints:
        raise InputError(f"{run} has no checkpoints: is it the directory of a run?")
    if len(checkpoints) < count:
        raise InputError(f"{run} has {len(checkpoints)} checkpoints, not {count}: give --last {len(checkpoints)}.")
    return checkpoints[-count:]


def best_checkpoints(run: Path, count: int, metric: str, *, higher_is_better: bool) -> list[Path]:
    """The `count` best checkpoints of a run by a validation metric, best first; InputError if fewer have it.

    Args:
        metric: one of `LOSSES`, or a metric of translations.
        higher_is_better: what the table of metrics says of it.
    """
    ranked = ranked_checkpoints(run, metric, higher_is_better=higher_is_better)
    if len(ranked) >= count:
        return ranked[:count]
    known = {name for directory in checkpoint_directories(run) for name in read_state(directory).validation}
    raise InputError(
        f"{run} has {len(ranked)} checkpoints with a validation {metric}, not {count}; "
        f"metrics of its checkpoints: {', '.join(sorted(known)) or 'none'}."
    )


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
