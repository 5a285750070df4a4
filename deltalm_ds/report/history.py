"""What happened to a run and whether it was well: skips, spikes, and the events of all its starts."""

from collections.abc import Sequence

from deltalm_ds.report.page import note, table
from deltalm_ds.report.records import Record, event_text, points_of

MAX_SHOWN = 20
MAX_EVENTS = 500


def health(train: Sequence[Record], events: Sequence[Record]) -> str:
    """A table of what would tell that something was wrong."""
    if not train:
        return ""
    spikes = [event["step"] for event in events if event["kind"] == "loss spike"]
    shown = ("…, " if len(spikes) > MAX_SHOWN else "") + ", ".join(f"{step:,}" for step in spikes[-MAX_SHOWN:])
    norms = points_of(train, "gradient_norm")
    facts: list[tuple[str, str]] = [
        ("Steps without an update", f"{train[-1].get('skipped_updates', 0):,}"),
        ("Loss spikes", f"{len(spikes):,}, at steps {shown}" if spikes else "none"),
    ]
    if norms:
        step, norm = max(norms, key=lambda point: point[1])
        facts.append(("Largest gradient norm", f"{norm:.4g} at step {step:,}"))
    if scales := points_of(train, "loss_scale"):
        facts.append(("Loss scale", f"{scales[0][1]:g} at first, {scales[-1][1]:g} at last"))
    if memory := points_of(train, "peak_memory_bytes"):
        facts.append(("Peak memory of a rank", f"{max(value for _, value in memory) / 2**30:.2f} GiB"))
    kinds = [event["kind"] for event in events if event["kind"] not in ("changed", "loss spike")]
    facts += [(f"Events: {kind}", f"{kinds.count(kind):,}") for kind in dict.fromkeys(kinds)]
    return table((), facts)


def history(events: Sequence[Record]) -> str:
    """The events of all starts, oldest first; of very many the newest."""
    rows = [[event["time"], event["kind"], event_text(event)] for event in events[-MAX_EVENTS:]]
    left_out = len(events) - len(rows)
    return table(("time", "event", ""), rows) + (
        note(f"{left_out:,} earlier ones are in events.jsonl.") if left_out else ""
    )
