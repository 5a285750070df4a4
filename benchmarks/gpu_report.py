"""What a run of `benchmarks.gpu` found, as tables, and which goals it falls short of.

python -m benchmarks.gpu_report DIR             Markdown on stdout, the goals last
python -m benchmarks.gpu_report DIR --record    the same appended to benchmarks/RESULTS.md
"""

import argparse
import json
import sys
from datetime import date
from pathlib import Path
from typing import Any

from benchmarks.gpu import ROWS
from benchmarks.gpu_goals import GOALS, Rows
from benchmarks.recording import RESULTS, table
from deltalm_ds.errors import InputError

TITLES = {
    "facts": "The machine",
    "tests": "Tests of the kernels",
    "large": "Ops at real sizes, ‖found - expected‖ / ‖expected‖",
    "kernels": "Kernels beside their peers, device time",
    "step": "The whole training step",
    "generation": "Generation",
    "quality": "Losses beside those of a CPU in float32",
    "sweeps": "Sweeps",
    "run": "Parts",
}


def read_rows(directory: Path) -> list[dict[str, Any]]:
    """Rows of a run, the last of those that were measured again; a line that was cut short is left out.

    Raises:
        InputError: there are none.
    """
    path = directory / ROWS
    if not path.is_file():
        raise InputError(f"{path} is not there: name the directory that benchmarks.gpu was given as --out.")
    rows: dict[str, dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        key = json.dumps([row.get(name) for name in ("part", *IDENTITY)])
        rows.pop(key, None)  # the newest stands where it was measured
        rows[key] = row
    return list(rows.values())


# what tells rows of a part apart; all else was measured
IDENTITY = (
    *("what", "op", "setting", "contender", "row", "engine", "beam", "step", "name"),
    *("of", "tile", "stages", "strips", "chunk", "way", "best"),
)


def judged(rows: Rows) -> list[dict[str, Any]]:
    """A row for each goal."""
    found = []
    for goal in GOALS:
        value, verdict = goal.judge(rows)
        asked = f"{'at most' if goal.at_most else 'at least'} {goal.limit:g}"
        found.append(
            {"goal": goal.name, "asked": asked, "found": "" if value is None else value, "": verdict, "by": goal.source}
        )
    return found


def markdown(rows: Rows) -> str:
    """A section of RESULTS.md."""
    card = next((row["name"] for row in rows if row.get("what") == "card" and "name" in row), "no GPU")
    versions = next((row for row in rows if row.get("what") == "versions"), {})
    lines = [f"\n## A run on {card} ({date.today()}, commit {versions.get('commit', 'unknown')})\n"]
    about = ", ".join(f"{name} {versions[name]}" for name in ("python", "torch") if name in versions)
    lines += [f"Command: `make gpu`. {about or 'versions unknown'}.", ""]
    lines += [*table(judged(rows)), ""]
    for part, title in TITLES.items():
        of_part = [
            {name: value for name, value in row.items() if name not in ("part", "on")}
            for row in rows
            if row["part"] == part
        ]
        for op in dict.fromkeys(row.get("op") for row in of_part):
            shown = [{k: v for k, v in row.items() if k != "op"} for row in of_part if row.get("op") == op]
            lines += [f"### {title}{f': {op}' if op else ''}\n", *table(shown), ""]
    return "\n".join(lines)


def main() -> None:
    """Show, and record where asked."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("directory", type=Path, help="what benchmarks.gpu was given as --out")
    options.add_argument("--record", action="store_true", help="append the tables to benchmarks/RESULTS.md")
    arguments = options.parse_args()
    try:
        rows = read_rows(arguments.directory)
    except InputError as error:
        options.exit(InputError.exit_code, f"{error}\n")
    section = markdown(rows)
    print(section)
    if arguments.record:
        with open(RESULTS, "a", encoding="utf-8") as file:
            file.write(section)
    goals = judged(rows)
    for verdict in ("short", "not measured", "passed"):
        names = [f"  {goal['goal']}: {_shown(goal)}" for goal in goals if goal[""] == verdict]
        print(f"{verdict}: {len(names)}", *names, sep="\n", file=sys.stderr)


def _shown(goal: dict[str, Any]) -> str:
    return f"{goal['found']:.4g} ({goal['asked']})" if goal["found"] != "" else goal["asked"]


if __name__ == "__main__":
    main()
