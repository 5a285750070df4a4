"""Where the time of a start goes, from the start of a rank's process to its first step."""

import time
from contextlib import suppress
from pathlib import Path

import psutil
from torch import distributed

from deltalm_ds.runs.events import record_event


class Startup:
    """Seconds of a start by part, by the clock and of all threads' CPU time; what went before is `imports`."""

    def __init__(self) -> None:
        self._since = psutil.Process().create_time(), 0.0
        self._seconds: dict[str, tuple[float, float]] = {}
        self._is_over = False
        self.ended("imports")

    def ended(self, part: str) -> None:
        """What was done since the last part was `part`."""
        now = time.time(), time.process_time()
        self._seconds[part] = now[0] - self._since[0], now[1] - self._since[1]
        self._since = now

    def first_step_ended(self, run: Path, step: int) -> None:
        """Let rank 0 record the start in the run's events; nothing at later steps."""
        if self._is_over:
            return
        self._is_over = True
        self.ended("first step")
        if distributed.get_rank() == 0:
            seconds, cpu_seconds = ({part: round(both[i], 2) for part, both in self._seconds.items()} for i in (0, 1))
            with suppress(OSError):  # a full disk is no reason to stop
                record_event(run, "started", step=step, seconds=seconds, cpu_seconds=cpu_seconds)
