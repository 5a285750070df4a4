"""The checkpoints of a run directory: which there are, where each one stands, which is best. Needs no DeepSpeed."""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError

from deltalm_ds.errors import DataError, InputError
from deltalm_ds.files import read_json, sha256_of

LOSSES: tuple[str, ...] = ("loss", "nll")  # what every validation measures; the lowest is the best
STATE = "state.json"
_NAME = re.compile(r"step_(\d{8}|[1-9]\d{8,})")  # as `checkpoint_name` writes it


@dataclass(frozen=True)
class CheckpointFile:
    """One file of a checkpoint as it was written."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class BestValidation:
    """The best validation of a run so far by a metric, at which step, and how many came after it."""

    metric: str
    value: float
    step: int
    later: int = 0


@dataclass
class TrainingState:
    """Where a run is; everything else is a pure function of it.

    Attributes:
        step: global batches consumed.
        updates: updates applied: steps less those without sequences and those skipped for an inf or nan gradient.
        loss_scaler: of fp16.
        losses: of the last steps, by which spikes are told; None where one was not finite.
        left_out: steps that make no update, as the run was rolled back for them.
        validation: what was measured at this step, once that is done.
        best: of the validations so far, this step's included once that is done.
        inputs: what the run was trained on, to tell it from other data of the same name (`training/inputs.py`).
        files: the checkpoint's other files, by name.
    """

    __pydantic_config__ = ConfigDict(extra="forbid")

    step: int = 0
    updates: int = 0
    loss_scaler: dict[str, float] | None = None
    losses: list[float | None] = field(default_factory=list)
    left_out: list[int] = field(default_factory=list)
    validation: dict[str, float] = field(default_factory=dict)
    best: BestValidation | None = None
    inputs: dict[str, Any] = field(default_factory=dict)
    files: dict[str, CheckpointFile] = field(default_factory=dict)


def checkpoint_name(step: int) -> str:
    """The name of a step's checkpoint in `RUN/checkpoints`; nothing of another form is taken for one."""
    return f"step_{step:08d}"


def checkpoint_directories(run: Path) -> list[Path]:
    """The checkpoints of a run, oldest first: directories named for their step that say where they stand."""
    directory = run / "checkpoints"
    if not directory.is_dir():
        return []
    named = [path for path in directory.iterdir() if _NAME.fullmatch(path.name) and not path.is_symlink()]
    return sorted((path for path in named if (path / STATE).is_file()), key=step_of)


def step_of(checkpoint: Path) -> int:
    """The step in the name of a checkpoint of a run."""
    return int(checkpoint.name.removeprefix("step_"))


def file_faults(checkpoint: Path, files: dict[str, CheckpointFile], checksums: Sequence[str] = ()) -> list[str]:
    """What is wrong with the files of a checkpoint: missing, of another size or, for those named, another content."""
    faults = []
    for name, expected in files.items():
        path = checkpoint / name
        if not path.is_file():
            faults.append(f"{name} is missing")
        elif path.stat().st_size != expected.bytes:
            faults.append(f"{name} has {path.stat().st_size:,} bytes where {expected.bytes:,} were written")
        elif name in checksums and sha256_of(path) != expected.sha256:
            faults.append(f"{name} was altered since it was written: its checksum is another one")
    return faults


def read_state(checkpoint: Path) -> TrainingState:
    """The state.json of a checkpoint; DataError if it is damaged, or of another step than the directory's name says."""
    try:
        return _checked_state(checkpoint)
    except ValueError as error:
        raise damaged(checkpoint, error) from None


def _checked_state(checkpoint: Path) -> TrainingState:
    """The state.json of a checkpoint; ValueError saying what is wrong with it."""
    try:
        state = TypeAdapter(TrainingState).validate_python(read_json(checkpoint / STATE))
    except InputError as error:
        raise ValueError(str(error)) from None
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"])) or "all of it"
        raise ValueError(f"{where} in {STATE}: {fault['msg']}") from None
    if _NAME.fullmatch(checkpoint.name) and checkpoint.name != checkpoint_name(state.step):
        raise ValueError(f"it is of step {state.step}: a copy under another name")
    return state


def find_fault(checkpoint: Path, choose: Callable[[list[str]], Sequence[str]]) -> str | None:
    """What keeps a run from going on from a checkpoint; None if its state can be read and its files are as written.

    Args:
        checkpoint: a directory that `checkpoint_directories` gives.
        choose: of the sorted names of its files those whose checksums are compared, which reads them.
    """
    try:
        files = _checked_state(checkpoint).files
        return next(iter(file_faults(checkpoint, files, choose(sorted(files)))), None)
    except (ValueError, OSError) as error:
        return str(error)


def newest_whole_checkpoint(run: Path, fault_of: Callable[[Path], str | None]) -> Path | None:
    """The newest checkpoint without a fault; None for a run that has no checkpoints.

    Raises:
        DataError: there are checkpoints, and none is whole; the newest one's fault.
    """
    newest: DataError | None = None
    for checkpoint in reversed(checkpoint_directories(run)):
        fault = fault_of(checkpoint)
        if fault is None:
            return checkpoint
        newest = newest or damaged(checkpoint, fault)
    if newest is not None:
        raise newest
    return None


def damaged(checkpoint: Path, error: Exception | str) -> DataError:
    """The error to raise for a checkpoint that cannot be read."""
    return DataError(f"The checkpoint {checkpoint} is damaged ({error}): remove it to go on from another.")


def readable_states(run: Path) -> dict[Path, TrainingState]:
    """The checkpoints of a run that say where they stand, oldest first; one whose state.json is damaged is left out."""
    states = {}
    for checkpoint in checkpoint_directories(run):
        with suppress(DataError):
            states[checkpoint] = read_state(checkpoint)
    return states


def ranked_checkpoints(states: Mapping[Path, TrainingState], metric: str, *, higher_is_better: bool) -> list[Path]:
    """Those that have a validation metric (one of `LOSSES`, or a metric of translations), best first."""
    sign = -1 if higher_is_better else 1
    validated = [
        (sign * value, directory)
        for directory, state in states.items()
        if math.isfinite(value := state.validation.get(metric, math.nan))
    ]
    return [directory for _, directory in sorted(validated)]


def best_checkpoint(run: Path) -> Path | None:
    """The checkpoint with the lowest validation loss, if any was validated."""
    return next(iter(ranked_checkpoints(readable_states(run), "loss", higher_is_better=False)), None)


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
    states = readable_states(run)
    ranked = ranked_checkpoints(states, metric, higher_is_better=higher_is_better)
    if len(ranked) >= count:
        return ranked[:count]
    known = {name for state in states.values() for name in state.validation}
    raise InputError(
        f"{run} has {len(ranked)} checkpoints with a validation {metric}, not {count}: take fewer or another --metric; "
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
        raise InputError(f"The run {path} has no checkpoint yet: train it further, or name a model.")
    return checkpoints[-1]
