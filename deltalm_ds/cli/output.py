"""What the verbs print: tables, `name: value` lines and notes for people, JSON for scripts."""

import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from deltalm_ds.files import finite

NO_LIMIT = 1_000_000  # columns: a pipe has no width to fit into


def print_json(value: Any) -> None:
    """Print a value as one line of JSON in UTF-8; numbers that JSON does not have (NaN, infinities) are null."""
    text = json.dumps(finite(value), ensure_ascii=False, allow_nan=False)
    # file names may hold bytes that are not UTF-8, as lone surrogates: they are printed as JSON's escapes
    print(text.encode("utf-8", "backslashreplace").decode("utf-8"))


def print_values(values: Mapping[str, Any], indent: str = "") -> None:
    """Print one `name: value` a line; what is nested stands below its name, a list of such behind dashes."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            print(f"{indent}{name}:")
            print_values(value, f"{indent}  ")
        elif isinstance(value, list) and value and all(isinstance(entry, Mapping) for entry in value):
            print(f"{indent}{name}:")
            for entry in value:
                print(f"{indent}  - {', '.join(f'{key} {inner}' for key, inner in entry.items())}")
        else:
            print(f"{indent}{name}: {value}")


def print_table(header: Sequence[str], rows: Iterable[Sequence[str | int | None]], align: str, title: str = "") -> None:
    """Print columns under their names: fitted into a terminal; whole lines without colour into a pipe.

    Args:
        header: the names of the columns.
        rows: a cell for each column; whole numbers get separators of thousands, None is empty.
        align: a letter for each column: `l` to the left, `r` to the right.
        title: a line above the table.
    """
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name, letter in zip(header, align, strict=True):
        table.add_column(name, justify="right" if letter == "r" else "left")
    for row in rows:
        table.add_row(*map(_cell, row))
    on_terminal = sys.stdout.isatty()
    console = Console(
        force_terminal=on_terminal, width=None if on_terminal else NO_LIMIT, markup=False, emoji=False, highlight=False
    )
    with console.capture() as captured:
        console.print(table)
    if title:
        print(title)
    for line in captured.get().removesuffix("\n").split("\n"):
        print(line.rstrip())


def print_notes(notes: Iterable[str]) -> None:
    """On stderr, what is said several times once."""
    for note in dict.fromkeys(notes):
        print(f"Note: {note}", file=sys.stderr)


def size_text(num_bytes: int) -> str:
    """A number of bytes as people read it, in MiB or GiB."""
    return f"{num_bytes / 2**30:,.2f} GiB" if num_bytes >= 2**30 else f"{num_bytes / 2**20:,.1f} MiB"


def _cell(value: str | int | None) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else f"{value:,}"
