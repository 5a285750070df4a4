"""Hosts without root: a program named `ssh` that runs its command here, in a session and an environment of its own.

What `Hosts` can do with networks and power these cannot. Their names are addresses, all of this machine.
"""

import os
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import psutil

from tests.cluster.hosts import LOGIN
from tests.launch.fake_hosts import SSH, write_program

MARK = "DELTALM_FAKE_HOSTS"  # environment of all that runs on them
# As with the real ssh, what ends the client does not end the command, which finds its stdin closed.
RUN_HERE = """\
setsid --wait env -i HOME="$HOME" PATH=/usr/local/bin:/usr/bin:/bin HOSTNAME="$host" {mark}={state} sh -c "$*"
"""


class FakeHosts:
    """A login host and `count` hosts behind it, as `Hosts` has them."""

    def __init__(self, state: Path, count: int) -> None:
        self.state, self.names = state.absolute(), tuple(f"127.0.0.{number}" for number in range(2, 2 + count))

    def __enter__(self) -> "FakeHosts":
        self.state.mkdir(exist_ok=True)
        write_program(self.state / "ssh", SSH + RUN_HERE.format(mark=MARK, state=self.state))
        return self

    def __exit__(self, *_: object) -> None:
        for name in (LOGIN, *self.names):
            self.kill(name)

    def start(self, name: str, command: Sequence[str | Path], output: IO[Any] | None = None, **environment: str) -> Any:
        """As `Hosts.start`."""
        path = f"{self.state}{os.pathsep}{os.environ['PATH']}"
        own = {"HOME": str(Path.home()), "PATH": path, "HOSTNAME": name, MARK: str(self.state)}
        command = ["setsid", "--wait", *map(str, command)]
        return subprocess.Popen(command, stdout=output, stderr=output, env=own | environment)

    def run(self, name: str, command: Sequence[str | Path], seconds: float = 60.0) -> subprocess.CompletedProcess[str]:
        """As `Hosts.run`."""
        with open(self.state / "command.log", "w+b") as log:
            code = self.start(name, command, log).wait(seconds)
            log.seek(0)
            return subprocess.CompletedProcess(list(command), code, log.read().decode(errors="replace"), "")

    def processes(self, name: str) -> list[psutil.Process]:
        """As `Hosts.processes`; what waits for an ssh belongs to where that was called."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                variables = process.environ()
                is_its = variables.get(MARK) == str(self.state) and variables.get("HOSTNAME") == name
                if is_its and process.status() != psutil.STATUS_ZOMBIE and process.name() != "setsid":
                    found.append(process)
        return found

    def kill(self, name: str) -> None:
        """End all that `processes` has."""
        for process in self.processes(name):
            with suppress(psutil.NoSuchProcess):
                process.kill()
