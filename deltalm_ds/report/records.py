"""Looking into the records of a run's metrics.jsonl: values by step, also those by component or direction."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

BEGINS = ("attempt", "start")  # events: ranks are about to begin, under a supervisor and without one
Record = dict[str, Any]


def points_of(records: Sequence[Record], key: str) -> list[tuple[int, float]]:
    """(step, value) of the records that have a value of this key."""
    return [(record["step"], record[key]) for record in records if record.get(key) is not None]


def steps_since_last(train: Sequence[Record]) -> list[int]:
    """For each record of training the steps that it is about."""
    return [after - before for before, after in pairwise([0, *(record["step"] for record in train)])]


def points_in(records: Sequence[Record], group: str, name: str) -> list[tuple[int, float]]:
    """(step, value) of the records that have a value `record[group][name]`, such as the loss of a component."""
    points = [(record["step"], (record.get(group) or {}).get(name)) for record in records]
    return [(step, value) for step, value in points if value is not None]


def names_in(records: Sequence[Record], group: str) -> list[str]:
    """The keys of the dicts `record[group]`, in the order in which they first occur."""
    return list(dict.fromkeys(name for record in records for name in record.get(group) or {}))


def validation_metrics(validation: Sequence[Record]) -> list[str]:
    """The names of the metrics of translations that validation records have by direction: `bleu` of `bleu_of`."""
    groups = dict.fromkeys(key for record in validation for key in record if key.endswith("_of"))
    return [group.removesuffix("_of") for group in groups if group != "nll_of"]


def direction_of(name: str) -> str:
    """`de-en` of a component `seq2seq:en-de:de-en`; a name that is not a component's stays."""
    return name.rpartition(":")[2]


def objective_of(name: str) -> str:
    """`seq2seq` of a component `seq2seq:en-de:de-en`; empty for a name that is not a component's."""
    parts = name.rsplit(":", 2)
    return parts[0] if len(parts) == 3 else ""


def event_text(event: Record) -> str:
    """What an event says besides its time and kind; changes as `key: before → after`."""
    parts = []
    for name, value in event.items():
        if name == "changes" and isinstance(value, dict):
            parts += [f"{key}: {_short(was)} → {_short(now)}" for key, (was, now) in value.items()]
        elif name not in ("time", "kind"):
            parts.append(f"{name}: {_short(value)}")
    return "; ".join(parts)


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_short(one)}" for name, one in value.items())
    text = f"{value:.4g}" if isinstance(value, float) else " ".join(str(value).split())
    return text if len(text) <= 200 else f"{text[:199]}…"
