"""Outputs of systems, made in parts and kept by what decides them: the system, the sources, the search.

A part is some lines of a test set, the same ones on any number of processes. It is written when it is whole, so that a
run that is killed loses the parts that it was at, and one with another system or test set makes only what is not there.
"""

import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

from deltalm_ds.data_tools.workers import Workers
from deltalm_ds.evaluation.systems import System
from deltalm_ds.evaluation.test_sets import TestSet
from deltalm_ds.files import read_json, write_json
from deltalm_ds.generation.interface import SearchOptions
from deltalm_ds.progress import progress

PART_LINES = 500  # enough to fill batches with sentences of one length; minutes at most


@dataclass(frozen=True)
class Outputs:
    """Outputs for a test set. seconds: the time of making them, summed over parts."""

    hypotheses: list[str]
    seconds: float


@dataclass(frozen=True)
class _Part:
    """Some lines of a test set by a system, and the file that keeps their outputs."""

    system: System
    test: TestSet
    options: SearchOptions
    path: Path


class KeptOutputs:
    """The outputs in a directory.

    Args:
        directory: one that exists.
        options: of the search of models.
    """

    def __init__(self, directory: Path, options: SearchOptions) -> None:
        self._directory, self._options = directory, options

    def make(self, wanted: Sequence[tuple[System, TestSet]], workers: Workers) -> None:
        """See to it that the outputs of slow systems for these test sets are there.

        Raises:
            InputError: a system fails, or a process died; the parts that were done are kept.
        """
        parts = [part for system, test in wanted if system.is_slow for part in self._parts(system, test)]
        missing = {part.path: part for part in parts if not part.path.exists()}
        num_lines = sum(len(part.test.sources) for part in parts)
        num_missing = sum(len(part.test.sources) for part in missing.values())
        if missing:
            with progress("translate", num_lines, start=num_lines - num_missing) as advance:
                for count in workers.run(_make_part, missing.values()):
                    advance(count)

    def read(self, system: System, test: TestSet) -> Outputs:
        """The outputs of a system for a test set, after `make`."""
        if not system.is_slow:
            return Outputs(system.outputs(test, self._options), 0.0)
        kept = [read_json(part.path) for part in self._parts(system, test)]
        return Outputs([text for part in kept for text in part["hypotheses"]], sum(part["seconds"] for part in kept))

    def _parts(self, system: System, test: TestSet) -> Iterator[_Part]:
        identity = system.identity(test.direction)
        for start in range(0, len(test.sources), PART_LINES):
            part = test.part(start, start + PART_LINES)
            decided_by = [identity, test.direction, list(part.sources), asdict(self._options)]
            key = hashlib.sha256(json.dumps(decided_by).encode()).hexdigest()
            yield _Part(system, part, self._options, self._directory / f"{key[:32]}.json")


def _make_part(part: _Part) -> int:
    """Write the outputs of a part; returns how many."""
    start = time.perf_counter()
    hypotheses = _in_this_process(part.system).outputs(part.test, part.options)
    seconds = time.perf_counter() - start
    about = {"system": part.system.name, "direction": part.test.direction, "seconds": seconds}
    write_json(part.path, about | {"hypotheses": hypotheses})
    return len(hypotheses)


@lru_cache(maxsize=1)
def _in_this_process(system: System) -> System:
    """The system with what it has opened, which serves all its parts; that of one system is open at a time."""
    return deepcopy(system)
