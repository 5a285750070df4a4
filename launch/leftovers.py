"""Processes of a run that are left on this host, found by their environment and ended.

`python -m deltalm_ds.launch.leftovers RUN GRACE_S` ends all of a run and prints how many there were, and are left.
"""

import json
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import psutil

from deltalm_ds.launch.job import RUN
from deltalm_ds.launch.ranks import KILLED_S
from deltalm_ds.runs.attempts import ATTEMPT


def leftovers(run: Path, before: int | None = None) -> list[psutil.Process]:
    """The processes of a run's attempts, or of those before one, agents first; this one and what it came from aside."""
    own = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    wanted = f"{RUN}={run}".encode()
    found = []
    for pid in psutil.pids():
        with suppress(OSError, psutil.Error, ValueError):
            variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
            if pid in own or wanted not in variables:
                continue
            prefix = f"{ATTEMPT}=".encode()
            attempt = next((int(one[len(prefix) :]) for one in variables if one.startswith(prefix)), 0)
            process = psutil.Process(pid)
            if (before is None or attempt < before) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return sorted(found, key=lambda process: not _is_agent(process))


def _is_agent(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return "deltalm_ds.launch.agent" in process.cmdline()
    return False


def end_leftovers(run: Path, before: int | None = None, grace_s: float = 0.0) -> int:
    """End them: agents are asked first, who ask their ranks; what is left after the grace is killed. How many."""
    found = leftovers(run, before)
    if grace_s:
        agents = [process for process in found if _is_agent(process)]
        _send(agents or found, signal.SIGTERM)
        until = time.monotonic() + grace_s
        while time.monotonic() < until and leftovers(run, before):
            time.sleep(0.2)
    until = time.monotonic() + KILLED_S
    while (left := leftovers(run, before)) and time.monotonic() < until:
        _send(left, signal.SIGKILL)
        time.sleep(0.1)
    return len(found)


def _send(processes: list[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        with suppress(psutil.Error):
            process.send_signal(number)


if __name__ == "__main__":
    given = Path(sys.argv[1])
    print(json.dumps({"ended": end_leftovers(given, grace_s=float(sys.argv[2])), "left": len(leftovers(given))}))
