"""How good translations were: the metrics of the validations and those of `deltalm evaluate`, by direction."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from deltalm_ds.report.page import note, table
from deltalm_ds.report.records import Record, names_in, points_in, validation_metrics


@dataclass(frozen=True)
class Metric:
    """What a page says of a metric: its title and which values are the better ones; None if neither are."""

    title: str
    higher_is_better: bool | None


class Described(Protocol):
    """A row of whatever table of metrics there is."""

    @property
    def title(self) -> str:
        """In tables."""

    @property
    def higher_is_better(self) -> bool | None:
        """None if neither end is."""


@dataclass(frozen=True)
class Column:
    """A column of the table: a value for each direction that has one."""

    title: str
    values: dict[str, float]
    averaged: bool = True


KNOWN_METRICS: Mapping[str, Described] = {"bleu": Metric("BLEU", True), "chrf": Metric("chrF2", True)}


def described_metrics(evaluation: Record, known: Mapping[str, Described]) -> dict[str, Metric]:
    """The metrics, by name, that are known and those that an evaluation (empty if there is none) describes itself."""
    described = evaluation.get("metrics", {}).items()
    metrics = {name: Metric(metric.title, metric.higher_is_better) for name, metric in known.items()}
    return metrics | {name: Metric(facts["title"], facts["higher_is_better"]) for name, facts in described}


def quality_table(validation: Sequence[Record], evaluation: Record, metrics: dict[str, Metric]) -> str:
    """A row for each direction, and their averages; below, the signatures of the test's metrics.

    `evaluation` is the content of evaluation.json, empty if there is none; `metrics` is what is known of them.
    """
    found = [*_validation_columns(validation, metrics), *_test_columns(evaluation, metrics)]
    columns = [column for column in found if column.values]
    directions = dict.fromkeys(direction for column in columns for direction in column.values)
    rows = [[direction, *(column.values.get(direction) for column in columns)] for direction in directions]
    if len(rows) > 1:
        rows.append(["average", *(_mean(column.values.values()) if column.averaged else None for column in columns)])
    notes = [note(text) for text in _signatures(evaluation, metrics)]
    return table(["direction", *(column.title for column in columns)], rows) + "".join(notes)


def _validation_columns(validation: Sequence[Record], metrics: dict[str, Metric]) -> Iterator[Column]:
    """Of each metric the last value and, where it is known which are better, the best one and its step."""
    for name in validation_metrics(validation):
        group = f"{name}_of"
        points = {direction: points_in(validation, group, direction) for direction in names_in(validation, group)}
        points = {direction: found for direction, found in points.items() if found}
        title = metrics[name].title if name in metrics else name
        yield Column(f"validation {title}, last", {direction: found[-1][1] for direction, found in points.items()})
        if name in metrics and metrics[name].higher_is_better is not None:
            sign = 1 if metrics[name].higher_is_better else -1
            best = {d: max(found, key=lambda point: sign * point[1]) for d, found in points.items()}
            yield Column("best", {direction: value for direction, (_, value) in best.items()})
            yield Column("at step", {direction: step for direction, (step, _) in best.items()}, averaged=False)


def _test_columns(evaluation: Record, metrics: dict[str, Metric]) -> Iterator[Column]:
    tested = {score["direction"]: _scores(score, metrics) for score in evaluation.get("directions", [])}
    for name in dict.fromkeys(name for scores in tested.values() for name in scores):
        title = metrics[name].title if name in metrics else name
        yield Column(f"test {title}", {d: scores[name] for d, scores in tested.items() if name in scores})


def _scores(score: Record, metrics: dict[str, Metric]) -> dict[str, float]:
    """The values by metric of one direction, which stand in a group of their own or beside the rest."""
    return score["scores"] if "scores" in score else {name: score[name] for name in metrics if name in score}


def _signatures(evaluation: Record, metrics: dict[str, Metric]) -> list[str]:
    """What makes the test's values comparable: a line for each signature that a metric has."""
    found = evaluation.get("signatures")
    if found is None:
        scores = evaluation.get("directions", [])
        found = {name: [s[key] for s in scores if (key := f"{name}_signature") in s] for name in metrics}
    return [
        f"test {metrics[name].title if name in metrics else name}: {signature}"
        for name, signatures in found.items()
        for signature in sorted(set(signatures))
    ]


def _mean(values: Iterable[float]) -> float | None:
    present = list(values)
    return sum(present) / len(present) if present else None
