"""What a rank is at, and for how long it was: one clock for the log, for the watchdog and for whoever asks."""

import time
from collections import defaultdict, deque
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Literal

import torch
from torch.profiler import record_function

Section = Literal[
    "start", "data", "forward", "backward", "communication", "optimizer", "checkpoint", "validation", "other"
]
OWN_WORK: tuple[Section, ...] = ("data", "forward", "backward", "optimizer")  # in which no rank waits for another
MAX_MARKS = 4096  # that a GPU has not been asked about yet


class Sections:
    """Seconds by section. One section runs at a time: what is inside another one is not counted twice.

    They are the host's, until `follow` makes them those of a GPU, on which things happen later than they are issued.

    Attributes:
        seconds: by section, of all that have ended.
        is_profiled: whether torch.profiler records now, and is to be told the names of sections.
        current: the section that the host runs, and when it began or was gone back to, by `time.monotonic()`. It is
            read by other threads, and therefore replaced as a whole.
        position: the step, and how many sections it has seen: what all ranks pass through in the same order.
        work: steps done, and the seconds of this rank's own work so far; replaced as a whole between steps. A GPU that
            is behind the host has not done all of it yet.
    """

    def __init__(self) -> None:
        self.seconds: dict[Section, float] = defaultdict(float)
        self.current: tuple[Section, float] = "start", time.monotonic()
        self.position = 0, 0
        self.work = 0, 0.0
        self._begun = 0
        self.is_profiled = False
        self._taken: dict[Section, float] = {}
        self._device: _DeviceClock | None = None

    def follow(self, device: torch.device) -> None:
        """From now on count the time of this device; a CPU's is the host's."""
        if device.type == "cuda":
            self.switch(self.current[0])
            self._device = _DeviceClock(self.seconds)
            self._device.mark(self.current[0])

    def begin_step(self, step: int) -> None:
        """A step begins, by waiting for its data."""
        self.position = step, 0
        self.switch("data")
        if self._device is not None:
            self._device.collect()
        self.work = self._begun, sum(self.seconds.get(name, 0.0) for name in OWN_WORK)
        self._begun += 1

    @contextmanager
    def section(self, name: Section) -> Iterator[None]:
        """Be at `name` inside; afterwards at what was before."""
        before, _ = self.current
        self.switch(name)
        try:
            with record_function(name) if self.is_profiled else nullcontext():
                yield
        finally:
            self.switch(before)

    def switch(self, name: Section) -> None:
        """Be at `name` from now on; that it goes on with the same is a sign of life, but no new place."""
        now = time.monotonic()
        section, since = self.current
        if name != section:
            self.position = self.position[0], self.position[1] + 1
        if self._device is None:
            self.seconds[section] += now - since
        else:
            self._device.mark(section)
        self.current = name, now

    def take(self) -> dict[str, float]:
        """The seconds since the last call, by section. On a GPU what it has not come to yet is left for the next."""
        self.switch(self.current[0])
        if self._device is not None:
            self._device.collect()
        total = dict(self.seconds)
        taken = {name: seconds - self._taken.get(name, 0.0) for name, seconds in total.items()}
        self._taken = total
        return {str(name): seconds for name, seconds in taken.items() if seconds}


class _DeviceClock:
    """The time between marks in a GPU's stream, read when the GPU is past them: the host waits for nothing.

    Where the GPU has nothing to do it is at what the host is at.
    """

    def __init__(self, seconds: dict[Section, float]) -> None:
        self._seconds = seconds
        self._marks: deque[tuple[Section, torch.cuda.Event]] = deque()
        self._unused: list[torch.cuda.Event] = []

    def mark(self, ended: Section) -> None:
        """A section ends here."""
        event = self._unused.pop() if self._unused else torch.cuda.Event(enable_timing=True)
        event.record()
        self._marks.append((ended, event))
        if len(self._marks) > MAX_MARKS:
            self.collect()

    def collect(self) -> None:
        """Count what the GPU is past."""
        while len(self._marks) > 1 and self._marks[1][1].query():
            _, begin = self._marks.popleft()
            section, end = self._marks[0]
            self._seconds[section] += begin.elapsed_time(end) / 1e3
            self._unused.append(begin)
