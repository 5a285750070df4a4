"""`deltalm evaluate --suite`: several systems on all test sets of a task, in the paper's tables."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deltalm_ds.cli.output import print_json, print_notes, print_table
from deltalm_ds.errors import InputError, nearest
from deltalm_ds.threads import usable_cores

if TYPE_CHECKING:
    from deltalm_ds.evaluation.suite_tables import FilledTable
    from deltalm_ds.evaluation.suites import PreparedTask
    from deltalm_ds.evaluation.test_sets import TestSet
    from deltalm_ds.generation.interface import EngineOptions, SearchOptions

TEXT, MARKDOWN, LATEX = "text", "markdown", "latex"
TABLE_FORMATS = (TEXT, MARKDOWN, LATEX)


@dataclass(frozen=True)
class SuiteOptions:
    """What the command line says of a suite.

    Attributes:
        systems: as a user names them.
        baseline: the name of one; None for the first.
        out: keeps outputs from run to run.
    """

    systems: Sequence[str]
    baseline: str | None
    processes: int
    table_format: str
    out: Path

    def __post_init__(self) -> None:
        if self.table_format not in TABLE_FORMATS:
            raise InputError(
                f"There is no table format {self.table_format!r}, the nearest is "
                f"{nearest(self.table_format, TABLE_FORMATS)!r}: {', '.join(TABLE_FORMATS)}."
            )


def evaluate_suite(
    prepared: "PreparedTask",
    suite: SuiteOptions,
    test_sets: "Sequence[TestSet]",
    search: "SearchOptions",
    engine: str | None,
    engine_options: "EngineOptions",
    metrics: Sequence[str],
    as_json: bool,
) -> None:
    """Print the tables of a task for some systems; see `run_suite`."""
    from deltalm_ds.data_tools.workers import start_workers
    from deltalm_ds.evaluation.suite_tables import fill_table
    from deltalm_ds.evaluation.suites import run_suite, write_results
    from deltalm_ds.evaluation.systems import find_systems

    systems = find_systems(suite.systems, engine, engine_options)
    names = [system.name for system in systems]
    baseline = suite.baseline or names[0]
    with start_workers(suite.processes, compute=True) as workers:
        if workers is None:  # a rank whose work is done
            return
        languages = prepared.languages
        results = run_suite(systems, test_sets, search, metrics, suite.out, baseline, workers, languages)
    write_results(results, prepared, search, suite.out)
    notes = [*prepared.warnings, *(note for result in results for note in result.score.notes)]
    print_notes(notes)
    tables = [fill_table(table, results, names, baseline) for table in prepared.form.tables]
    if as_json:
        lines = [result.as_dict(prepared, search) for result in results]
        print_json({"tables": [table.as_dict() for table in tables], "baseline": baseline, "results": lines})
        return
    _print(tables, suite.table_format)
    signatures = [f"{name}: {text}" for result in results for name, text in result.score.signatures.items()]
    for signature in dict.fromkeys(signatures):
        print(signature, file=sys.stdout if suite.table_format == TEXT else sys.stderr)


def threads_of_each(threads: int, processes: int) -> int:
    """The threads of a process: those asked for, or its share of the cores; 0 leaves the choice to a process alone."""
    return threads or (max(1, usable_cores() // processes) if processes > 1 else 0)


def _print(tables: "Sequence[FilledTable]", table_format: str) -> None:
    from deltalm_ds.evaluation.suite_tables import as_latex, as_markdown

    for number, table in enumerate(tables):
        if number:
            print()
        if table_format != TEXT:
            print(as_markdown(table) if table_format == MARKDOWN else as_latex(table))
            continue
        rows = [(name, *(cell.text if cell else None for cell in cells)) for name, cells in table.rows]
        print_table(table.header, rows, "l" + "r" * (len(table.header) - 1), title=table.title)
        if table.note:
            print(table.note)
