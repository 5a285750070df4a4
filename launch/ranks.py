"""DeepSpeed's launcher and its ranks on one host, in a session of their own that ends as a whole.

A signal to the plain launcher leaves its ranks running [facts: signals]; here the ranks get the signal, save, and exit.
Imports no torch: an agent starts in a moment.
"""

import base64
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import MutableMapping, Sequence
from pathlib import Path
from typing import IO

import psutil

from deltalm_ds.allocator import ALLOCATOR_VARIABLES
from deltalm_ds.runs.starter import STARTED_BY, stop_signals
from deltalm_ds.threads import let_waiting_threads_sleep, usable_cores

GRACE_S = 120.0  # from the signal to the end of the last rank: time to save
KILLED_S = 5.0  # for the system to end what was killed
NO_DEVICE = "-1"  # in CUDA_VISIBLE_DEVICES: there is none
STOPPED = (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)  # a process goes on only when it gets SIGCONT


class Launcher:
    """DeepSpeed's launcher with the ranks of this host.

    It starts with the signals that ask for an end held back. The launcher, to which a scheduler may send them too,
    would give its ranks 30 s to save; a rank would end unsaved before it listens (`training/collectives.py`).
    """

    def __init__(
        self, command: Sequence[str], environment: MutableMapping[str, str], output: IO[bytes] | None = None
    ) -> None:
        """Start it.

        Args:
            command: with its arguments.
            environment: all of it.
            output: where what they write goes; None: where this process's goes.
        """
        self._asked: set[psutil.Process] = set()
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, stop_signals())
        try:
            self._process = subprocess.Popen(
                command,
                env=environment,
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        self.pid = self._process.pid

    def code(self) -> int | None:
        """Its exit code, negative for a signal; None while it runs."""
        return self._process.poll()

    def others(self) -> list[psutil.Process]:
        """What else is in its session and not a zombie: its ranks, also when it is gone, and what they started."""
        found = []
        for pid in psutil.pids():
            with contextlib.suppress(OSError, psutil.Error):
                if pid != self.pid and os.getsid(pid) == self.pid:
                    process = psutil.Process(pid)
                    if process.status() != psutil.STATUS_ZOMBIE:
                        found.append(process)
        return found

    def ask_to_stop(self) -> None:
        """Signal the ranks that were not asked yet; a second signal could meet one that has saved and is ending."""
        for process in set(self.others()) - self._asked:
            with contextlib.suppress(psutil.NoSuchProcess):  # it has ended; the others have not
                process.send_signal(signal.SIGTERM)
                self._asked.add(process)

    def end(self) -> int:
        """Kill whatever is left, and wait for it; the launcher's exit code."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        until = time.monotonic() + KILLED_S
        while (left := self.others()) and time.monotonic() < until:
            for process in left:  # also what has made a process group of its own
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            time.sleep(0.02)
        return self._process.wait()


def code_of_rank(code: int) -> int:
    """The exit code of a rank by its launcher's, which gives -9, SIGKILL, as 247."""
    return code - 256 if code > 192 else code


def launcher_command(
    world: dict[str, list[str]], node: int, address: str, port: int | str, program: Sequence[str]
) -> list[str]:
    """What `deepspeed --no_ssh` runs on each host.

    Args:
        world: the devices of each host, one for each of its ranks.
        node: the number of this host.
        address: of the first host.
        port: there.
        program: a module and its arguments.
    """
    world_info = base64.urlsafe_b64encode(json.dumps(world).encode()).decode()
    launcher = [sys.executable, "-m", "deepspeed.launcher.launch", "--world_info", world_info]
    launcher += ["--node_rank", str(node), "--master_addr", address, "--master_port", str(port)]
    launcher += ["--no_local_rank", "--log_level", "critical"]  # a rank says itself why it ends
    return [*launcher, "--module", *program]


def complete_environment(environment: MutableMapping[str, str], num_ranks: int, on_gpu: bool) -> None:
    """Add what the ranks of this host, started by this process, need; what the user has set stays.

    They share the cores, find this Python first, and no module of the working directory in front of others. On GPUs
    their memory is in segments that grow: micro-batches of ever new sizes leave no holes too small to use.
    """
    let_waiting_threads_sleep(environment)
    environment.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // num_ranks)))
    environment.setdefault("PYTHONSAFEPATH", "1")  # Python 3.11 and later: a user's queue.py is not the library's
    if not environment.keys() & set(ALLOCATOR_VARIABLES):
        environment[ALLOCATOR_VARIABLES[0]] = "expandable_segments:True"
    environment[STARTED_BY] = str(os.getpid())
    if not on_gpu:
        environment.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed says three times that it guessed so
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', '')}"
