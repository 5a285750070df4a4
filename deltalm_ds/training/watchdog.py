"""Who notices that a run hangs, says which rank keeps the others waiting, and ends it: a thread of every rank.

Each rank beats: once a second it writes into RUN/ranks what its main thread is at. A rank whose section takes longer
than its limit looks at the beats of the others. One that beats no more is stopped or dead; where all beat, the one that
is behind is stuck, and the others wait for it in a collective. A rank alone cannot see that it is stopped: what started
it reads the same files (`StoppedRanks`).

Clocks of hosts differ: a beat counts when it changes, by the clock of whoever looks.
"""

import faulthandler
import json
import os
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

import psutil

from deltalm_ds.errors import FAILED_EXIT_CODE
from deltalm_ds.recipe.training_section import LimitsSection
from deltalm_ds.runs.events import record_event
from deltalm_ds.runs.history import record_rank_end
from deltalm_ds.training.collectives import STARTED_BY, of_all_ranks
from deltalm_ds.training.sections import Section, Sections

BEATS = "ranks"  # of a run directory
BEAT_S = 1.0
BEAT_BYTES = 512
OBSERVED_S = 5.0  # how long a beat must stay the same before a rank counts as stopped
STARTER_WAITS_S = 14.0  # beyond a limit, for the ranks to say it themselves, with their stacks
WAIT_FOR_STACKS_S = 4.0  # from the verdict to the end: what ends first takes the others with it
HELD_S = 20.0  # beyond a limit: then this thread itself cannot run, as somebody holds Python's lock
MOST_REPORTS = 5  # of hangs that a run keeps
_STOPPED = (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
_LIMITS: dict[Section, str] = {"start": "start_s", "checkpoint": "checkpoint_s", "validation": "validation_s"}


@dataclass(frozen=True)
class Beat:
    """What a rank is at.

    Attributes:
        beat: counts.
        section, step, place: what it does; `place` counts the sections of the step so far, alike on all ranks.
        since_s: for how long it has been there while its watchdog was running.
        limit_s: how long it may be there.
        pid, host, started_by: which process it is, and which one started it (0: not known).
    """

    rank: int
    beat: int
    section: str
    step: int
    place: int
    since_s: float
    limit_s: float
    pid: int
    host: str
    started_by: int

    @property
    def is_over(self) -> bool:
        """Whether it has been there for longer than it may."""
        return self.since_s > self.limit_s

    def __str__(self) -> str:
        return f"rank {self.rank} (process {self.pid} on {self.host}, in {self.section} of step {self.step})"


def read_beats(run: Path) -> dict[int, Beat]:
    """The last beat of each rank that has a whole one."""
    beats = {}
    for path in (run / BEATS).glob("rank_*.json"):
        with suppress(OSError, ValueError, TypeError):
            beat = Beat(**json.loads(path.read_text()))
            beats[beat.rank] = beat
    return beats


def verdict(earlier: dict[int, Beat], now: dict[int, Beat]) -> str | None:
    """One sentence on who keeps a run from going on, from two looks OBSERVED_S apart; None if nobody does yet.

    The same beat twice means a stopped rank. Else the ranks that are behind are stuck if they are over their own
    limits: what the others wait for may just take its time.
    """
    still = [beat for rank, beat in now.items() if rank in earlier and earlier[rank].beat == beat.beat]
    if still:
        return f"Stopped, dead, or cut off: {_listed(still)}; the others wait for it."
    first = min((beat.step, beat.place) for beat in now.values())
    behind = [beat for beat in now.values() if (beat.step, beat.place) == first]
    if not all(beat.is_over for beat in behind):
        return None
    if len(behind) == len(now) > 1:
        return f"All ranks wait in the same place ({_listed(behind)}): for the network, or for a disk."
    others = [beat for beat in now.values() if beat not in behind]
    for_s = min(beat.since_s for beat in behind)
    return f"Stuck for {for_s:.0f} s: {_listed(behind)}" + (f"; waiting: {_listed(others)}." if others else ".")


def _listed(beats: list[Beat]) -> str:
    names = [str(beat) for beat in sorted(beats, key=lambda beat: beat.rank)]
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")


@contextmanager
def watched(run: Path, limits: LimitsSection, rank: int) -> Iterator[Sections]:
    """The clock for a rank's main thread, watched while the block runs. A collective.

    A process that gets SIGUSR2 prints the stacks of its threads.

    Args:
        limits: how long a rank may take for what.
    """
    if rank == 0:
        _tidy(run / BEATS)
    start = of_all_ranks(time.time_ns())[0]  # and nobody beats before the old beats are gone
    faulthandler.register(signal.SIGUSR2, all_threads=True)
    sections = Sections()
    watchdog = _Watchdog(run, sections, limits, rank, start)
    watchdog.start()
    try:
        yield sections
    finally:
        watchdog.end()


def _reports(run: Path) -> set[Path]:
    return set((run / BEATS).glob("stuck_*"))


def _tidy(directory: Path) -> None:
    """Remove what earlier starts left, but for the newest reports."""
    directory.mkdir(exist_ok=True)
    for beat in directory.glob("rank_*.json"):
        beat.unlink(missing_ok=True)
    for report in sorted(directory.glob("stuck_*"))[:-MOST_REPORTS]:
        shutil.rmtree(report, ignore_errors=True)


class _Watchdog(threading.Thread):
    """Beats for a rank; ends the process when the run hangs."""

    def __init__(self, run: Path, sections: Sections, limits: LimitsSection, rank: int, start: int) -> None:
        super().__init__(name="watchdog", daemon=True)
        self._run, self._sections, self._limits, self._rank = run, sections, limits, rank
        self._path = run / BEATS / f"rank_{rank:05d}.json"
        self._report = run / BEATS / f"stuck_{start}"  # who makes it speaks for all
        self._started_by = int(os.environ.get(STARTED_BY) or 0)
        self._ended = threading.Event()
        self._beat, self._since_s, self._at, self._ticked = 0, 0.0, sections.current, time.monotonic()
        self._observed: tuple[float, dict[int, Beat], dict[int, Beat]] | None = None  # since when, first and last beats

    def end(self) -> None:
        """The rank has done its work."""
        self._ended.set()
        self.join()
        faulthandler.cancel_dump_traceback_later()
        with suppress(OSError):
            self._path.unlink()

    def run(self) -> None:
        """Beat until the end."""
        while not self._ended.wait(BEAT_S):
            beat = self._tick()
            # A thread of the C library, which needs no lock: for the case that this one is not let run any more.
            left = max(beat.limit_s - beat.since_s, 0.0) + OBSERVED_S + WAIT_FOR_STACKS_S + HELD_S
            faulthandler.dump_traceback_later(left, exit=True)
            with suppress(OSError):  # a disk that is full, say, is no reason to stop
                self._write(beat)
            with suppress(OSError):
                if self._report.exists():
                    self._dump_and_exit()
                self._look(beat)

    def _tick(self) -> Beat:
        """What the rank is at; time in which the process was stopped itself does not count."""
        now, at = time.monotonic(), self._sections.current
        step, place = self._sections.position
        self._since_s = self._since_s + min(now - self._ticked, 2 * BEAT_S) if at == self._at else 0.0
        self._at, self._ticked, self._beat = at, now, self._beat + 1
        return Beat(
            self._rank,
            self._beat,
            at[0],
            step,
            place,
            self._since_s,
            getattr(self._limits, _LIMITS.get(at[0], "step_s")),
            os.getpid(),
            socket.gethostname(),
            self._started_by,
        )

    def _write(self, beat: Beat) -> None:
        """In place, and as long each time: clients of a network file system see another content at once, but another
        file only after a while, and nobody reads a part.
        """
        file = os.open(self._path, os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            os.pwrite(file, f"{json.dumps(asdict(beat)):{BEAT_BYTES - 1}}\n".encode(), 0)
        finally:
            os.close(file)

    def _look(self, own: Beat) -> None:
        """Once over the limit, watch all ranks for a while, find out who is stuck, and end the run."""
        if not own.is_over:
            self._observed = None
            return
        beats = read_beats(self._run) | {self._rank: own}
        if self._observed is None:
            self._observed = time.monotonic(), beats, dict(beats)
        began, first, last = self._observed
        for rank, beat in beats.items():
            first.setdefault(rank, beat)
            last[rank] = beat
        if time.monotonic() - began >= OBSERVED_S:
            self._observed = None
            if found := verdict(first, last):
                self._accuse(found, last)

    def _accuse(self, found: str, beats: dict[int, Beat]) -> None:
        """Say who is stuck, unless another rank was faster, and end."""
        try:
            self._report.mkdir()
            record_event(self._run, "stuck", fault=found, step=min(beat.step for beat in beats.values()))
            record_rank_end(self._run, self._rank, FAILED_EXIT_CODE, found)
        except FileExistsError:
            self._dump_and_exit()
        except OSError:
            pass  # a disk that does not answer: then stderr alone has it
        _say(f"{found} The run ends; the stacks of its ranks are in {self._report}. The same command goes on.")
        self._dump_and_exit(wait_s=WAIT_FOR_STACKS_S)

    def _dump_and_exit(self, wait_s: float = 0.0) -> NoReturn:
        """Leave the stacks of this rank in the report and on stderr; the process is over then."""
        _say(f"rank {self._rank}: the stacks of its threads:")
        faulthandler.dump_traceback(all_threads=True)
        with suppress(OSError), open(self._report / f"rank_{self._rank:05d}.txt", "w") as file:
            faulthandler.dump_traceback(file, all_threads=True)
        time.sleep(wait_s)
        os._exit(FAILED_EXIT_CODE)


def _say(message: str) -> None:
    print(f"deltalm: {message}", file=sys.stderr, flush=True)


class StoppedRanks:
    """For whoever started ranks on this machine: those that a signal has stopped for longer than they may rest."""

    def __init__(self, run: Path) -> None:
        self._run, self._looked, self._known_reports = run, time.monotonic(), _reports(run)
        self._still_s: dict[int, float] = {}
        self._beats: dict[int, Beat] = {}
        self._found = False

    def found(self) -> bool:
        """Whether there are any, for so long that no other rank will say so; it is said here. Looks once a second."""
        now = time.monotonic()
        if self._found or now - self._looked < BEAT_S:
            return self._found
        passed, self._looked = min(now - self._looked, 2 * BEAT_S), now  # time in which we were stopped does not count
        own = {rank: beat for rank, beat in read_beats(self._run).items() if beat.started_by == os.getpid()}
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
        if _reports(self._run) - self._known_reports:
            return  # another rank was faster
        found = f"Stopped by a signal: {_listed(stopped)}."
        with suppress(OSError):
            record_event(self._run, "stuck", fault=found, step=stopped[0].step)
            record_rank_end(self._run, stopped[0].rank, FAILED_EXIT_CODE, found)
        _say(f"{found} The run ends. The same command goes on.")


def _is_stopped(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() in _STOPPED
    except psutil.Error:
        return False
