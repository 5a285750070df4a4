"""What came of the runs of a study: scores on test by seed, how sure differences are, and curves on dev."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from benchmarks.quality.captions import LANGUAGES, LINES, POOR, RICH
from benchmarks.quality.figures import FIGURES, curves
from benchmarks.quality.study import Study
from benchmarks.recording import report, table
from deltalm_ds.evaluation.metrics.interface import References
from deltalm_ds.evaluation.scores import DirectionScore, DirectionScorer
from deltalm_ds.evaluation.significance import difference, mean_of
from deltalm_ds.evaluation.test_sets import TestSet, read_test_sets
from deltalm_ds.runs.metrics import read_metrics

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

METRICS = {"bleu": "BLEU", "chrf": "chrF", "off_target": "off-target %"}
GROUPS = {"rich": RICH, "poor": POOR}


@dataclass(frozen=True)
class Outcome:
    """What came of one system.

    Attributes:
        what: it is, in words.
        runs: one a seed.
        scores: of each run, by direction.
        seconds: of a processor, for training a run, the mean.
        seconds_before: of what all runs start from.
    """

    what: str
    runs: Sequence[Path]
    scores: Sequence[Mapping[str, DirectionScore]]
    seconds: float
    seconds_before: float

    def by_seed(self, metric: str, others: Sequence[str] = (*RICH, *POOR)) -> list[float]:
        """Of each run the mean over both directions of English with these languages."""
        directions = [direction for other in others for direction in (f"en-{other}", f"{other}-en")]
        return [fmean(scores[direction].scores[metric] for direction in directions) for scores in self.scores]

    @cached_property
    def resampled_bleu(self) -> "NDArray[np.float64]":
        """Means over all directions and seeds; a resample has the same sentences of all, which share a test set."""
        return mean_of([score.resampled["bleu"] for scores in self.scores for score in scores.values()])

    def curve(self) -> dict[int, float]:
        """BLEU on dev by the step, greedy, the mean over directions and seeds."""
        runs = [
            {record["step"]: record["bleu"] for record in read_metrics(run) if record["kind"] == "validation"}
            for run in self.runs
        ]
        return {step: fmean(run[step] for run in runs) for step in runs[0]}


def outcome(study: Study, what: str, runs: Sequence[str], seconds_before: float = 0.0) -> Outcome:
    """Translate test with the last checkpoint of each run, beam 5, where that is not done, and score it."""
    tests = read_test_sets(study.path("text"), "test")
    scores = []
    for run in runs:
        model = max((study.path(run) / "checkpoints").glob("step_*"))
        options = ("--data", "text", "--directions", "all", "--beam", 5, "--max-length", 100)
        out = study.deltalm(f"evaluation/{run}", "evaluate", model, *options)
        scores.append({test.direction: _score(test, out / f"{test.direction}.hyp") for test in tests})
    seconds = fmean(map(study.seconds, runs))
    return Outcome(what, [study.path(run) for run in runs], scores, seconds, seconds_before)


def _score(test: TestSet, outputs: Path) -> DirectionScore:
    references = References(test.references, test.target_lang, languages=LANGUAGES)
    return DirectionScorer(test.direction, references, METRICS).score(outputs.read_text(encoding="utf-8").splitlines())


def show(
    arguments: argparse.Namespace, title: str, outcomes: Sequence[Outcome], pairs: Sequence[tuple[int, int]]
) -> None:
    """Print and record three tables.

    Args:
        arguments: of the command line.
        title: of the record.
        outcomes: a row each.
        pairs: of outcomes that are compared, by their numbers.
    """
    compared = [_comparison(outcomes[first], outcomes[second]) for first, second in pairs]
    on_dev = [
        {"BLEU on dev at step": each.what, **{f"{step:,}": bleu for step, bleu in each.curve().items()}}
        for each in outcomes
    ]
    groups = "; ".join(f"{group}: {', '.join(languages)}" for group, languages in GROUPS.items())
    notes = [
        f"Means over {len(outcomes[0].runs)} seeds ± their standard deviation, of English with each language both ways "
        f"({groups}); {LINES['test']} sentences of test, beam 5.",
        "Mean BLEU of all directions: differences, what 95 % of the paired bootstrap's resamples of sentences lie in, "
        "all seeds together, and the difference of each seed.",
        "\n".join(table(compared)),
        "\n".join(table(on_dev)),
    ]
    if arguments.record:
        _draw(title, outcomes)
    command = " ".join([f"python -m benchmarks.quality.{Path(sys.argv[0]).stem}", *sys.argv[1:]])
    report(arguments, title, command, [_row(each) for each in outcomes], notes)


def _draw(title: str, outcomes: Sequence[Outcome]) -> None:
    """BLEU on dev by steps; and by minutes, where some begin later for what they start from."""
    name = title.lower().replace(" ", "_")
    by_step = {each.what: [(float(step), bleu) for step, bleu in each.curve().items()] for each in outcomes}
    curves(FIGURES / f"{name}.svg", "step", "BLEU on dev", by_step)
    if any(each.seconds_before for each in outcomes):
        by_minute = {
            each.what: [
                ((each.seconds_before + each.seconds * step / max(each.curve())) / 60, bleu)
                for step, bleu in each.curve().items()
            ]
            for each in outcomes
        }
        curves(
            FIGURES / f"{name}_by_time.svg", "minutes of a processor, pre-training included", "BLEU on dev", by_minute
        )


def _row(each: Outcome) -> dict[str, Any]:
    cells = {
        f"{heading}, {group}": mean_and_deviation(each.by_seed(metric, languages))
        for metric, heading in METRICS.items()
        for group, languages in GROUPS.items()
    }
    return {"system": each.what, **cells, "CPU s": each.seconds, "CPU s before": each.seconds_before}


def mean_and_deviation(values: Sequence[float]) -> str:
    """`12.34 ± 0.56`, the standard deviation of a sample; a single value without."""
    return f"{fmean(values):.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


def _comparison(first: Outcome, second: Outcome) -> dict[str, Any]:
    seeds = [after - before for before, after in zip(first.by_seed("bleu"), second.by_seed("bleu"), strict=True)]
    found = difference(first.resampled_bleu, second.resampled_bleu, fmean(seeds))
    return {
        "from": first.what,
        "to": second.what,
        "BLEU": f"{found.value:+.2f}",
        "95 %": f"{found.interval[0]:+.2f} to {found.interval[1]:+.2f}",
        "p": f"{found.p:.3f}",
        "by seed": ", ".join(f"{value:+.2f}" for value in seeds),
    }
