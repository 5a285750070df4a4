"""What a run says while it works: metrics.jsonl, TensorBoard events, and progress on stderr. Rank 0 only."""

import json
import math
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

from deltalm_ds.files import Appended, atomic_file, finite


class MetricsLog:
    """Appends one JSON object a line to RUN/metrics.jsonl and the numbers in it to TensorBoard.

    JSON has no NaN and no infinity: such a number is null. On a resume, lines after the checkpoint's step are cut off,
    so the log reads as if nothing had happened. A log that cannot be written is a warning: training does not need it.
    """

    def __init__(self, run: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import: only where it is used

        self._path = run / "metrics.jsonl"
        kept = [record for record in read_metrics(run) if record["step"] <= step]
        with atomic_file(self._path) as file:
            file.writelines(json.dumps(record) + "\n" for record in kept)
        self._file = Appended(self._path)
        self._board = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, kind: str, values: dict[str, Any]) -> None:
        """Write one record; nested dicts become `group/name` in TensorBoard."""
        record = {"step": step, "kind": kind, **finite(values)}
        try:
            self._file.write(json.dumps(record, allow_nan=False) + "\n")
            for name, value in _flat(kind, values):
                self._board.add_scalar(name, value, step)
        except OSError as error:
            print(
                f"{self._path}: the records of step {step} are not written yet: {error.strerror or error}.",
                file=sys.stderr,
            )

    def close(self) -> None:
        """Flush both."""
        with suppress(OSError):  # whatever could not be written was told
            self._file.close()
            self._board.close()


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
