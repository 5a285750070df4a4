"""A suite: all test sets of a task by several systems, scored as the paper does.

`suite_tables.py` has the layout of the paper's tables. `results.jsonl` has a line for every score, with all that is
needed to reproduce it, and `hypotheses/` the outputs, as `deltalm compare` reads them.
"""

import hashlib
import json
import platform
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from deltalm_ds import __version__
from deltalm_ds.data_tools.workers import Workers
from deltalm_ds.errors import DataError, InputError, nearest
from deltalm_ds.evaluation.kept_outputs import KeptOutputs
from deltalm_ds.evaluation.kept_scores import KeptScores, count
from deltalm_ds.evaluation.scores import DirectionScore
from deltalm_ds.evaluation.significance import Difference, difference
from deltalm_ds.evaluation.systems import System, Unable, check_files, file_name
from deltalm_ds.evaluation.tasks import find_task
from deltalm_ds.evaluation.tasks.interface import Form, Task
from deltalm_ds.evaluation.tasks.prepare import Prepared
from deltalm_ds.evaluation.test_sets import TestSet, read_test_sets
from deltalm_ds.files import atomic_file, finite
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
            DataError: what describes it is not as it was written.
        """
        task, prepared = find_task(name), Prepared.read(directory)
        if prepared.task != name:
            raise InputError(f"{directory} was prepared for {prepared.task}, not for {name}.")
        forms = {form.name: form for form in task.forms}
        if prepared.form not in forms:
            raise DataError(f"{directory} is of a form {prepared.form!r} that {name} has not: prepare it again.")
        return cls(task, forms[prepared.form], Path(directory), tuple(prepared.warnings))

    @property
    def languages(self) -> list[str]:
        """All that its form has, which a model may mistake for each other."""
        return sorted({language for part in self.form.parts for language in part.languages})

    def test_sets(self, split: str | None = None, directions: Sequence[str] | None = None) -> list[TestSet]:
        """Its test sets; of the split that the paper scores, unless another is named."""
        return read_test_sets(self.directory / "text", split or self.task.split, directions)


@dataclass(frozen=True)
class Result:
    """The scores of a system on a test set, and what they come from.

    Attributes:
        identity: what tells the system's outputs from any other's.
        data: SHA-256 of the test set.
        baseline: of the system that this one is compared with; None for that system itself, or where it has no outputs.
    """

    system: System
    identity: str
    data: str
    score: DirectionScore
    baseline: DirectionScore | None = None

    @cached_property
    def differences(self) -> dict[str, Difference]:
        """From the baseline, by the metric's name."""
        if self.baseline is None:
            return {}
        theirs = self.baseline.resampled
        return {
            name: difference(theirs[name], own, self.score.scores[name] - self.baseline.scores[name])
            for name, own in self.score.resampled.items()
        }

    def as_dict(self, prepared: PreparedTask, options: SearchOptions) -> dict[str, Any]:
        """All that is needed to reproduce the scores."""
        return {
            "task": prepared.task.name,
            "form": prepared.form.name,
            "system": self.system.name,
            "identity": self.identity,
            **self.system.origin,
            "data_sha256": self.data,
            "search": asdict(options),
            **self.score.as_dict(),
            "differences": {name: asdict(each) for name, each in self.differences.items()},
            "versions": {
                "deltalm_ds": __version__,
                "sacrebleu": version("sacrebleu"),
                "torch": version("torch"),
                "python": platform.python_version(),
            },
        }


def run_suite(
    systems: Sequence[System],
    test_sets: Sequence[TestSet],
    options: SearchOptions,
    metrics: Iterable[str],
    out: Path,
    baseline: str,
    workers: Workers,
    languages: Sequence[str] = (),
) -> list[Result]:
    """Outputs of every system for every test set, kept in `out`, and their scores.

    A system that cannot do a direction is told on stderr, and has no result there.

    Args:
        systems: that are compared.
        test_sets: of a task.
        options: of the search of models.
        metrics: names from `METRICS`.
        out: a directory; what it holds from earlier runs is used.
        baseline: the name of the system that the others are compared with.
        workers: what translates and scores.
        languages: those that an output may be in by mistake; none for any.

    Raises:
        InputError: a metric lacks something, or outputs are not as many as sources, before anything is translated; no
            system has the baseline's name; a process died.
    """
    names = [system.name for system in systems]
    if baseline not in names:
        raise InputError(f"There is no system {baseline!r} here, the nearest is {nearest(baseline, names)!r}.")
    kept, scores = KeptOutputs(out / "outputs", options), out / "scores"
    metrics = tuple(metrics)
    scorers = {test.direction: KeptScores(scores, test, metrics, languages) for test in test_sets}
    check_files(systems, test_sets)
    able = [(system, test) for system in systems for test in test_sets if _is_able(system, test)]
    for directory in (out / "outputs", scores):
        directory.mkdir(parents=True, exist_ok=True)
    kept.make(able, workers)
    made = [(system, test, kept.read(system, test)) for system, test in able]
    for system, test, each in made:
        _write_lines(out / "hypotheses" / file_name(system) / f"{test.direction}.hyp", each.hypotheses)
    count((part for _, test, each in made for part in scorers[test.direction].parts(each.hypotheses)), workers)
    found = {
        (system.name, test.direction): scorers[test.direction].read(each.hypotheses, each.seconds)
        for system, test, each in made
    }
    return [
        Result(
            system,
            system.identity(test.direction),
            data_hash(test),
            found[system.name, test.direction],
            None if system.name == baseline else found.get((baseline, test.direction)),
        )
        for system, test in able
    ]


def write_results(results: Sequence[Result], prepared: PreparedTask, options: SearchOptions, out: Path) -> None:
    """Write `results.jsonl`, a line for every result.

    Args:
        results: of `run_suite`.
        prepared: the task.
        options: of the search.
        out: the directory of the suite.
    """
    with atomic_file(out / "results.jsonl") as file:
        for result in results:
            line = finite(result.as_dict(prepared, options))
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def data_hash(test: TestSet) -> str:
    """SHA-256 of the sources and all references of a test set."""
    content = [test.direction, list(test.sources), list(test.references), list(map(list, test.further_references))]
    return hashlib.sha256(json.dumps(content, ensure_ascii=False).encode()).hexdigest()


def _is_able(system: System, test: TestSet) -> bool:
    try:
        system.check(test)
    except Unable as error:
        print(f"{system.name}, {test.direction}: nothing, as {error}", file=sys.stderr)
        return False
    return True


def _write_lines(path: Path, lines: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        file.writelines(f"{line}\n" for line in lines)
