"""Signs of life: what each rank is at, once a second, in RUN/ranks, for whoever watches over them. Imports no torch.

Clocks of hosts differ: a beat counts when it changes, by the clock of whoever looks.
"""

import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median_low

from deltalm_ds.files import write_in_place
from deltalm_ds.runs.attempts import attempt_name

BEATS = "ranks"  # of a run directory
BEAT_S = 1.0
BEAT_BYTES = 512
MOST_NAMED = 4  # ranks in a sentence


@dataclass(frozen=True)
class Beat:
    """What a rank is at.

    Attributes:
        beat: counts.
        section, step, place: what it does; `place` counts the sections of the step so far, alike on all ranks.
        since_s: for how long it has been there while its watchdog was running.
        limit_s: how long it may be there.
        pid, host, started_by: which process it is, and which one started it (0: not known). Hosts share a run
            directory, and their pids collide: only with the host is a pid a process.
        steps, work_s: steps done since the process started, and the seconds of its own work in them: data, forward,
            backward and optimizer without waiting for other ranks; saving and validation are none.
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
    steps: int = 0
    work_s: float = 0.0

    @property
    def process(self) -> tuple[str, int]:
        """Which process it is: its host and number."""
        return self.host, self.pid

    @property
    def is_over(self) -> bool:
        """Whether it has been there for longer than it may."""
        return self.since_s > self.limit_s

    def __str__(self) -> str:
        return f"rank {self.rank} (process {self.pid} on {self.host}, in {self.section} of step {self.step})"


def listed(beats: Iterable[Beat]) -> str:
    """The first few, in order of ranks."""
    names = [str(beat) for beat in sorted(beats, key=lambda beat: beat.rank)]
    return ", ".join(names[:MOST_NAMED]) + (f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else "")


def beat_path(run: Path, rank: int, attempt: int | None = None) -> Path:
    """Where a rank beats; ranks of an earlier attempt that are still there beat elsewhere."""
    return run / BEATS / f"{_of_attempt(attempt)}rank_{rank:05d}.json"


def _of_attempt(attempt: int | None) -> str:
    return "" if attempt is None else f"{attempt_name(attempt)}."


def write_beat(path: Path, beat: Beat) -> None:
    """In place, and as long each time: clients of a network file system see another content at once, but another file
    only after a while, and nobody reads a part.
    """
    write_in_place(path, json.dumps(asdict(beat)), BEAT_BYTES)


def read_beats(run: Path, attempt: int | None = None) -> dict[int, Beat]:
    """The last beat of each rank that has a whole one.

    Args:
        run: the run directory.
        attempt: the number of the attempt whose ranks are meant; None: of ranks without a supervisor.
    """
    beats = {}
    for path in (run / BEATS).glob(f"{_of_attempt(attempt)}rank_*.json"):
        with suppress(OSError, ValueError, TypeError):
            beat = Beat(**json.loads(path.read_text()))
            beats[beat.rank] = beat
    return beats


@dataclass(frozen=True)
class SlowRank:
    """A rank that the others wait for in every step.

    Attributes:
        beat: its last one.
        seconds_per_step: of its own work.
        median: of all ranks, the lower one where there are two.
    """

    beat: Beat
    seconds_per_step: float
    median: float

    def __str__(self) -> str:
        who = f"rank {self.beat.rank} (process {self.beat.pid} on {self.beat.host})"
        return f"{who} works {self.seconds_per_step:.3g} s a step, others {self.median:.3g} s"


def slow_ranks(earlier: dict[int, Beat], now: dict[int, Beat], factor: float = 1.5) -> list[SlowRank]:
    """The ranks whose own work takes longer than that of most by a factor, slowest first.

    Args:
        earlier: a look at the beats of all ranks, best of some tens of steps ago: batches differ in size.
        now: a later look. A rank that is another process by now, or has done no step, is left out.
        factor: that is too much.
    """
    took = {
        rank: (beat.work_s - earlier[rank].work_s) / (beat.steps - earlier[rank].steps)
        for rank, beat in now.items()
        if rank in earlier and earlier[rank].process == beat.process and beat.steps > earlier[rank].steps
    }
    if not took:
        return []
    median = median_low(took.values())
    slow = [SlowRank(now[rank], seconds, median) for rank, seconds in took.items() if seconds > factor * median]
    return sorted(slow, key=lambda one: -one.seconds_per_step)


def reports(run: Path) -> set[Path]:
    """What ranks left of hangs, with their stacks."""
    return set((run / BEATS).glob("stuck_*"))


def remove_beats(run: Path) -> None:
    """Of earlier starts."""
    for beat in (run / BEATS).glob("*rank_*.json"):
        beat.unlink(missing_ok=True)
