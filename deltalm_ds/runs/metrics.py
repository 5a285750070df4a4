"""What a run says while it works: metrics.jsonl, TensorBoard events and other monitors. Rank 0 only."""

import json
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from deltalm_ds.files import Appended, atomic_file, finite
from deltalm_ds.runs.attempts import end_if_taken_over
from deltalm_ds.runs.events import record_event, time_text

# What a record has of the machine and the moment; all else comes again when a run is repeated.
OF_THE_MOMENT = frozenset(
    {"time", "seconds", "seconds_per_step", "tokens_per_second", "target_tokens_per_second", "teraflops_per_rank"}
    | {"mfu", "peak_memory_bytes"}
)
Numbers = Sequence[tuple[str, float]]  # `train/nll_of/seq2seq:en-de:en-de` and the like, with their values


class MetricsLog:
    """Appends one JSON object a line to RUN/metrics.jsonl and the numbers in it to TensorBoard.

    JSON has no NaN and no infinity: such a number is null. On a resume, lines after the checkpoint's step are cut off,
    so the log reads as if nothing had happened; an event tells of it. A log that cannot be written is a warning:
    training does not need it.

    Args:
        run: the run directory.
        step: that the run goes on from.
        monitors: are given the numbers of each record too, with their step.
    """

    def __init__(self, run: Path, step: int, monitors: Sequence[Callable[[int, Numbers], None]] = ()) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import: only where it is used

        end_if_taken_over(run)
        self._run, self._path, self._monitors = run, run / "metrics.jsonl", monitors
        records = read_metrics(run)
        kept = [record for record in records if record["step"] <= step]
        _tell_lost(run, step, [record for record in records if record["step"] > step])
        with atomic_file(self._path) as file:
            file.writelines(json.dumps(record) + "\n" for record in kept)
        self._file = Appended(self._path)
        self._board: Any = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, kind: str, values: dict[str, Any]) -> None:
        """Write one record; nested dicts become `group/name` in TensorBoard."""
        end_if_taken_over(self._run)
        record = {"step": step, "kind": kind, "time": time_text(), **finite(values)}
        numbers = list(_flat(kind, values))
        try:
            self._file.write(json.dumps(record, allow_nan=False) + "\n")
            self._show(step, numbers)
        except OSError as error:
            print(
                f"{self._path}: the records of step {step} are not written yet: {error.strerror or error}.",
                file=sys.stderr,
            )
        for monitor in self._monitors:
            monitor(step, numbers)

    def _show(self, step: int, numbers: Numbers) -> None:
        """Give all numbers to TensorBoard at once: one by one they would take several times as long."""
        from tensorboard.compat.proto.summary_pb2 import Summary

        summary = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in numbers])
        self._board.file_writer.add_summary(summary, step)

    def close(self) -> None:
        """Flush both."""
        with suppress(OSError):  # whatever could not be written was told
            self._file.close()
            self._board.close()


def _tell_lost(run: Path, step: int, lost: Sequence[dict[str, Any]]) -> None:
    """An event about records of steps that are made once more: how far they went, until when, and what they took."""
    if lost:
        seconds = sum(sum(record.get("seconds", {}).values()) for record in lost)
        until = lost[-1].get("time")
        record_event(run, "steps lost", step=step, last_step=lost[-1]["step"], until=until, seconds=round(seconds, 3))


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The records of a run, oldest first; a line that a crash cut short is left out, and said if others follow it."""
    path = run / "metrics.jsonl"
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    records, damaged = [], []
    for number, line in enumerate(lines, start=1):
        if not line:
            continue
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if _is_record(record):
            records.append(record)
        else:
            damaged.append(number)
    if damaged and damaged[-1] < len(lines):
        print(f"{path}: {len(damaged)} line(s) cannot be read and are left out: {damaged[0]} …", file=sys.stderr)
    return records


def _is_record(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("step"), int) and isinstance(value.get("kind"), str)


def _flat(prefix: str, values: dict[str, Any]) -> Iterable[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(f"{prefix}/{name}", value)
        elif isinstance(value, int | float) and math.isfinite(value):
            yield f"{prefix}/{name}", float(value)
