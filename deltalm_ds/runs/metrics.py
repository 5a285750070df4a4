"""What a run says while it works: metrics.jsonl, TensorBoard events, and progress on stderr. Rank 0 only."""

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from deltalm_ds.files import atomic_file


class MetricsLog:
    """Appends one JSON object a line to RUN/metrics.jsonl and the numbers in it to TensorBoard.

    On a resume, lines after the checkpoint's step are cut off, so the log reads as if nothing had happened.
    """

    def __init__(self, run: Path, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow to import: only where it is used

        self._path = run / "metrics.jsonl"
        kept = [record for record in read_metrics(run) if record["step"] <= step]
        with atomic_file(self._path) as file:
            file.writelines(json.dumps(record) + "\n" for record in kept)
        self._file = open(self._path, "a", encoding="utf-8")  # noqa: SIM115 (open until close)
        self._board = SummaryWriter(str(run / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, kind: str, values: dict[str, Any]) -> None:
        """Write one record; nested dicts become `group/name` in TensorBoard."""
        self._file.write(json.dumps({"step": step, "kind": kind, **values}) + "\n")
        self._file.flush()
        for name, value in _flat(kind, values):
            self._board.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush both."""
        self._file.close()
        self._board.close()


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """The records of a run, oldest first; a last line cut short by a crash is left out."""
    path = run / "metrics.jsonl"
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines[:-1] if line]


def _flat(prefix: str, values: dict[str, Any]) -> Iterable[tuple[str, float]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flat(f"{prefix}/{name}", value)
        elif isinstance(value, int | float) and math.isfinite(value):
            yield f"{prefix}/{name}", float(value)
