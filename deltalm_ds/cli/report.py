"""`deltalm report | watch`."""

import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from deltalm_ds.report.terminal import RunView

COMPARISON = Path("comparison.html")


def report(
    runs: Annotated[list[Path], typer.Argument(help="A run directory, or several to compare.", metavar="RUN...")],
    out: Annotated[
        Path | None, typer.Option(help=f"Default: RUN/report.html; of several runs {COMPARISON}.", show_default=False)
    ] = None,
) -> None:
    """Write one HTML page about a run: losses, sampling, throughput, health, history, translations; or compare several.

    Example: deltalm report runs/multi30k
    """
    from deltalm_ds.evaluation.metrics import METRICS

    if len(runs) == 1:
        from deltalm_ds.report.run_page import write_report

        path = out or runs[0] / "report.html"
        write_report(runs[0], path, METRICS)
    else:
        from deltalm_ds.report.comparison import write_comparison

        path = out or COMPARISON
        write_comparison(runs, path, METRICS)
    print(path)


def watch(
    run: Annotated[Path, typer.Argument(help="A run directory.")],
    seconds: Annotated[float, typer.Option(min=0.1, help="Between two looks at its files.")] = 2.0,
) -> None:
    """Show a running run: steps, time left, loss, speed, validation, events; ends with the run, or by Ctrl-C.

    Example: deltalm watch runs/multi30k
    """
    from deltalm_ds.report.terminal import RunView

    view = RunView(run)
    with suppress(KeyboardInterrupt):
        if sys.stdout.isatty():
            _watch_live(view, seconds)
        else:
            _watch_lines(view, seconds)


def _watch_live(view: "RunView", seconds: float) -> None:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    view.update()
    with Live(Text("\n".join(view.lines())), console=Console(), auto_refresh=False) as live:
        while not view.has_ended:
            time.sleep(seconds)
            view.update()
            live.update(Text("\n".join(view.lines())), refresh=True)


def _watch_lines(view: "RunView", seconds: float) -> None:
    """For a pipe or a file: a line for each record and event."""
    while True:
        for line in view.update():
            print(line, flush=True)
        if view.has_ended:
            return
        time.sleep(seconds)
