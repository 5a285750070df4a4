"""What happened to a run that its metrics do not tell: changes that were taken, failures that it lived through."""

import json
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from deltalm_ds.runs.attempts import end_if_taken_over


def time_text() -> str:
    """Now, in UTC, as events and records have it."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def record_event(run: Path, kind: str, **values: Any) -> None:
    """Append one line to RUN/events.jsonl: the time in UTC, the kind, and what it was."""
    end_if_taken_over(run)
    line = json.dumps({"time": time_text(), "kind": kind, **values}, ensure_ascii=False) + "\n"
    with open(run / "events.jsonl", "a", encoding="utf-8") as file:
        file.write(line)


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
