"""What the time of a run went to, over all its starts: steps that count, and all that is none of them."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from deltalm_ds.runs.events import read_events
from deltalm_ds.runs.metrics import read_metrics

OUTSIDE_STEPS = ("start", "checkpoint", "validation")  # sections of a record's seconds
Entry = dict[str, Any]


def time_spent(run: Path) -> dict[str, float]:
    """Seconds of a run from its first start to its last sign of life, by what they went to; empty without a log.

    `steps`: that are in the log. `starts`: until the first step. `checkpoints`, `validation`. `recomputed`: steps that
    were made once more because no checkpoint had them. `down`: between the end of a start, or the last record of one
    that was killed, and the next start. `other`: what no record tells, such as starts that failed and steps that a kill
    took before their record.
    """
    records, events = read_metrics(run), read_events(run)
    timed = [record for record in records if "time" in record and "seconds" in record]
    if not timed:
        return {}
    starts = [event for event in events if event["kind"] in ("start", "attempt")]  # the latter under a supervisor
    first = _seconds_of(starts[0]) if starts else _seconds_of(timed[0]) - sum(timed[0]["seconds"].values())
    last = max(_seconds_of(entry) for entry in [timed[-1], *events])
    section = {name: sum(record["seconds"].get(name, 0.0) for record in timed) for name in OUTSIDE_STEPS}
    spent = {
        "steps": sum(sum(record["seconds"].values()) for record in timed) - sum(section.values()),
        "starts": _before_steps(starts, timed) if starts else section["start"],
        "checkpoints": section["checkpoint"],
        "validation": section["validation"],
        "recomputed": sum(event["seconds"] for event in events if event["kind"] == "steps lost"),
        "down": _down(starts, timed, events),
    }
    return {**spent, "other": max(last - first - sum(spent.values()), 0.0)}


def _before_steps(starts: Sequence[Entry], timed: Sequence[Entry]) -> float:
    """From each start that has records to its first step: launching and importing too, which its clock has not seen."""
    total = 0.0
    for start, following in zip(starts, [*starts[1:], None], strict=True):
        end = _seconds_of(following) if following else float("inf")
        record = next((r for r in timed if _seconds_of(start) <= _seconds_of(r) < end), None)
        if record is not None:
            in_steps = sum(seconds for name, seconds in record["seconds"].items() if name != "start")
            total += max(_seconds_of(record) - in_steps - _seconds_of(start), 0.0)
    return total


def _down(starts: Sequence[Entry], timed: Sequence[Entry], events: Sequence[Entry]) -> float:
    """From the last sign of life before each start but the first to that start."""
    lost = [{"time": event["until"]} for event in events if event["kind"] == "steps lost" and event.get("until")]
    signs = sorted(_seconds_of(entry) for entry in [*timed, *events, *lost] if entry.get("kind") != "changed")
    total = 0.0
    for start in starts[1:]:
        began = _seconds_of(start)
        total += began - max((sign for sign in signs if sign < began), default=began)
    return total


def _seconds_of(entry: Entry) -> float:
    return datetime.fromisoformat(entry["time"]).timestamp()
