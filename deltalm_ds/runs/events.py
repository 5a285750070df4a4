"""What happened to a run that its metrics do not tell: changes that were taken, failures that it lived through."""

import json
import os
from datetime import datetime, timezone
from pathlib import Path
from typing import IO, Any

from deltalm_ds.runs.attempts import end_if_taken_over


def time_text() -> str:
    """Now, in UTC, as events and records have it."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def record_event(run: Path, kind: str, **values: Any) -> None:
    """Append one line to RUN/events.jsonl: the time in UTC, the kind, and what it was.

    Raises:
        OSError: the disk does not take it; part of the line may be there, which the next one does not join.
    """
    end_if_taken_over(run)
    line = json.dumps({"time": time_text(), "kind": kind, **values}, ensure_ascii=False) + "\n"
    with open(run / "events.jsonl", "a+b") as file:
        file.write((b"\n" if _ends_within_a_line(file) else b"") + line.encode())


def _ends_within_a_line(file: IO[bytes]) -> bool:
    if not file.seek(0, os.SEEK_END):
        return False
    file.seek(-1, os.SEEK_END)
    return file.read(1) != b"\n"


def read_events(run: Path) -> list[dict[str, Any]]:
    """The events of a run, oldest first; a line cut short by a crash is left out."""
    path = run / "events.jsonl"
    if not path.exists():
        return []
    events = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):  # a value may hold other line ends
        try:
            events.append(json.loads(line))
        except ValueError:
            continue
    return events
