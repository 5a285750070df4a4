"""A run as text while it works, from what it appends to its logs: a view that changes, or plain lines."""

import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

from deltalm_ds.errors import InputError
from deltalm_ds.progress import duration_text
from deltalm_ds.report.records import BEGINS, Record, event_text, validation_metrics
from deltalm_ds.report.run_files import name_of, read_recipe
from deltalm_ds.runs.appended import AppendedLines

BLOCKS = "▁▂▃▄▅▆▇█"
SPARKS, SHOWN_EVENTS, RECENT = 48, 5, 10  # columns of the curve; lines; records that a rate is the mean of
GIB = 2**30
RECORDS = ("train", "validation")  # kinds of them


class RunView:
    """What is known of a run; `update` reads what was appended since.

    Raises:
        InputError: there is no such directory.
    """

    def __init__(self, run: Path) -> None:
        if not run.is_dir():
            raise InputError(f"There is no run directory {run}.")
        self._run = run
        self._metrics, self._events = AppendedLines(run / "metrics.jsonl"), AppendedLines(run / "events.jsonl")
        self._losses: list[tuple[int, float]] = []
        self._recent: deque[Record] = deque(maxlen=RECENT)
        self._validation: Record = {}
        self._lowest: tuple[float, int] | None = None
        self._last_events: deque[Record] = deque(maxlen=SHOWN_EVENTS)
        self._is_ended, self._is_supervised, self._news_at = False, False, time.monotonic()
        self._read_recipe()

    def update(self) -> list[str]:
        """Read what is new; a line for each new record and event."""
        records, events = self._metrics.read(), self._events.read()
        if records and self._metrics.begins_again:
            self._losses, self._lowest, self._validation = [], None, {}
            self._recent.clear()
        for record in records:
            self._take_record(record)
        for event in events:
            self._take_event(event)
        if records or events:
            self._news_at = time.monotonic()
        in_order = sorted([*events, *records], key=lambda entry: (entry.get("time", ""), entry.get("kind") == "end"))
        return [_record_line(entry) if entry.get("kind") in RECORDS else _event_line(entry) for entry in in_order]

    @property
    def has_ended(self) -> bool:
        """Whether the newest start, or its supervisor, has ended.

        A run without such events has when it is at its last step, validated.
        """
        return self._is_ended or (not self._has_start and self._is_complete())

    def lines(self) -> list[str]:
        """What is to be seen now, a dozen lines."""
        found = [f"{self._name}   {self._run}"]
        if self._recent:
            found += _training_lines(list(self._recent), self._losses, self._max_steps)
        else:
            found.append("no records yet")
        if self._validation:
            found.append(self._validation_line())
        found += ["", *(_event_line(event) for event in self._last_events)] if self._last_events else []
        silence = time.monotonic() - self._news_at
        return [
            *found,
            "",
            "ended" if self.has_ended else f"news {duration_text(silence)} ago; Ctrl-C leaves the run alone",
        ]

    def _read_recipe(self) -> None:
        recipe = read_recipe(self._run)
        self._name = name_of(self._run, recipe)
        self._max_steps = int((recipe.get("training") or {}).get("max_steps") or 0)
        self._validates = bool(recipe.get("validation"))
        self._has_start = False

    def _take_record(self, record: Record) -> None:
        if record.get("kind") == "train" and record.get("loss") is not None:
            self._losses.append((record["step"], record["loss"]))
            self._recent.append(record)
        elif record.get("kind") == "validation":
            self._validation = record
            if record.get("loss") is not None:
                here = record["loss"], record["step"]
                self._lowest = here if self._lowest is None else min(self._lowest, here)

    def _take_event(self, event: Record) -> None:
        self._last_events.append(event)
        if event.get("kind") in BEGINS:
            self._read_recipe()  # which a new start may have changed
            self._has_start, self._is_ended = True, False
        elif event.get("kind") == "supervisor started":
            self._has_start, self._is_supervised, self._is_ended = True, True, False
        elif event.get("kind") == "supervisor ended":
            self._is_supervised, self._is_ended = False, True
        elif event.get("kind") == "end":
            self._is_ended = not self._is_supervised  # which may try again

    def _is_complete(self) -> bool:
        step = self._recent[-1]["step"] if self._recent else 0
        validated = not self._validates or self._validation.get("step") == step
        return 0 < self._max_steps <= step and validated

    def _validation_line(self) -> str:
        record, names = self._validation, ["loss", *validation_metrics([self._validation])]
        values = ", ".join(f"{name} {record[name]:.3f}" for name in names if record.get(name) is not None)
        lowest = f" (lowest loss {self._lowest[0]:.3f} at {self._lowest[1]:,})" if self._lowest else ""
        return f"validation at {record['step']:,}: {values}{lowest}"


def sparkline(points: Sequence[tuple[int, float]], columns: int = SPARKS) -> str:
    """A curve of (step, value), from its first to its last step, in so many characters; means where many share one."""
    if not points:
        return ""
    first, last = points[0][0], points[-1][0]
    cells: dict[int, list[float]] = {}
    for step, value in points:
        cells.setdefault(min(columns - 1, (step - first) * columns // max(last - first, 1)), []).append(value)
    means = [sum(cell) / len(cell) for _, cell in sorted(cells.items())]
    low, high = min(means), max(means)
    scale = (len(BLOCKS) - 1) / (high - low) if high > low else 0.0
    return "".join(BLOCKS[round((value - low) * scale)] for value in means)


def _training_lines(recent: list[Record], losses: Sequence[tuple[int, float]], max_steps: int) -> list[str]:
    record = recent[-1]
    step, seconds_per_step = record["step"], sum(r["seconds_per_step"] for r in recent) / len(recent)
    of_all = f" of {max_steps:,} ({100 * step / max_steps:.0f} %)" if max_steps else ""
    left = max(max_steps - step, 0) * seconds_per_step
    facts = {
        "learning rate": ("learning_rate", "{:.3g}", 1),
        "gradient norm": ("gradient_norm", "{:.3g}", 1),
        "loss scale": ("loss_scale", "{:g}", 1),
        "skipped": ("skipped_updates", "{:,}", 1),
    }
    speed = {
        "tokens/s": ("tokens_per_second", "{:,.0f}", 1),
        "target tokens/s": ("target_tokens_per_second", "{:,.0f}", 1),
        "MFU %": ("mfu", "{:.1f}", 100),
        "padding %": ("padding", "{:.1f}", 100),
        "GiB": ("peak_memory_bytes", "{:.2f}", 1 / GIB),
    }
    return [
        f"step {step:,}{of_all}" + (f"   {duration_text(left)} left" if left else ""),
        f"loss {record['loss']:.4f}  {sparkline(losses)}",
        _facts(record, facts),
        _facts(record, speed),
        _sections(record.get("seconds") or {}),
    ]


def _facts(record: Record, facts: Mapping[str, tuple[str, str, float]]) -> str:
    """`name value` of what a record has."""
    shown = [
        f"{name} {form.format(record[key] * factor if factor != 1 else record[key])}"
        for name, (key, form, factor) in facts.items()
        if record.get(key) is not None
    ]
    return "   ".join(shown)


def _sections(seconds: dict[str, float]) -> str:
    total = sum(seconds.values())
    shares = sorted(((value / total, name) for name, value in seconds.items()), reverse=True) if total else []
    return "   ".join(f"{name} {100 * share:.0f} %" for share, name in shares if share >= 0.005)


def _record_line(record: Record) -> str:
    names = ["loss", *validation_metrics([record])]
    values = [f"{name} {record[name]:.4f}" for name in names if record.get(name) is not None]
    rate = record.get("tokens_per_second")
    values += [f"{rate:,.0f} tokens/s"] if rate is not None else []
    return f"step {record.get('step'):,} {record.get('kind')}: {', '.join(values)}"


def _event_line(event: Record) -> str:
    return f"{event.get('time', '')} {event.get('kind', '')}: {event_text(event)}"
