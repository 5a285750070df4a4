"""A rank cannot see that a signal has stopped it: whoever started it on its host looks. Imports no torch."""

import os
import socket
import time
from contextlib import suppress
from pathlib import Path

import psutil

from deltalm_ds.launch.ranks import STOPPED
from deltalm_ds.runs.beats import BEAT_S, Beat, listed, read_beats, reports
from deltalm_ds.runs.history import record_stuck
from deltalm_ds.streams import say

STARTER_WAITS_S = 14.0  # beyond a limit, for the ranks to say it themselves, with their stacks


class StoppedRanks:
    """The ranks that this process started and a signal has stopped for longer than they may rest.

    Args:
        run: the run directory.
    """

    def __init__(self, run: Path) -> None:
        self._run, self._known_reports = run, reports(run)
        self._looked, self._here = time.monotonic(), (socket.gethostname(), os.getpid())
        self._still_s: dict[int, float] = {}
        self._beats: dict[int, Beat] = {}
        self._found = False

    def found(self) -> bool:
        """Whether there are any, for so long that no other rank will say so; it is said here. Looks once a second."""
        now = time.monotonic()
        if self._found or now - self._looked < BEAT_S:
            return self._found
        passed, self._looked = min(now - self._looked, 2 * BEAT_S), now  # time in which we were stopped does not count
        beats = read_beats(self._run)
        own = {rank: beat for rank, beat in beats.items() if (beat.host, beat.started_by) == self._here}
        for rank, beat in own.items():
            still = rank in self._beats and self._beats[rank].beat == beat.beat and _is_stopped(beat.pid)
            self._still_s[rank] = self._still_s.get(rank, 0.0) + passed if still else 0.0
        self._beats |= own
        stopped = [beat for rank, beat in own.items() if self._still_s[rank] > beat.limit_s + STARTER_WAITS_S]
        if stopped:
            self._found = True
            self._say_who(stopped)
        return self._found

    def _say_who(self, stopped: list[Beat]) -> None:
        if reports(self._run) - self._known_reports:
            return  # another rank was faster
        found = f"Stopped by a signal: {listed(stopped)}."
        with suppress(OSError):
            record_stuck(self._run, found, stopped)
        say(f"{found} The run ends. The same command goes on.")


def _is_stopped(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() in STOPPED
    except psutil.Error:
        return False
