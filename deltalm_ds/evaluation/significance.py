"""How far scores would differ with other sentences: bootstrap resampling, for all metrics alike [Koehn04].

A resample draws as many sentences as there are, with replacement; a score of it follows from the sums of what was
counted in its sentences. Draws are sacreBLEU's (its seed, its number), and the same for every metric and system.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp
from typing import TYPE_CHECKING

from deltalm_ds.evaluation.metrics.interface import Metric, Statistics

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

RESAMPLES = 1_000
SEED = 12_345
DRAWS_AT_ONCE = 1 << 22
LIKELY = 0.05  # a p below it is marked
TEST = f"paired bootstrap, two-sided, {RESAMPLES:,} resamples, seed {SEED}"


def resampled_scores(statistics: Sequence[Statistics]) -> "list[NDArray[np.float64]]":
    """The scores [RESAMPLES] of each, of the same sentences; all have counts of the same number of sentences.

    Draws follow from the number of sentences, so that those of two outputs for one test set are paired.
    """
    import numpy as np

    rows = np.hstack([each.rows for each in statistics])
    generator = np.random.default_rng(SEED)
    num_sentences, at_once = len(rows), max(1, DRAWS_AT_ONCE // len(rows))
    sums = np.empty((RESAMPLES, rows.shape[1]))
    for start in range(0, RESAMPLES, at_once):
        part = sums[start : start + at_once]
        drawn = generator.integers(num_sentences, size=(len(part), num_sentences))
        times = np.stack([np.bincount(sentences, minlength=num_sentences) for sentences in drawn])
        np.matmul(times.astype(np.float64), rows, out=part)
    widths = [each.rows.shape[1] for each in statistics]
    columns = np.split(sums, np.cumsum(widths)[:-1], axis=1)
    return [
        np.array([each.score_of(row) for row in own], dtype=np.float64)
        for each, own in zip(statistics, columns, strict=True)
    ]


def mean_of(resampled: "Sequence[NDArray[np.float64]]") -> "NDArray[np.float64]":
    """The resampled scores [RESAMPLES] of a mean over directions; draws of test sets of one length are the same."""
    import numpy as np

    return np.mean(resampled, axis=0)


def interval(scores: "NDArray[np.float64]") -> tuple[float, float]:
    """What 95 % of the resampled scores lie in: a fortieth is cut off at either end."""
    import numpy as np

    ordered = np.sort(scores)
    cut = len(ordered) // 40
    return float(ordered[cut]), float(ordered[len(ordered) - cut - 1])


def margin(interval: tuple[float, float] | None) -> str:
    """Half of an interval, as it stands behind a value; nothing where there is none."""
    return "" if interval is None else f" ±{(interval[1] - interval[0]) / 2:.2f}"


@dataclass(frozen=True)
class Difference:
    """What the second of two systems has more than the first.

    Attributes:
        value: of all sentences.
        interval: of 95 % of the resamples.
        p: how often a difference as large, either way, would come from the choice of sentences alone.
    """

    value: float
    interval: tuple[float, float]
    p: float


def difference(first: "NDArray[np.float64]", second: "NDArray[np.float64]", value: float) -> Difference:
    """The paired bootstrap test, two-sided: resampled differences, moved to a mean of zero, beside the true one.

    sacreBLEU's `--paired-bs` compares absolute differences less their mean, which counts one side only: where systems
    differ its p is about half of this, and for equal outputs it is the smallest there is instead of 1.

    Args:
        first, second: resampled scores of the same sentences.
        value: the difference of all sentences.
    """
    import numpy as np

    found = second - first
    rounding = 1e-9 * max(1.0, abs(value))
    as_large = int(np.sum(np.abs(found - found.mean()) >= abs(value) - rounding))
    return Difference(value, interval(found), (as_large + 1) / (len(found) + 1))


def agreement(metric: Metric, value: float) -> float | None:
    """In how many percent of pairs of translation systems with such a difference people agree with the metric.

    None where it was not measured; 50 would be chance, and little differences come below [Kocmi+24].
    """
    if metric.agreement is None:
        return None
    limit, slope = metric.agreement
    return limit / (1 + exp(-slope * abs(value)))
