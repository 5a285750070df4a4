"""Which hosts the next attempt takes, and what is remembered of those before: RUN/launch/supervisor.json."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from deltalm_ds.errors import InputError
from deltalm_ds.files import read_json, write_json
from deltalm_ds.launch.hostfile import Host
from deltalm_ds.recipe.launch_section import LaunchSection

STATE = "supervisor.json"
LONGEST_BACKOFF_S = 300.0
BLAMED = 2  # times in the window: then a spare takes a host's place


@dataclass
class Failure:
    """An attempt that failed: when (seconds since 1970), whom the verdict blamed, what it said, at which checkpoint."""

    time: float
    host: str
    what: str
    step: int


@dataclass
class Memory:
    """What a supervisor leaves to one that is started after it was killed.

    Attributes:
        host, pid: which process it is.
        attempt: the newest one's number.
        hosts: that it runs on.
        lost: hosts that were not heard of any more, since when.
        excluded: hosts whose place spares have taken, and why.
        failures: of attempts, oldest first.
        end: exit code and reason, of a supervisor that came to its end.
    """

    host: str = ""
    pid: int = 0
    attempt: int = 0
    hosts: list[str] = field(default_factory=list)
    lost: dict[str, float] = field(default_factory=dict)
    excluded: dict[str, str] = field(default_factory=dict)
    failures: list[Failure] = field(default_factory=list)
    end: dict[str, Any] | None = None

    def write(self, run: Path) -> None:
        """Into the run directory."""
        write_json(run / "launch" / STATE, asdict(self))

    def recent(self, now: float, section: LaunchSection) -> list[Failure]:
        """The failures in the window."""
        return [failure for failure in self.failures if now - failure.time <= section.window_s]


def read_memory(run: Path) -> Memory:
    """What the last supervisor of a run has left; empty where there was none."""
    path = run / "launch" / STATE
    if not path.exists():
        return Memory()
    try:
        return TypeAdapter(Memory).validate_python(read_json(path))
    except (ValidationError, InputError) as error:
        raise InputError(f"{path} is damaged ({str(error).splitlines()[0]}): remove it to start anew.") from None


def choose_hosts(hosts: Sequence[Host], memory: Memory, wanted: int) -> tuple[Host, ...]:
    """The hosts to take, spares last: those not lost, and of these the excluded ones only if there are too few.

    Args:
        hosts: of the hostfile.
        memory: which are lost or excluded.
        wanted: how many; fewer are returned where there are not so many.
    """
    there = [host for host in hosts if host.name not in memory.lost]
    by_merit = sorted(there, key=lambda host: (host.name in memory.excluded, host.is_spare))
    chosen = by_merit[:wanted]
    return tuple(sorted(chosen, key=lambda host: (host.is_spare, list(hosts).index(host))))


def remember_failure(memory: Memory, failure: Failure, hosts: Sequence[Host], section: LaunchSection) -> str | None:
    """Add a failure; the name of a host if it was blamed so often that a spare should take its place from now on.

    Args:
        memory: changed.
        failure: the newest.
        hosts: of the hostfile.
        section: of the recipe.
    """
    memory.failures.append(failure)
    if not failure.host:
        return None
    blamed = [one for one in memory.recent(failure.time, section) if one.host == failure.host]
    idle = [
        host for host in hosts if host.name not in {*memory.hosts, *memory.lost, *memory.excluded} and host.is_spare
    ]
    if len(blamed) < BLAMED or not idle or failure.host in {*memory.lost, *memory.excluded}:
        return None
    memory.excluded[failure.host] = f"blamed {len(blamed)} times in {section.window_s:.0f} s; last: {failure.what}"
    return failure.host


def backoff_s(memory: Memory, section: LaunchSection) -> float:
    """Seconds before the next attempt: doubled for each failure in a row at the same checkpoint."""
    step = memory.failures[-1].step if memory.failures else 0
    in_a_row = 0
    for failure in reversed(memory.failures):
        if failure.step != step:
            break
        in_a_row += 1
    return float(min(section.backoff_s * 2.0 ** max(in_a_row - 1, 0), max(LONGEST_BACKOFF_S, section.backoff_s)))


def may_go_on_with(num_hosts: int, wanted: int, section: LaunchSection) -> bool:
    """Whether so many hosts are enough, once nobody waits for others any more."""
    return num_hosts >= (wanted if section.min_hosts is None else min(section.min_hosts, wanted))
