"""The table of metrics: how good generated text is. A new one is a file here, a row, and its test."""

import difflib
from collections.abc import Iterable

from deltalm_ds.errors import InputError
from deltalm_ds.evaluation.metrics import bleu, chrf, chrf_plus_plus, ter
from deltalm_ds.evaluation.metrics.interface import Metric

METRICS: dict[str, Metric] = {module.METRIC.name: module.METRIC for module in (bleu, chrf, chrf_plus_plus, ter)}
DEFAULT_METRICS = ("bleu", "chrf")


def find_metric(name: str) -> Metric:
    """The metric of a name; InputError with the nearest name if there is none."""
    if name not in METRICS:
        nearest = difflib.get_close_matches(name, METRICS, n=1, cutoff=0.0)[0]
        raise InputError(f"There is no metric {name!r}, the nearest is {nearest!r}: {', '.join(METRICS)}.")
    return METRICS[name]


def find_metrics(names: Iterable[str]) -> list[Metric]:
    """The metrics of some names; InputError if there is none, one is unknown, or one is named twice."""
    metrics = [find_metric(name) for name in names]
    if not metrics or len(set(metrics)) < len(metrics):
        raise InputError(f"Name each metric once, and at least one, of {', '.join(METRICS)}.")
    return metrics
