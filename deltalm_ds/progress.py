"""Progress of long work: a bar with rate and time left on a terminal, plain lines in a log. Always on stderr."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise

LOG_INTERVAL_S = 10.0
SHORTEST_S = 0.1  # of a shorter time no rate can be told
LONGEST_S = 100 * 86_400  # a longer time left is not told: the rate of so slow a beginning says nothing

UNITS = (("d", 86_400), ("h", 3600), ("min", 60), ("s", 1))  # of time, in seconds

Advance = Callable[..., None]


@contextmanager
def progress(what: str, total: int, unit: str = "lines", start: int = 0) -> Iterator[Advance]:
    """Yield `advance(count=1, note="")`, which moves the bar or, without a terminal, prints a line now and then.

    Args:
        what: names the work.
        total: how much there is to do, what was done before included.
        unit: what is counted.
        start: how much was done before, by an interrupted run; it does not count for the rate.
    """
    if sys.stderr.isatty():
        with _bar(what, total, unit, start) as advance:
            yield advance
    else:
        yield _line_printer(what, total, unit, start)


def duration_text(seconds: float) -> str:
    """A time in its two largest units: `20 s`, `5 min 20 s`, `2 h 10 min`, `3 d 4 h`."""
    whole = round(seconds)
    for (name, length), (next_name, next_length) in pairwise(UNITS):
        if whole >= length:
            return f"{whole // length:,} {name} {whole % length // next_length} {next_name}"
    return f"{whole} s"


@contextmanager
def _bar(what: str, total: int, unit: str, start: int) -> Iterator[Advance]:
    from rich.console import Console  # where there is no terminal, nobody needs to wait for these imports
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[pace]}", markup=False),
        TextColumn("{task.fields[note]}", markup=False),
    )
    with Progress(*columns, console=Console(stderr=True), transient=False) as bars:
        task = bars.add_task(what, total=total, completed=start, pace="", note="")
        began, done = time.monotonic(), 0

        def advance(count: int = 1, note: str = "") -> None:
            nonlocal done
            done += count
            pace = _pace(done, total - start - done, time.monotonic() - began, unit)
            bars.update(task, advance=count, pace=pace, note=note)

        yield advance


def _line_printer(what: str, total: int, unit: str, start: int) -> Advance:
    began, done, printed = time.monotonic(), 0, time.monotonic()

    def advance(count: int = 1, note: str = "") -> None:
        nonlocal done, printed
        done += count
        now = time.monotonic()
        if now - printed < LOG_INTERVAL_S and start + done < total:
            return
        printed = now
        pace = _pace(done, total - start - done, now - began, unit)
        line = f"{what}: {start + done:,}/{total:,} {f'({pace})' if pace else ''}".rstrip()
        print(f"{line} {note}".rstrip(), file=sys.stderr, flush=True)

    return advance


def _pace(done: int, left: int, seconds: float, unit: str) -> str:
    """Rate and time left, as far as they can be told from what was done in so many seconds."""
    if done <= 0 or seconds < SHORTEST_S:
        return ""
    rate = done / seconds
    seconds_left = left / rate
    time_left = f", {duration_text(seconds_left)} left" if 0 < seconds_left <= LONGEST_S else ""
    return f"{_rate_text(rate)} {unit}/s{time_left}"


def _rate_text(rate: float) -> str:
    if rate >= 9.5:
        return f"{rate:,.0f}"
    return f"{rate:.2g}" if rate >= 0.01 else "<0.01"
