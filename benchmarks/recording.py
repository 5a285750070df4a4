"""How a benchmark shows what it measured: a table; with --json an object a row; with --record also in RESULTS.md.

With --to, every row is appended to a file as soon as it is there, so that a run that is cut short keeps what it had.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch

from benchmarks.device import DEVICE
from deltalm_ds.environment import environment

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "RESULTS.md"
FAILED = "failed"  # in a row: why there is nothing else in it


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options of every benchmark; add its own to it."""
    arguments = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--json", action="store_true", help="one JSON object a row")
    arguments.add_argument("--record", action="store_true", help="append the table to benchmarks/RESULTS.md")
    arguments.add_argument("--to", type=Path, help="append every row to this file as it comes, as JSON")
    return arguments


def existing(path: str) -> Path:
    """What an argument names, for argparse to refuse where there is nothing."""
    if not Path(path).exists():
        raise argparse.ArgumentTypeError(f"{path} does not exist")
    return Path(path)


def keep(arguments: argparse.Namespace, part: str, row: dict[str, Any]) -> dict[str, Any]:
    """Show a row on stderr, and append it where --to says, with its part of `make gpu` and the device."""
    line = json.dumps(
        {"part": part, "on": DEVICE.type, **{name: _rounded(value) for name, value in row.items()}}, ensure_ascii=False
    )
    print(line, file=sys.stderr, flush=True)
    if arguments.to:
        with open(arguments.to, "a", encoding="utf-8") as file:
            file.write(line + "\n")
    return row


def row_of_process(command: Sequence[str], limit: float | None = None, **variables: str) -> dict[str, Any]:
    """The row that a process of its own prints as its last line; where it fails, a row that says why.

    Args:
        command: arguments of this Python.
        limit: seconds after which it is given up.
        variables: of its environment, beside those of this process.
    """
    environment = {**os.environ, **variables}
    try:
        worker = subprocess.run(
            [sys.executable, *command], capture_output=True, text=True, cwd=ROOT, env=environment, timeout=limit
        )
    except subprocess.TimeoutExpired:
        return {FAILED: f"it took more than {limit:.0f} s"}
    sys.stderr.write(worker.stderr)
    if worker.returncode == -signal.SIGKILL:
        return {FAILED: "killed, as it needs more memory than this machine has"}
    if worker.returncode:
        return {FAILED: (worker.stderr.strip().splitlines() or [f"exit code {worker.returncode}"])[-1][:200]}
    return json.loads(worker.stdout.splitlines()[-1])


def _rounded(value: Any) -> Any:
    return float(f"{value:.5g}") if isinstance(value, float) else value


def report(
    arguments: argparse.Namespace, title: str, command: str, rows: Sequence[dict[str, Any]], notes: Sequence[str] = ()
) -> None:
    """Print the rows, whose keys head the columns, and append them to RESULTS.md where asked."""
    heading = f"\n## {title} ({date.today()}, commit {commit()})\n"
    section = "\n".join([heading, f"Command: `{command}`. {machine()}", "", *table(rows)])
    section += "".join(f"\n\n{note}" for note in notes) + "\n"
    if arguments.json:
        for row in rows:
            print(json.dumps(row, ensure_ascii=False))
    else:
        print(section)
    if arguments.record:
        with open(RESULTS, "a", encoding="utf-8") as file:
            file.write(section)


def machine() -> str:
    """One sentence on where a record was made."""
    found = environment()
    gpus = ", ".join(gpu["name"] for gpu in found["gpus"]) or "no GPU"
    packages = ", ".join(f"{name} {version}" for name, version in found["packages"].items() if version)
    processor = f"{found['processor']} ({torch.backends.cpu.get_cpu_capability()})"
    return f"{found['cpu_cores']} cores of {processor}, {gpus}; Python {found['python']}, {packages}."


def table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Lines of a table with a column for every key; a row that lacks it has an empty cell."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    lines = ["| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
    return lines + ["| " + " | ".join(_cell(row.get(column, "")) for column in columns) + " |" for row in rows]


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value).replace("|", "/")


def commit() -> str:
    """The commit at hand, marked where the tree differs from it, the records aside; `unknown` outside a repository."""
    if not shutil.which("git"):
        return "unknown"
    git = ["git", "-C", str(ROOT)]
    head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    status = [*git, "status", "--porcelain", "-uno", "--", ".", ":!benchmarks/RESULTS.md"]
    changed = subprocess.run(status, capture_output=True, text=True).stdout.strip()
    return f"{head} with changes" if changed else head or "unknown"
