"""Who notices that a run hangs, says which rank keeps the others waiting, and ends it: a thread of every rank.

Each rank beats: once a second it writes into RUN/ranks what its main thread is at. A rank whose section takes longer
than its limit looks at the beats of the others. One that beats no more is stopped or dead; where all beat, the one that
is behind is stuck, and the others wait for it in a collective. A rank alone cannot see that it is stopped: what started
it reads the same files (`launch/stopped.py`). One whose attempt is over ends at its next beat.

A run directory that does not answer (a file system's server is gone, say) holds whoever touches it. All that is read
and written there is therefore another thread's, and the one that keeps the time says on stderr where that one waits.
"""

import faulthandler
import os
import shutil
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, NoReturn

from deltalm_ds.errors import FAILED_EXIT_CODE
from deltalm_ds.recipe.training_section import LimitsSection
from deltalm_ds.runs.attempts import end_if_taken_over, own_attempt
from deltalm_ds.runs.beats import BEAT_S, BEATS, Beat, beat_path, listed, read_beats, remove_beats, reports, write_beat
from deltalm_ds.runs.history import record_stuck
from deltalm_ds.runs.silence import Silence
from deltalm_ds.runs.starter import STARTED_BY
from deltalm_ds.streams import say
from deltalm_ds.training.collectives import of_all_ranks
from deltalm_ds.training.sections import Section, Sections

OBSERVED_S = 5.0  # how long a beat must stay the same before a rank counts as stopped
WAIT_FOR_STACKS_S = 4.0  # from the verdict to the end: what ends first takes the others with it
# Beyond a limit: then this thread itself cannot run, as somebody holds Python's lock. That clock goes on where a run is
# stopped whole (`scontrol suspend`): with little more than the limit it would end the run as it wakes.
HELD_S = 6 * 3600.0
MOST_REPORTS = 5  # of hangs that a run keeps
_LIMITS: dict[Section, str] = {"start": "start_s", "checkpoint": "checkpoint_s", "validation": "validation_s"}


class Verdict(NamedTuple):
    """One sentence on who keeps a run from going on, and who that is; nobody where all wait in the same place."""

    fault: str
    blamed: list[Beat]


def verdict(earlier: dict[int, Beat], now: dict[int, Beat]) -> Verdict | None:
    """Who keeps a run from going on, from two looks OBSERVED_S apart; None if nobody does yet.

    The same beat twice means a stopped rank. Else the ranks that are behind are stuck if they are over their own
    limits: what the others wait for may just take its time.
    """
    still = [beat for rank, beat in now.items() if rank in earlier and earlier[rank].beat == beat.beat]
    if still:
        return Verdict(f"Stopped, dead, or cut off: {listed(still)}; the others wait for it.", still)
    first = min((beat.step, beat.place) for beat in now.values())
    behind = [beat for beat in now.values() if (beat.step, beat.place) == first]
    if not all(beat.is_over for beat in behind):
        return None
    if len(behind) == len(now) > 1:
        return Verdict(f"All ranks wait in the same place ({listed(behind)}): for the network, or for a disk.", [])
    others = [beat for beat in now.values() if beat not in behind]
    for_s = min(beat.since_s for beat in behind)
    waiting = f"; waiting: {listed(others)}." if others else "."
    return Verdict(f"Stuck for {for_s:.0f} s: {listed(behind)}{waiting}", behind)


@contextmanager
def watched(run: Path, limits: LimitsSection, rank: int) -> Iterator[Sections]:
    """The clock for a rank's main thread, watched while the block runs. A collective.

    A process that gets SIGUSR2 prints the stacks of its threads.

    Args:
        limits: how long a rank may take for what.
    """
    if rank == 0:
        _tidy(run)
    start = of_all_ranks(time.time_ns())[0]  # and nobody beats before the old beats are gone
    faulthandler.register(signal.SIGUSR2, all_threads=True)
    sections = Sections()
    watchdog = _Watchdog(run, sections, limits, rank, start)
    watchdog.start()
    try:
        yield sections
    finally:
        watchdog.end()


def _tidy(run: Path) -> None:
    """Remove what earlier starts left, but for the newest reports."""
    (run / BEATS).mkdir(exist_ok=True)
    remove_beats(run)
    for report in sorted(reports(run))[:-MOST_REPORTS]:
        shutil.rmtree(report, ignore_errors=True)


class _Watchdog(threading.Thread):
    """Beats for a rank; ends the process when the run hangs."""

    def __init__(self, run: Path, sections: Sections, limits: LimitsSection, rank: int, start: int) -> None:
        super().__init__(name="watchdog", daemon=True)
        self._run, self._sections, self._limits, self._rank = run, sections, limits, rank
        self._attempt = own_attempt()
        self._path = beat_path(run, rank, self._attempt)
        self._report = run / BEATS / f"stuck_{start}"  # who makes it speaks for all
        self._started_by = int(os.environ.get(STARTED_BY) or 0)
        self._is_done, self._ended = threading.Event(), threading.Event()
        self._beat, self._since_s, self._at, self._ticked = 0, 0.0, sections.current, time.monotonic()
        self._now = self._tick()
        self._answered = self._now.beat  # the last one that the run directory took
        self._silence = Silence(run, f"rank {rank} on {socket.gethostname()}")
        self._beats = threading.Thread(target=self._keep_beating, name="beats", daemon=True)
        self._observed: tuple[float, dict[int, Beat], dict[int, Beat]] | None = None  # since when, first and last beats

    def start(self) -> None:
        """Begin to beat and to watch."""
        super().start()
        self._beats.start()

    def end(self) -> None:
        """The rank has done its work."""
        self._is_done.set()
        self._beats.join()
        self._ended.set()
        self.join()
        faulthandler.cancel_dump_traceback_later()
        with suppress(OSError):
            self._path.unlink()

    def run(self) -> None:
        """Keep the time until the end, and touch no disk."""
        while not self._ended.wait(BEAT_S):
            self._now = beat = self._tick()
            # A thread of the C library, which needs no lock: for the case that this one is not let run any more.
            left = max(beat.limit_s - beat.since_s, 0.0) + OBSERVED_S + WAIT_FOR_STACKS_S + HELD_S
            faulthandler.dump_traceback_later(left, exit=True)
            self._watch_disk(beat)

    def _keep_beating(self) -> None:
        while not self._is_done.wait(BEAT_S):
            beat = self._now
            with suppress(OSError):  # a disk that is full, say, is no reason to stop
                end_if_taken_over(self._run)
                write_beat(self._path, beat)
            with suppress(OSError):
                if self._report.exists():
                    self._dump_and_exit()
                self._look(beat)
            self._answered = beat.beat

    def _watch_disk(self, now: Beat) -> None:
        """End where the run directory does not answer and the main thread is over its limit meanwhile."""
        if not self._silence.look((now.beat - self._answered) * BEAT_S) or not now.is_over:
            return
        threading.Timer(WAIT_FOR_STACKS_S, os._exit, (FAILED_EXIT_CODE,)).start()  # stderr may be on that disk, too
        faulthandler.dump_traceback(all_threads=True)
        say(f"Stuck for {now.since_s:.0f} s: {now}; {self._run} does not answer. The run ends.")
        os._exit(FAILED_EXIT_CODE)

    def _tick(self) -> Beat:
        """What the rank is at; time in which the process was stopped itself does not count."""
        now, at = time.monotonic(), self._sections.current
        step, place = self._sections.position
        steps, work_s = self._sections.work
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
            steps,
            work_s,
        )

    def _look(self, own: Beat) -> None:
        """Once over the limit, watch all ranks for a while, find out who is stuck, and end the run."""
        if not own.is_over:
            self._observed = None
            return
        beats = read_beats(self._run, self._attempt) | {self._rank: own}
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

    def _accuse(self, found: Verdict, beats: dict[int, Beat]) -> None:
        """Say who is stuck, unless another rank was faster, and end."""
        try:
            self._report.mkdir()
            record_stuck(self._run, found.fault, found.blamed or [beats[self._rank]])
        except FileExistsError:
            self._dump_and_exit()
        except OSError:
            pass  # a disk that does not answer: then stderr alone has it
        say(f"{found.fault} The run ends; the stacks of its ranks are in {self._report}. The same command goes on.")
        self._dump_and_exit(wait_s=WAIT_FOR_STACKS_S)

    def _dump_and_exit(self, wait_s: float = 0.0) -> NoReturn:
        """Leave the stacks of this rank in the report and on stderr; the process is over then."""
        say(f"rank {self._rank}: the stacks of its threads:")
        faulthandler.dump_traceback(all_threads=True)
        with suppress(OSError), open(self._report / f"rank_{self._rank:05d}.txt", "w") as file:
            faulthandler.dump_traceback(file, all_threads=True)
        time.sleep(wait_s)
        os._exit(FAILED_EXIT_CODE)
