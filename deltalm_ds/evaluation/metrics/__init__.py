"""The table of metrics: how good generated text is. A new one is a file here, a row, and its test."""

from collections.abc import Iterable

from deltalm_ds.errors import InputError, nearest
from deltalm_ds.evaluation.metrics import (
    bleu,
    chrf,
    chrf_plus_plus,
    comet,
    copy_rate,
    distinct,
    exact_match,
    length_ratio,
    meteor,
    meteor_1_5,
    off_target,
    rouge,
    ter,
)
from deltalm_ds.evaluation.metrics.interface import Metric

METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        bleu.METRIC,
        chrf.METRIC,
        chrf_plus_plus.METRIC,
        ter.METRIC,
        *rouge.METRICS,
        meteor.METRIC,
        meteor_1_5.METRIC,
        *comet.METRICS,
        exact_match.METRIC,
        *distinct.METRICS,
        copy_rate.METRIC,
        length_ratio.METRIC,
        off_target.METRIC,
    )
}
DEFAULT_METRICS = ("bleu", "chrf")


def find_metric(name: str) -> Metric:
    """The metric of a name; InputError with the nearest name if there is none."""
    if name not in METRICS:
        raise InputError(
            f"There is no metric {name!r}, the nearest is {nearest(name, METRICS)!r}: {', '.join(METRICS)}."
        )
    return METRICS[name]


def find_metrics(names: Iterable[str]) -> list[Metric]:
    """The metrics of some names; InputError if there is none, one is unknown, or one is named twice."""
    metrics = [find_metric(name) for name in names]
    if not metrics or len(set(metrics)) < len(metrics):
        raise InputError(f"Name each metric once, and at least one, of {', '.join(METRICS)}.")
    return metrics


def higher_is_better(name: str) -> bool:
    """Which end of a metric is the better one, for ranking; InputError if there is no such metric, or neither is."""
    direction = find_metric(name).higher_is_better
    if direction is None:
        raise InputError(f"{name} has no better end, so that nothing is ranked by it: take another metric.")
    return direction
