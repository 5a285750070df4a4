"""The processes of one host's ranks: which has ended, by what, and which a signal has stopped."""

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from deltalm_ds.launch.ranks import STOPPED, Launcher

STOPPED_S = 10.0  # how long a process may be stopped
LOOK_FOR_RANKS_S = 1.0
_EXIT_CODE = 49  # field of /proc/PID/stat, counted from behind the name and the state: proc(5)'s exit_code


class RankProcesses:
    """What became of the ranks that a launcher started."""

    def __init__(self, launcher: Launcher, ranks: Sequence[int]) -> None:
        self._launcher, self._ranks = launcher, ranks
        self._pids: dict[int, psutil.Process] = {}
        self._codes: dict[int, int] = {}
        self._ended: set[int] = set()
        self._looked, self._sought = time.monotonic(), 0.0
        self._stopped_s: dict[psutil.Process, float] = {}
        self._told_stopped: set[psutil.Process] = set()

    def look(self) -> Iterator[dict[str, Any]]:
        """Messages on what is new."""
        now = time.monotonic()
        passed, self._looked = min(now - self._looked, 1.0), now  # time in which we were stopped does not count
        if len(self._pids) < len(self._ranks) and now - self._sought > LOOK_FOR_RANKS_S:
            self._sought = now
            self._find()
        for rank, process in self._pids.items():
            if rank not in self._ended and self._has_ended(rank, process):
                self._ended.add(rank)
                yield {"rank_ended": rank, "code": self._codes.get(rank)}
        yield from self._stopped(passed)

    def _find(self) -> None:
        for process in self._launcher.others():
            with suppress(psutil.Error, ValueError):
                rank = int(process.environ().get("RANK", ""))
                is_helper = process.ppid() != self._launcher.pid  # of a rank, whose environment it has
                if rank in self._ranks and not is_helper:
                    self._pids[rank] = process

    def _has_ended(self, rank: int, process: psutil.Process) -> bool:
        """A rank that has ended is a zombie until the launcher looks, at most for a second: it has the exit code."""
        try:
            text = Path(f"/proc/{process.pid}/stat").read_text()
            fields = text.rpartition(")")[2].split()
            if fields[0] not in ("Z", "X"):
                return False
            self._codes[rank] = _code_of(int(fields[_EXIT_CODE]))
            return True
        except (OSError, IndexError):
            return True

    def _stopped(self, passed: float) -> Iterator[dict[str, Any]]:
        """The launcher and the ranks, if a signal has stopped them for too long."""
        watched = [(None, self._launcher_process()), *self._pids.items()]
        for rank, process in watched:
            if process is None or process in self._told_stopped:
                continue
            with suppress(psutil.Error):
                is_stopped = process.status() in STOPPED
                self._stopped_s[process] = self._stopped_s.get(process, 0.0) + passed if is_stopped else 0.0
                if self._stopped_s[process] > STOPPED_S:
                    self._told_stopped.add(process)
                    yield {"stopped": rank, "pid": process.pid}

    def _launcher_process(self) -> psutil.Process | None:
        try:
            return psutil.Process(self._launcher.pid)
        except psutil.NoSuchProcess:
            return None


def _code_of(status: int) -> int:
    """An exit code, or the signal as a negative number, of what wait() gives."""
    return -(status & 0x7F) if status & 0x7F else status >> 8
