"""How fast a run was and what its time went to: charts over the steps, and a table of all its life."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from deltalm_ds.progress import duration_text
from deltalm_ds.report.charts import Line, line_chart, palette
from deltalm_ds.report.page import chart_grid, note, table
from deltalm_ds.report.records import Record, names_in, points_of, steps_since_last
from deltalm_ds.runs.badput import OUTSIDE_STEPS, time_spent

SPENT = {
    "steps": "steps that count",
    "starts": "starting, until the first step",
    "checkpoints": "saving checkpoints",
    "validation": "validation",
    "recomputed": "steps that were lost and made again",
    "down": "between an end and the next start",
    "other": "other, such as starts that failed",
}


def throughput(run: Path, train: Sequence[Record]) -> str:
    """What the records and events of a run have of it; empty for a log without times."""
    return _spent_table(run) + chart_grid(_charts(train))


def _charts(train: Sequence[Record]) -> Iterator[str]:
    rates = {"source and target": "tokens_per_second", "target": "target_tokens_per_second"}
    colours = palette(list(rates))
    yield line_chart(
        "Tokens per second", [_line(name, train, key, colours[name]) for name, key in rates.items()], from_zero=True
    )
    yield line_chart("Seconds per step by section", _section_lines(train), from_zero=True, stacked=True)
    yield line_chart("Share of the device's peak (MFU)", [_line("MFU", train, "mfu")], from_zero=True)
    yield line_chart("TFLOP/s per rank", [_line("TFLOP/s", train, "teraflops_per_rank")], from_zero=True)
    yield line_chart("Share of padding", [_line("padding", train, "padding")], from_zero=True)


def _line(name: str, records: Sequence[Record], key: str, colour: str | None = None) -> Line:
    steps, values = zip(*points_of(records, key), strict=True) if points_of(records, key) else ((), ())
    return Line(name, steps, values, colour) if colour else Line(name, steps, values)


def _section_lines(train: Sequence[Record]) -> Iterator[Line]:
    """Seconds of each section of a step; what is outside of steps is in the table."""
    names = [name for name in names_in(train, "seconds") if name not in OUTSIDE_STEPS]
    colours = palette(names)
    timed = [(r, n) for r, n in zip(train, steps_since_last(train), strict=True) if r.get("seconds") and n]
    for name in names:
        values = [record["seconds"].get(name, 0.0) / num_steps for record, num_steps in timed]
        yield Line(name, [record["step"] for record, _ in timed], values, colours[name])


def _spent_table(run: Path) -> str:
    spent = time_spent(run)
    total = sum(spent.values())
    if not total:
        return ""
    rows = [
        (SPENT[name], duration_text(seconds), f"{100 * seconds / total:.1f} %")
        for name, seconds in spent.items()
        if seconds >= 0.05
    ]
    return table(("all starts together", "time", "share"), rows) + note(
        "All but the first line is badput. Rank 0's time; on a GPU that of its device."
    )
