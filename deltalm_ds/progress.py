"""Progress of long work: a bar with rate and ETA on a terminal, plain lines in a log. Always on stderr."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

LOG_INTERVAL_S = 10.0

Advance = Callable[..., None]


@contextmanager
def progress(what: str, total: int, unit: str = "lines", start: int = 0) -> Iterator[Advance]:
    """Yield `advance(count=1, note="")`, which moves the bar or, without a terminal, prints a line now and then."""
    if sys.stderr.isatty():
        with _bar(what, total, unit, start) as advance:
            yield advance
    else:
        yield _line_printer(what, total, unit, start)


@contextmanager
def _bar(what: str, total: int, unit: str, start: int) -> Iterator[Advance]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=False) as bars:
        task = bars.add_task(what, total=total, completed=start, rate="", note="")
        began, done = time.monotonic(), 0

        def advance(count: int = 1, note: str = "") -> None:
            nonlocal done
            done += count
            rate = done / max(time.monotonic() - began, 1e-9)
            bars.update(task, advance=count, rate=f"{rate:,.0f} {unit}/s", note=note)

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
        rate = done / max(now - began, 1e-9)
        eta_s = (total - start - done) / max(rate, 1e-9)
        line = f"{what}: {start + done:,}/{total:,} ({rate:,.0f} {unit}/s, {eta_s:,.0f} s left) {note}"
        print(line.rstrip(), file=sys.stderr, flush=True)

    return advance
