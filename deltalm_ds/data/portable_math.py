"""Powers and sums that every CPU computes alike, to the last bit: ranks on hosts of different make agree on every draw.

Only + − · / and rounding are exact by standard; powers, logarithms and sums of vectors are not (numpy and libm choose
code by CPU). Hence the exponential function below, logarithms in decimal arithmetic, and sums in a stated order.
"""

import math
from decimal import Context, Decimal

import numpy as np
from numpy.typing import ArrayLike

LOG_HIGH = 0x162E42FEE / 2**37  # the first 33 bits of ln(2) / 16, and the rest
LOG_LOW = 1.9082149292705877e-10 / 16
SIXTEENTH_POWERS = np.array([float(Context(prec=30).power(2, Decimal(j) / 16)) for j in range(16)])


def log_shares(sizes: ArrayLike) -> np.ndarray:
    """ln(n_i / max n) of sizes [K] > 0, float64: relative to the largest, so that no power of it can overflow."""
    logs = [Context(prec=30).ln(Decimal(size)) for size in np.asarray(sizes).tolist()]
    return np.array([float(log - max(logs)) for log in logs])


def ordered_sum(values: np.ndarray) -> np.ndarray:
    """The sum over the last axis, taken from left to right: numpy's own order, and BLAS's, depend on the CPU."""
    return np.cumsum(values, axis=-1)[..., -1]


def exponential(values: np.ndarray) -> np.ndarray:
    """e^x for x <= 0, to about one unit in the last place."""
    # e^x = 2^(k/16) · e^r with |r| <= ln(2) / 32, where the series has converged after 7 terms. ln(2) / 16 is taken in
    # two parts, the first with so few bits that its product with k is exact.
    values = np.maximum(values, -1000.0)  # far below the least positive float
    k = np.rint(values * (1 / (LOG_HIGH + LOG_LOW)))
    r = (values - k * LOG_HIGH) - k * LOG_LOW
    series = np.full_like(r, 1 / math.factorial(7))
    for n in range(6, -1, -1):
        series *= r
        series += 1 / math.factorial(n)
    whole, sixteenths = np.divmod(k.astype(np.int64), 16)
    return np.ldexp(series * SIXTEENTH_POWERS[sixteenths], whole)
