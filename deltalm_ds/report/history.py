"""What happened to a run and whether it was well: skips, spikes, and the events of all its starts."""

from collections.abc import Iterator, Sequence
from statistics import median

from deltalm_ds.report.page import note, table
from deltalm_ds.report.records import Record, event_text, points_of

SPIKE_WINDOW, SPIKE_SIGMAS = 50, 6  # records before one that stand for what is usual; robust deviations from it
SIGMA_OF_MAD = 1.4826  # of a normal distribution
MAX_SHOWN = 20
MAX_EVENTS = 500


def health(train: Sequence[Record], events: Sequence[Record]) -> str:
    """A table of what would tell that something was wrong."""
    if not train:
        return ""
    spikes = list(spikes_of(points_of(train, "loss")))
    norms = points_of(train, "gradient_norm")
    facts: list[tuple[str, str]] = [
        ("Steps without an update", f"{train[-1].get('skipped_updates', 0):,}"),
        ("Loss spikes", ", ".join(f"step {step:,} ({loss:.3f})" for step, loss in spikes[:MAX_SHOWN]) or "none"),
    ]
    if norms:
        step, norm = max(norms, key=lambda point: point[1])
        facts.append(("Largest gradient norm", f"{norm:.4g} at step {step:,}"))
    if scales := points_of(train, "loss_scale"):
        facts.append(("Loss scale", f"{scales[0][1]:g} at first, {scales[-1][1]:g} at last"))
    if memory := points_of(train, "peak_memory_bytes"):
        facts.append(("Peak memory of a rank", f"{max(value for _, value in memory) / 2**30:.2f} GiB"))
    kinds = [event["kind"] for event in events]
    facts += [(f"Events: {kind}", f"{kinds.count(kind):,}") for kind in dict.fromkeys(kinds) if kind != "changed"]
    about = f"Spikes: {SPIKE_SIGMAS} robust deviations above the median of the {SPIKE_WINDOW} records before."
    return table((), facts) + note(about)


def spikes_of(points: Sequence[tuple[int, float]]) -> Iterator[tuple[int, float]]:
    """(step, loss) of the records whose loss stands far above those before it."""
    usual: list[float] = []
    for step, loss in points:
        if len(usual) == SPIKE_WINDOW:
            middle = median(usual)
            deviation = SIGMA_OF_MAD * median(abs(value - middle) for value in usual)
            if loss > middle + SPIKE_SIGMAS * deviation and deviation > 0:
                yield step, loss
                continue
            usual.pop(0)
        usual.append(loss)


def history(events: Sequence[Record]) -> str:
    """The events of all starts, oldest first; of very many the newest."""
    rows = [[event["time"], event["kind"], event_text(event)] for event in events[-MAX_EVENTS:]]
    left_out = len(events) - len(rows)
    return table(("time", "event", ""), rows) + (
        note(f"{left_out:,} earlier ones are in events.jsonl.") if left_out else ""
    )
