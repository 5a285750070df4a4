"""When a run was training, and what kept it from it: the starts, or under a supervisor the attempts, and its faults."""

from collections.abc import Sequence
from itertools import pairwise

from deltalm_ds.report.charts import event_chart
from deltalm_ds.report.records import BEGINS, Record, event_text

FAULTS = (
    *(
        "stuck",
        "slow rank",
        "rank lost",
        "rank ended",
        "host lost",
        "agent lost",
        "spare taken",
        "went on with fewer hosts",
        "run directory not writable",
        "run directory writable again",
    ),
    *("hook failed", "supervisor started", "supervisor ended", "end"),
)
MOST_EVENTS = 1000


def time_line(events: Sequence[Record], last: str | None) -> str:
    """A chart of a run that began more than once, or under a supervisor; the empty text for others.

    Args:
        events: all, oldest first.
        last: time of the last record of training, which is a sign of life too.
    """
    kinds = {event["kind"] for event in events}
    begin = next((kind for kind in BEGINS if kind in kinds), None)
    begins = [event for event in events if event["kind"] == begin]
    if begin is None or (begin == "start" and len(begins) < 2):
        return ""
    signs = sorted([*(event["time"] for event in events), *([last] if last else [])])
    spans = [
        (begin, event["time"], _end_of(event, following, events, signs))
        for event, following in pairwise([*begins, None])
        if event is not None
    ]
    shown = [event for event in events if event["kind"] in (begin, *FAULTS)][-MOST_EVENTS:]
    moments = [(event["kind"], event["time"], event_text(event)) for event in shown]
    return event_chart("Attempts and faults" if begin == "attempt" else "Starts and faults", spans, moments)


def _end_of(begin: Record, following: Record | None, events: Sequence[Record], signs: Sequence[str]) -> str:
    """When the ranks ended that began there: as an event says, or with the last sign of life before the next ones."""
    own = (sign for sign in signs if following is None or sign < following["time"])
    last = max([begin["time"], *own])
    ends = [event["time"] for event in events if event["kind"] == "end" and begin["time"] <= event["time"] <= last]
    return ends[-1] if ends else last
