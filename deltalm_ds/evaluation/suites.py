"""A suite: all test sets of a task by several systems, scored as the paper does, in the layout of its tables.

Outputs are kept by what decides them (the system's content, the sources, the search), so that a run that was
interrupted, or that has one more system, makes only what is not there. `results.jsonl` has a line for every score, with
all that is needed to reproduce it.
"""

import hashlib
import json
import platform
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from deltalm_ds import __version__
from deltalm_ds.errors import InputError
from deltalm_ds.evaluation.metrics import METRICS
from deltalm_ds.evaluation.scores import DirectionScore
from deltalm_ds.evaluation.systems import System
from deltalm_ds.evaluation.tasks import find_task
from deltalm_ds.evaluation.tasks.interface import Form, Table, Task
from deltalm_ds.evaluation.tasks.prepare import Prepared
from deltalm_ds.evaluation.test_sets import TestSet, read_test_sets
from deltalm_ds.evaluation.translation import make_scorer
from deltalm_ds.files import atomic_file, read_json, write_json
from deltalm_ds.generation.interface import SearchOptions


@dataclass(frozen=True)
class PreparedTask:
    """A task with the data that was prepared for it."""

    task: Task
    form: Form
    directory: Path
    warnings: tuple[str, ...]

    @classmethod
    def open(cls, name: str, directory: str | Path) -> "PreparedTask":
        """That of a directory that `data prepare` wrote.

        Raises:
            InputError: there is no such task, or the directory is another's.
        """
        task, prepared = find_task(name), Prepared.read(directory)
        if prepared.task != name:
            raise InputError(f"{directory} was prepared for {prepared.task}, not for {name}.")
        form = next((form for form in task.forms if form.name == prepared.form), task.forms[0])
        return cls(task, form, Path(directory), tuple(prepared.warnings))

    def test_sets(self, split: str | None = None, directions: Sequence[str] | None = None) -> list[TestSet]:
        """Its test sets; of the split that the paper scores, unless another is named."""
        return read_test_sets(self.directory / "text", split or self.task.split, directions)


@dataclass(frozen=True)
class Result:
    """The scores of a system on a test set, and what they come from.

    Attributes:
        system: its name.
        identity: what tells the system's outputs from any other's.
        data: SHA-256 of the test set.
        was_kept: the outputs were there already.
    """

    system: str
    identity: str
    data: str
    was_kept: bool
    score: DirectionScore

    def as_dict(self, task: str, form: str, options: SearchOptions) -> dict[str, Any]:
        """All that is needed to reproduce the scores."""
        return {
            "task": task,
            "form": form,
            "system": self.system,
            "identity": self.identity,
            "data_sha256": self.data,
            "search": asdict(options),
            **self.score.as_dict(),
            "versions": {
                "deltalm_ds": __version__,
                "sacrebleu": version("sacrebleu"),
                "python": platform.python_version(),
            },
        }


def run_suite(
    prepared: PreparedTask,
    systems: Sequence[System],
    test_sets: Sequence[TestSet],
    options: SearchOptions,
    metrics: Iterable[str],
    out: Path,
) -> list[Result]:
    """Outputs of every system for every test set, kept in `out`, and their scores.

    A system that cannot do a direction is told on stderr, and has no result there.

    Args:
        prepared: the task.
        systems: that are compared.
        test_sets: of the task.
        options: of the search of models.
        metrics: names from `METRICS`.
        out: a directory; what it holds from earlier runs is used.

    Raises:
        InputError: a metric lacks something, before anything is translated.
    """
    metrics = tuple(metrics)
    scorers = {test.direction: make_scorer(test, metrics) for test in test_sets}
    (out / "outputs").mkdir(parents=True, exist_ok=True)
    results = []
    for system in systems:
        for test in test_sets:
            try:
                found = _outputs(system, test, options, out / "outputs")
            except InputError as error:
                print(f"{system.name}, {test.direction}: nothing, as {error}", file=sys.stderr)
                continue
            score = scorers[test.direction].score(found.hypotheses, found.seconds)
            results.append(Result(system.name, found.identity, data_hash(test), found.was_kept, score))
    with atomic_file(out / "results.jsonl") as file:
        for result in results:
            line = result.as_dict(prepared.task.name, prepared.form.name, options)
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    return results


@dataclass(frozen=True)
class _Outputs:
    hypotheses: list[str]
    identity: str
    seconds: float
    was_kept: bool


def _outputs(system: System, test: TestSet, options: SearchOptions, directory: Path) -> _Outputs:
    identity = system.identity(test.direction)
    decided_by = [identity, test.direction, list(test.sources), asdict(options)]
    key = hashlib.sha256(json.dumps(decided_by).encode()).hexdigest()
    path = directory / f"{key[:32]}.json"
    if system.is_slow and path.exists():
        kept = read_json(path)
        return _Outputs(kept["hypotheses"], identity, kept["seconds"], True)
    start = time.perf_counter()
    hypotheses = system.outputs(test, options)
    seconds = time.perf_counter() - start
    if system.is_slow:
        about = {"system": system.name, "direction": test.direction, "seconds": seconds}
        write_json(path, about | {"hypotheses": hypotheses})
    return _Outputs(hypotheses, identity, seconds, False)


def data_hash(test: TestSet) -> str:
    """SHA-256 of the sources and all references of a test set."""
    content = [test.direction, list(test.sources), list(test.references), list(map(list, test.further_references))]
    return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()


# --- tables ---


@dataclass(frozen=True)
class Rows:
    """A table with its cells; None where nothing was run."""

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, tuple[float | None, ...]], ...]


def table_of(table: Table, results: Sequence[Result], systems: Sequence[str]) -> Rows:
    """A table of the paper with the rows of these systems behind the published ones.

    Args:
        table: its layout.
        results: of a suite.
        systems: their names, in order; one without results has empty cells.
    """
    scores = {(result.system, result.score.direction): result.score.scores for result in results}
    rows = [(name, _published_cells(table, averages)) for name, averages in table.published.items()]
    for system in systems:
        of_metric = [
            [scores.get((system, direction), {}).get(metric) for direction in table.directions]
            for metric in table.metrics
        ]
        averages = [_mean(values) for values in of_metric]
        rows.append((system, (*of_metric[0], averages[0]) if table.is_by_direction else tuple(averages)))
    if table.is_by_direction:
        header = (*table.directions, "average")
    else:
        header = tuple(METRICS[name].title for name in table.metrics)
    return Rows(table.title, ("system", *header), tuple(rows))


def _published_cells(table: Table, averages: Sequence[float]) -> tuple[float | None, ...]:
    return (*(None for _ in table.directions), *averages) if table.is_by_direction else tuple(averages)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known and len(known) == len(values) else None


def as_markdown(rows: Rows) -> str:
    """The table in Markdown."""
    lines = [f"**{rows.title}**", "", "| " + " | ".join(rows.header) + " |"]
    lines.append("|---|" + "---:|" * (len(rows.header) - 1))
    lines += [f"| {name} | " + " | ".join(map(_cell, cells)) + " |" for name, cells in rows.rows]
    return "\n".join(lines)


def as_latex(rows: Rows) -> str:
    """The table in LaTeX, with booktabs."""
    lines = [r"\begin{table}", r"\centering", r"\begin{tabular}{l" + "r" * (len(rows.header) - 1) + "}", r"\toprule"]
    lines += [" & ".join(map(_escaped, rows.header)) + r" \\", r"\midrule"]
    lines += [" & ".join([_escaped(name), *map(_cell, cells)]) + r" \\" for name, cells in rows.rows]
    lines += [r"\bottomrule", r"\end{tabular}", rf"\caption{{{_escaped(rows.title)}}}", r"\end{table}"]
    return "\n".join(lines)


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _escaped(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", ">": r"\textgreater{}"}
    return "".join(special.get(c, rf"\{c}" if c in "&%$#_{}" else c) for c in text)
