"""How long a program is in each of its stages, by a clock that stands in front of its functions."""

import time
from collections import Counter
from typing import Any

REST = "rest"


class StageClock:
    """Says how long the program was in each stage, in `seconds`; what is in none is the rest."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()
        self._stage, self._since = REST, time.perf_counter()
        self._is_closed = False

    def go_to(self, stage: str) -> str:
        """Begin a stage; returns the one that it was in."""
        before, now = self._stage, time.perf_counter()
        self.seconds[before] += now - self._since
        self._stage, self._since = stage, now
        return before

    def time(self, owner: Any, name: str, stage: str, whole: bool = False) -> None:
        """From now on the time of a function of a module or a class is the stage's.

        Args:
            owner: where the function is looked up.
            name: of the function.
            stage: what its time counts as, without that of other functions with a stage that it calls.
            whole: with their time too.
        """
        function = getattr(owner, name)

        def run(*arguments: Any) -> Any:
            if self._is_closed:
                return function(*arguments)
            before, self._is_closed = self.go_to(stage), whole
            result = function(*arguments)
            self._is_closed = False
            self.go_to(before)
            return result

        setattr(owner, name, run)
