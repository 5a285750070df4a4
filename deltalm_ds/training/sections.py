"""What a rank is at, and for how long it was: one clock for the log, for the watchdog and for whoever asks."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

Section = Literal["start", "data", "forward", "backward", "optimizer", "checkpoint", "validation", "other"]


class Sections:
    """Seconds of the host by section. One section runs at a time: what is inside another one is not counted twice.

    Attributes:
        seconds: by section, of all that have ended.
        current: the section that runs, and when it began or was gone back to, by `time.monotonic()`. It is read by
            other threads, and therefore replaced as a whole.
        position: the step, and how many sections it has seen: what all ranks pass through in the same order.
    """

    def __init__(self) -> None:
        self.seconds: dict[Section, float] = defaultdict(float)
        self.current: tuple[Section, float] = "start", time.monotonic()
        self.position = 0, 0

    def begin_step(self, step: int) -> None:
        """A step begins, by waiting for its data."""
        self.position = step, 0
        self.switch("data")

    @contextmanager
    def section(self, name: Section) -> Iterator[None]:
        """Be at `name` inside; afterwards at what was before."""
        before, _ = self.current
        self.switch(name)
        try:
            yield
        finally:
            self.switch(before)

    def switch(self, name: Section) -> None:
        """Be at `name` from now on; that it goes on with the same is a sign of life, but no new place."""
        now = time.monotonic()
        section, since = self.current
        if name != section:
            self.position = self.position[0], self.position[1] + 1
        self.seconds[section] += now - since
        self.current = name, now
