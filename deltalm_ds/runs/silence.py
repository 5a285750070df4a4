"""A run directory that does not answer: its disk hangs, or the server that has it. Whoever touches it is held.

So whoever watches lets another thread touch it, and says here how long that one has waited. Imports no torch.
"""

from pathlib import Path

from deltalm_ds.streams import say

SILENT_S = 30.0  # before it is said


class Silence:
    """Said on stderr once, and once that it is over.

    Args:
        run: the run directory.
        whose: who waits, such as `rank 3`.
    """

    def __init__(self, run: Path, whose: str) -> None:
        self._run, self._whose = run, whose
        self._is_silent = False

    def look(self, waited_s: float) -> bool:
        """Whether it is silent.

        Args:
            waited_s: for how many seconds somebody has waited for an answer.
        """
        was_silent, self._is_silent = self._is_silent, waited_s > SILENT_S
        if self._is_silent and not was_silent:
            self._say(f"has not answered for {waited_s:.0f} s: its disk hangs, or the server that has it.")
        if was_silent and not self._is_silent:
            self._say("answers again.")
        return self._is_silent

    def _say(self, what: str) -> None:
        say(f"{self._whose}: {self._run} {what}")
