"""How a benchmark shows what it measured: a table; with --json an object a row; with --record also in RESULTS.md."""

import argparse
import json
import subprocess
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from deltalm_ds.environment import environment

ROOT = Path(__file__).resolve().parents[1]


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options of every benchmark; add its own to it."""
    arguments = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--json", action="store_true", help="one JSON object a row")
    arguments.add_argument("--record", action="store_true", help="append the table to benchmarks/RESULTS.md")
    return arguments


def report(
    arguments: argparse.Namespace, title: str, command: str, rows: Sequence[dict[str, Any]], notes: Sequence[str] = ()
) -> None:
    """Print the rows (all with the same keys, which head the columns), and append them to RESULTS.md where asked."""
    section = "\n".join([f"\n## {title} ({date.today()}, commit {_commit()})\n", *_header(command), "", *_table(rows)])
    section += "".join(f"\n\n{note}" for note in notes) + "\n"
    if arguments.json:
        for row in rows:
            print(json.dumps(row, ensure_ascii=False))
    else:
        print(section)
    if arguments.record:
        with open(ROOT / "benchmarks" / "RESULTS.md", "a", encoding="utf-8") as file:
            file.write(section)


def _header(command: str) -> list[str]:
    machine = environment()
    gpus = ", ".join(gpu["name"] for gpu in machine["gpus"]) or "no GPU"
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items() if version)
    return [
        f"Command: `{command}`. {machine['cpu_cores']} cores of {machine['processor']}, {gpus}; "
        f"Python {machine['python']}, {packages}."
    ]


def _table(rows: Sequence[dict[str, Any]]) -> list[str]:
    columns = list(rows[0])
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    return lines + ["| " + " | ".join(_cell(row[column]) for column in columns) + " |" for row in rows]


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _commit() -> str:
    """The commit at hand; marked where the tree differs from it, the records aside."""
    git = ["git", "-C", str(ROOT)]
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    status = [*git, "status", "--porcelain", "-uno", "--", ".", ":!benchmarks/RESULTS.md"]
    changed = subprocess.run(status, capture_output=True, text=True).stdout.strip()
    return f"{head} with changes" if changed else head
