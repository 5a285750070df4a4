"""`deltalm`: each verb parses and calls. Results go to stdout, messages and progress to stderr.

Exit codes: see `deltalm_ds.errors`.
"""

import io
import os
import sys

import typer

from deltalm_ds.cli import (
    comparison,
    data,
    evaluation,
    export,
    launch,
    models,
    plan,
    recipe,
    report,
    serving,
    tasks,
    training,
    translation,
    vocab,
)
from deltalm_ds.errors import InputError, os_error_sentence
from deltalm_ds.files import naming_full_disk
from deltalm_ds.streams import say
from deltalm_ds.threads import let_waiting_threads_sleep

app = typer.Typer(
    help="Train and ship DeltaLM-style multilingual sequence-to-sequence models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
data.app.command()(tasks.prepare)
app.add_typer(vocab.app, name="vocab")
app.add_typer(data.app, name="data")
app.add_typer(recipe.app, name="recipe")
for verb in (
    models.env,
    models.init,
    models.inspect,
    models.average,
    plan.plan,
    training.train,
    launch.launch,
    report.report,
    report.watch,
    training.demo,
    translation.translate,
    translation.score,
    serving.serve,
    evaluation.evaluate,
    comparison.compare,
    export.export,
):
    app.command()(verb)


def main() -> None:
    """Entry point: a user's mistake is one message and an exit code, never a traceback."""
    let_waiting_threads_sleep()  # before a verb imports torch
    try:
        try:
            _prepare_streams()
            with naming_full_disk("standard output"):  # files have their names by then
                app(prog_name="deltalm")
        finally:
            _flush_stdout()
    except InputError as error:
        say(error)
        sys.exit(error.exit_code)
    except BrokenPipeError:
        sys.exit(1)
    except OSError as error:
        say(os_error_sentence(error))
        sys.exit(InputError.exit_code)


def _prepare_streams() -> None:
    """Text goes out as UTF-8 whatever the locale says; what cannot be UTF-8 (odd file names) as escapes.

    Raises:
        InputError: standard output was closed before the start (`>&-`): results would be lost without a word.
    """
    if sys.stderr is None:  # messages would go to standard output
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 (open until the process ends)
    if sys.stdout is None:
        raise InputError("Standard output is closed: send it to a file, or to /dev/null.")
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")


def _flush_stdout() -> None:
    """Write what is buffered while a failure can still be told: the interpreter's own flush comes too late for that.

    Raises:
        OSError: nobody reads any more, or the disk is full; the error names standard output.
    """
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError as error:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the interpreter flushes once more at its end
        error.filename = "standard output"
        raise
