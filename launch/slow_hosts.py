"""Slow ranks, told once while training goes on: all others wait for them in every step."""

from collections.abc import Mapping
from typing import Any

from deltalm_ds.runs.beats import Beat, SlowRank, slow_ranks

STEPS = 20  # of a look: batches differ in size


class SlowHosts:
    """Compares the ranks' own work over some steps, again and again."""

    def __init__(self) -> None:
        self._earlier: dict[int, Beat] = {}
        self._suspected: set[str] = set()
        self._told: set[str] = set()

    def look(self, beats: Mapping[int, Mapping[str, Any]]) -> list[SlowRank]:
        """The slowest rank of each host that is slow in two looks one after the other and was not told yet.

        Args:
            beats: the last one of each rank, as agents tell them.
        """
        now = {rank: Beat(**beat) for rank, beat in beats.items()}
        same = {rank for rank, beat in self._earlier.items() if rank in now and now[rank].process == beat.process}
        if not same or same != now.keys():
            self._earlier = now
            return []
        if min(now[rank].steps - self._earlier[rank].steps for rank in same) < STEPS:
            return []
        slow = slow_ranks(self._earlier, now)
        hosts = {one.beat.host for one in slow}
        new = (hosts & self._suspected) - self._told
        self._earlier, self._suspected, self._told = now, hosts, (self._told & hosts) | new
        return [next(one for one in slow if one.beat.host == host) for host in sorted(new)]
