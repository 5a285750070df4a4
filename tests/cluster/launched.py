"""A run under `deltalm launch`, started on the login host of `Hosts`, with what can be seen of it and done to it."""

import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import psutil

from deltalm_ds.runs.events import read_events
from tests.cluster.hosts import LOGIN, Hosts
from tests.faults.tiny import ROOT, TRAIN, records

T = TypeVar("T")
LONGEST_S = 400.0
# A variable for ranks that would not survive a command line.
STRANGE = ("DELTALM_STRANGE", 'a  b|c $HOME `id` "q" \'s\' %h {"a":1}\nx=;&')
PARTS = {  # of a run on a host, by a word of the command line; the first that fits
    "launcher": "deepspeed.launcher.launch",
    "rank": "deltalm_ds.launch.rank",
    "agent": "deltalm_ds.launch.agent",
    "supervisor": TRAIN,
}


class Launched:
    """A supervisor and what it starts.

    Args:
        hosts: where, all of them up.
        hostfile: of the run.
        recipe: what is trained.
        run: where to.
        overrides: of the recipe.
        log: of the supervisor's messages; beside the run where it is not given.
    """

    def __init__(
        self, hosts: Hosts, hostfile: Path, recipe: Path, run: Path, *overrides: str, log: Path | None = None
    ) -> None:
        self.hosts, self.run = hosts, run.absolute()
        self._arguments = ["--hostfile", hostfile, recipe, "--out", run, *overrides]
        self._log = log or run.with_name(f"{run.name}.log")
        self._log.unlink(missing_ok=True)
        self.start()

    def start(self) -> None:
        """Start the supervisor; again, after its end."""
        with open(self._log, "ab") as log:
            environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), STRANGE[0]: STRANGE[1]}
            self.supervisor = self.hosts.start(LOGIN, _deltalm("launch", *self._arguments), log, **environment)

    def ask(self, *arguments: str) -> tuple[int, str]:
        """`deltalm launch` with other arguments, on the login host: exit code and output."""
        command = ["env", f"PYTHONPATH={ROOT}", *_deltalm("launch", *arguments)]
        done = self.hosts.run(LOGIN, command, LONGEST_S)
        return done.returncode, done.stdout

    @property
    def messages(self) -> str:
        """What the supervisor has said."""
        return self._log.read_text(errors="replace")

    def events(self, *kinds: str) -> list[dict[str, Any]]:
        """Of some kinds."""
        return [event for event in read_events(self.run) if event["kind"] in kinds]

    def last_step(self) -> int:
        """The last one that has a record; 0 before the first."""
        return max(records(self.run, "train"), default=0) if (self.run / "metrics.jsonl").exists() else 0

    def processes(self, host: str, part: str) -> list[psutil.Process]:
        """Those of a part of the run that live on a host: see `PARTS`. Helpers that a rank has forked are left out."""
        found = []
        for process in self.hosts.processes(host):
            with suppress(psutil.NoSuchProcess):
                parent = process.parent()
                is_forked = part == "rank" and parent is not None and _part(parent) == part
                if _part(process) == part and not is_forked:
                    found.append(process)
        return found

    def signal(self, host: str, part: str, number: signal.Signals = signal.SIGKILL) -> list[psutil.Process]:
        """Signal one kind of processes on a host; there must be some."""
        found = self.processes(host, part)
        assert found, f"there is no {part} on {host}: {self.hosts.processes(host)}"
        for process in found:
            process.send_signal(number)
        return found

    def left(self) -> dict[str, list[str]]:
        """What still runs on which host."""
        found = {name: [_said(p) for p in self.hosts.processes(name)] for name in (LOGIN, *self.hosts.names)}
        return {name: said for name, said in found.items() if said}

    def await_that(self, condition: Callable[[], T], seconds: float = LONGEST_S, alone: bool = False) -> T:
        """Wait until something is true, and return it.

        Args:
            condition: what.
            seconds: for how long.
            alone: also after the supervisor's end.

        Raises:
            AssertionError: it does not come.
        """
        until = time.monotonic() + seconds
        while not (value := condition()):
            has_ended = not alone and self.supervisor.poll() is not None
            if (has_ended and not condition()) or time.monotonic() > until:
                why = f"ended with {self.supervisor.poll()}" if has_ended else f"waited {seconds:.0f} s in vain"
                raise AssertionError(f"{self.run.name}: {why}: {self.messages[-3000:]}\nleft: {self.left()}")
            time.sleep(0.05)
        return value

    def await_end(self, seconds: float = LONGEST_S) -> int:
        """The supervisor's exit code; nothing may be left on any host then.

        Raises:
            AssertionError: something is.
        """
        self.await_that(lambda: self.supervisor.poll() is not None, seconds, alone=True)
        left = self.left()
        assert not left, f"{self.run.name}: processes are left: {left}; {self.messages[-3000:]}"
        return self.supervisor.wait()


def _deltalm(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-c", TRAIN, *map(str, arguments)]


def _part(process: psutil.Process) -> str | None:
    command = _words(process)
    return next((name for name, word in PARTS.items() if word in command), None)


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


def _said(process: psutil.Process) -> str:
    return f"{process.pid} {' '.join(_words(process))[-200:]}"
