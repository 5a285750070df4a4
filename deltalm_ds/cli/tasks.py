"""`deltalm data prepare`: the published files of a task, made ready for training and evaluation."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deltalm_ds.cli.options import AsJson
from deltalm_ds.cli.output import print_json, print_notes, print_table
from deltalm_ds.evaluation.tasks import TASKS

if TYPE_CHECKING:
    from deltalm_ds.evaluation.tasks.prepare import Prepared


def prepare(
    task: Annotated[str, typer.Argument(help=f"One of {', '.join(TASKS)}.", show_default=False)],
    directory: Annotated[Path, typer.Argument(help="Where its published files are, or its sample's.")],
    out: Annotated[Path, typer.Option(help="New directory for text, vocabulary and shards.", show_default=False)],
    vocab: Annotated[
        Path | None, typer.Option(help="Vocabulary whose pieces are taken; tags and task tokens become the task's.")
    ] = None,
    vocab_size: Annotated[
        int | None, typer.Option(min=4, help="Instead: pieces of a new vocabulary, trained on the task's text.")
    ] = None,
    processes: Annotated[int, typer.Option(help="Processes that tokenise.", min=1)] = 1,
    as_json: AsJson = False,
) -> None:
    """Make of a task's published files what `train` and `evaluate` need: recipes/tasks/ goes on from there.

    Which form the files are in, the published one or a sample of free data, is seen by their names (docs/tasks.md).

    Example: deltalm data prepare webnlg release_v3.0 --vocab vocabulary --out webnlg
    """
    from deltalm_ds.data_tools.workers import start_workers
    from deltalm_ds.evaluation.tasks.prepare import prepare as prepare_task

    with start_workers(processes) as workers:
        if workers is None:  # a rank whose work is done
            return
        prepared = prepare_task(task, directory, out, vocab, vocab_size, workers)
    print_notes(prepared.warnings)
    if as_json:
        print_json(asdict(prepared))
    else:
        _print(out, prepared)


def _print(out: Path, prepared: "Prepared") -> None:
    rows = [
        (part.name, part.items, part.rows, ", ".join(f"{n:,} {why}" for why, n in part.dropped.items()) or "0")
        for part in prepared.parts
    ]
    print_table(
        ("part", "items", "rows", "left out"), rows, "lrrl", title=f"{out}: {prepared.task}, {prepared.form} data"
    )
    if prepared.absent:
        print(f"Not there, and left out: {', '.join(prepared.absent)}")
