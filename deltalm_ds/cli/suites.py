"""`deltalm evaluate --suite`: several systems on all test sets of a task, in the paper's tables."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from deltalm_ds.cli.output import print_json, print_table
from deltalm_ds.errors import InputError, nearest

if TYPE_CHECKING:
    from deltalm_ds.evaluation.suites import PreparedTask, Rows
    from deltalm_ds.evaluation.systems import System
    from deltalm_ds.evaluation.test_sets import TestSet
    from deltalm_ds.generation.interface import SearchOptions

TEXT, MARKDOWN, LATEX = "text", "markdown", "latex"
TABLE_FORMATS = (TEXT, MARKDOWN, LATEX)


def evaluate_suite(
    prepared: "PreparedTask",
    systems: "Sequence[System]",
    test_sets: "Sequence[TestSet]",
    options: "SearchOptions",
    metrics: Sequence[str],
    out: Path,
    table_format: str,
    as_json: bool,
) -> None:
    """Print the tables of a task for some systems; see `run_suite`."""
    from deltalm_ds.evaluation.suites import run_suite, table_of

    if table_format not in TABLE_FORMATS:
        raise InputError(
            f"There is no table format {table_format!r}, the nearest is {nearest(table_format, TABLE_FORMATS)!r}: "
            f"{', '.join(TABLE_FORMATS)}."
        )
    results = run_suite(prepared, systems, test_sets, options, metrics, out)
    notes = [*prepared.warnings, *(note for result in results for note in result.score.notes)]
    for note in dict.fromkeys(notes):
        print(f"Note: {note}", file=sys.stderr)
    tables = [table_of(table, results, [system.name for system in systems]) for table in prepared.form.tables]
    if as_json:
        lines = [result.as_dict(prepared.task.name, prepared.form.name, options) for result in results]
        print_json({"tables": [_as_dict(table) for table in tables], "results": lines})
    else:
        _print(tables, table_format)
        for signature in dict.fromkeys(
            f"{name}: {signature}" for result in results for name, signature in result.score.signatures.items()
        ):
            print(signature, file=sys.stdout if table_format == TEXT else sys.stderr)


def _as_dict(table: "Rows") -> dict[str, object]:
    rows = [{"system": name, "cells": list(cells)} for name, cells in table.rows]
    return {"title": table.title, "columns": list(table.header[1:]), "rows": rows}


def _print(tables: "Sequence[Rows]", table_format: str) -> None:
    from deltalm_ds.evaluation.suites import as_latex, as_markdown

    for number, table in enumerate(tables):
        if number:
            print()
        if table_format == TEXT:
            rows = [(name, *(None if cell is None else f"{cell:.2f}" for cell in cells)) for name, cells in table.rows]
            print_table(table.header, rows, "l" + "r" * (len(table.header) - 1), title=table.title)
        else:
            print(as_markdown(table) if table_format == MARKDOWN else as_latex(table))
