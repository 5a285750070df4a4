"""How often to save where hosts fail: the interval of Young [Young74] in the higher order of Daly [Daly06].

Training waits for a copy of weights and moments only (`training/checkpoint_writer.py`); threads write it beside the
next steps, and one save is under way at a time, so that an interval is at least as long as the writing.
"""

import math
from typing import NamedTuple

GPU_HOURS_A_FAILURE = 50_000.0  # 419 in 54 days of 16,384 H100 [Grattafiori+24 §3.3.4]
COPY_RATE = 10e9  # bytes a second from a GPU to its host's memory: 63 % of PCIe 3.0; assumed
WRITE_RATE = 1e9  # bytes a second of a host to the shared file system; assumed
RESTART_S = 180.0  # from a failure to the first step of the next start; assumed


class Saving(NamedTuple):
    """Seconds between saves, those that training waits for one, and the share of all time that failures cost."""

    interval: float
    copying: float
    writing: float
    lost_share: float


def daly_interval(cost: float, mean_time_between_failures: float) -> float:
    """Seconds of work between saves that cost so many seconds each, for the least time in all [Daly06 §3, eq. 37]."""
    if cost >= 2 * mean_time_between_failures:
        return mean_time_between_failures
    ratio = math.sqrt(cost / (2 * mean_time_between_failures))
    return math.sqrt(2 * cost * mean_time_between_failures) * (1 + ratio / 3 + ratio**2 / 9) - cost


def saving(checkpoint_bytes: int, hosts: int, ranks: int, gpu_hours_a_failure: float) -> Saving:
    """How often to save on so many hosts.

    Args:
        checkpoint_bytes: of a checkpoint, which the ranks share.
        hosts: that write it.
        ranks: GPUs, each of which fails once in `gpu_hours_a_failure` hours, with its host and all between them.
        gpu_hours_a_failure: mean time between failures of one GPU.
    """
    between = gpu_hours_a_failure * 3600 / ranks
    copying, writing = checkpoint_bytes / ranks / COPY_RATE, checkpoint_bytes / hosts / WRITE_RATE
    interval = max(daly_interval(copying, between), writing)
    # each failure takes the work since the checkpoint that was whole by then, and a restart
    return Saving(interval, copying, writing, copying / interval + (interval / 2 + writing + RESTART_S) / between)
