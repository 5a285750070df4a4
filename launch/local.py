"""Training on this machine: the `deepspeed` launcher in a process group of its own, which ends as a whole.

A signal to the plain launcher leaves its ranks running [FACTS §8]; here the ranks get the signal, save, and exit.
"""

import contextlib
import fcntl
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch

from deltalm_ds.errors import STOPPED_EXIT_CODE, InputError

GRACE_S = 120.0  # from the signal to the end of the last rank: time to save


def train_on_this_machine(run: Path, num_ranks: int) -> int:
    """Start `num_ranks` ranks of training on a prepared run directory and wait; returns the exit code.

    0 done, 75 stopped by a signal after saving, else a rank failed (its messages are on stderr).

    Raises:
        InputError: another process trains in this directory.
    """
    with _lock(run):
        return _wait_for_launcher(run, num_ranks)


@contextlib.contextmanager
def _lock(run: Path) -> Iterator[None]:
    """Hold the run directory; the system lets go of it when this process ends, however it ends."""
    with open(run / ".lock", "w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"Another process trains in {run}: wait for it, or name another directory.") from None
        yield


def _wait_for_launcher(run: Path, num_ranks: int) -> int:
    launcher = subprocess.Popen(
        _command(run, num_ranks), env=_environment(num_ranks), start_new_session=True, stdin=subprocess.DEVNULL
    )
    stopping_since: float | None = None
    asked: set[psutil.Process] = set()

    def stop(_number: int, _frame: object) -> None:
        nonlocal stopping_since
        stopping_since = stopping_since or time.monotonic()

    previous = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)}
    try:
        while launcher.poll() is None:
            time.sleep(0.2)
            if stopping_since:
                _ask_ranks_to_stop(launcher.pid, asked)  # again, as some may have started only after the signal
            if stopping_since and time.monotonic() - stopping_since > GRACE_S:
                print(f"deltalm: ranks did not stop within {GRACE_S:.0f} s and are killed.", file=sys.stderr)
                break
    finally:
        _kill_group(launcher.pid)
        for number, handler in previous.items():
            signal.signal(number, handler)
    code = launcher.wait()
    if stopping_since and code % 256 == -signal.SIGTERM % 256:
        return STOPPED_EXIT_CODE  # stopped before the first step: there was nothing to save
    return code


def _ask_ranks_to_stop(launcher_pid: int, asked: set[psutil.Process]) -> None:
    """Signal the ranks that were not `asked` yet; a second signal could meet one that has saved and is ending.

    The ranks alone: launchers that get the signal would kill the ranks before they have saved.
    """
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in set(psutil.Process(launcher_pid).children(recursive=True)) - asked:
            with contextlib.suppress(psutil.NoSuchProcess):  # it has ended; the others have not
                if "deepspeed.launcher.launch" not in process.cmdline():
                    process.send_signal(signal.SIGTERM)
                    asked.add(process)


def _kill_group(group: int) -> None:
    """End whatever is left of the launcher's process group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGKILL)


def _command(run: Path, num_ranks: int) -> list[str]:
    launcher = [sys.executable, "-m", "deepspeed.launcher.runner", "--num_gpus", str(num_ranks)]
    launcher += ["--no_local_rank", "--hostfile", os.devnull, "--log_level", "error"]
    address = ["--master_addr", "127.0.0.1", "--master_port", str(_free_port())]
    return [*launcher, *address, "--module", "deltalm_ds.training.train", str(run)]


def _environment(num_ranks: int) -> dict[str, str]:
    """The ranks share the cores; the launcher finds this Python first, and no hostfile."""
    environment = os.environ.copy()
    threads = max(1, len(os.sched_getaffinity(0)) // num_ranks)
    environment.setdefault("OMP_NUM_THREADS", str(threads))
    if not torch.cuda.is_available():
        environment.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed says three times that it guessed so
    environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment.get('PATH', '')}"
    return environment


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def default_ranks() -> int:
    """One rank per GPU, or one on a machine without."""
    return max(1, torch.cuda.device_count())
