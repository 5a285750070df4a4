"""Training on this machine: DeepSpeed's launcher in a process group of its own, which ends as a whole.

A signal to the plain launcher leaves its ranks running [facts: signals]; here the ranks get the signal, save, and exit.
They also end, saved, when this process is gone without a word.
"""

import base64
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import torch

from deltalm_ds.environment import ALLOCATOR_VARIABLES
from deltalm_ds.errors import STOPPED_EXIT_CODE, InputError
from deltalm_ds.threads import let_waiting_threads_sleep
from deltalm_ds.training.collectives import STARTED_BY
from deltalm_ds.training.watchdog import FAILED_EXIT_CODE, StoppedRanks

GRACE_S = 120.0  # from the signal to the end of the last rank: time to save
NO_DEVICE = "-1"  # in CUDA_VISIBLE_DEVICES: there is none


def train_on_this_machine(run: Path, num_ranks: int) -> int:
    """Start `num_ranks` ranks of training on a prepared run directory and wait; returns the exit code.

    0 done, 75 stopped by a signal after saving, else a rank failed (its messages are on stderr).

    Raises:
        InputError: there are fewer devices than ranks.
    """
    launcher = subprocess.Popen(
        _command(run, num_ranks), env=_environment(num_ranks), start_new_session=True, stdin=subprocess.DEVNULL
    )
    return _Watch(launcher, run).wait()


class _Watch:
    """Passes signals on to the ranks of a launcher, and sees to it that nothing is left of it in the end."""

    def __init__(self, launcher: "subprocess.Popen[bytes]", run: Path) -> None:
        self._launcher = launcher
        self._stopped_ranks = StoppedRanks(run)
        self._stopping_since: float | None = None
        self._is_impatient = False
        self._asked: set[psutil.Process] = set()

    def wait(self) -> int:
        """The launcher's exit code, once it and its ranks have ended."""
        numbers = [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup means: go on
            numbers.append(signal.SIGHUP)
        previous = {number: signal.signal(number, self._on_signal) for number in numbers}
        try:
            while self._launcher.poll() is None and not self._is_impatient:
                time.sleep(0.2)
                if self._stopped_ranks.found():
                    break
                if self._stopping_since is None:
                    continue
                self._ask_ranks_to_stop()  # again, as some may have started only after the signal
                if time.monotonic() - self._stopping_since > GRACE_S:
                    print(f"deltalm: ranks did not stop within {GRACE_S:.0f} s and are killed.", file=sys.stderr)
                    break
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._launcher.pid, signal.SIGKILL)  # whatever is left of its process group
            for number, handler in previous.items():
                signal.signal(number, handler)
        return self._exit_code(self._launcher.wait())

    def _on_signal(self, number: int, _frame: object) -> None:
        if self._stopping_since is None:
            self._stopping_since = time.monotonic()
            print("\ndeltalm: stopping: the ranks save and end (Ctrl-C once more ends them at once).", file=sys.stderr)
        elif number == signal.SIGINT:
            self._is_impatient = True

    def _ask_ranks_to_stop(self) -> None:
        """Signal the ranks that were not asked yet; a second signal could meet one that has saved and is ending.

        The ranks alone: launchers that get the signal would kill the ranks before they have saved.
        """
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in set(psutil.Process(self._launcher.pid).children(recursive=True)) - self._asked:
                with contextlib.suppress(psutil.NoSuchProcess):  # it has ended; the others have not
                    if "deepspeed.launcher.launch" not in process.cmdline():
                        process.send_signal(signal.SIGTERM)
                        self._asked.add(process)

    def _exit_code(self, code: int) -> int:
        """That of the launcher, with a sentence where a signal ended a rank."""
        if self._stopped_ranks.found():
            return FAILED_EXIT_CODE
        ended_by = 256 - code if code > 192 else -code  # the launcher gives the rank's -9 as 247
        if self._stopping_since is not None and ended_by == signal.SIGTERM:
            return STOPPED_EXIT_CODE  # stopped before the first step: there was nothing to save
        if self._stopping_since is None and ended_by in list(signal.Signals):
            reason = "probably out of memory" if ended_by == signal.SIGKILL else signal.strsignal(ended_by)
            print(
                f"deltalm: a rank was ended by signal {ended_by} ({reason}); the same command goes on from the newest "
                "checkpoint.",
                file=sys.stderr,
            )
        return code


def _command(run: Path, num_ranks: int) -> list[str]:
    world = base64.urlsafe_b64encode(json.dumps({"localhost": _devices(num_ranks)}).encode()).decode()
    launcher = [sys.executable, "-m", "deepspeed.launcher.launch", "--world_info", world]
    launcher += ["--master_addr", "127.0.0.1", "--master_port", os.environ.get("MASTER_PORT") or str(_free_port())]
    launcher += ["--no_local_rank", "--log_level", "critical"]  # a rank says itself why it ends
    return [*launcher, "--module", "deltalm_ds.training.train", str(run.absolute())]


def _devices(num_ranks: int) -> list[str]:
    """What each rank finds in CUDA_VISIBLE_DEVICES, which the launcher sets: the user's own choice, or none.

    Raises:
        InputError: there are GPUs, and fewer than ranks.
    """
    num_devices = _num_gpus()
    if num_devices == 0:
        return [NO_DEVICE] * num_ranks
    if num_ranks > num_devices:
        raise InputError(
            f"{num_ranks} ranks are asked for, and there are {num_devices} GPUs: give --ranks {num_devices}."
        )
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = chosen.split(",") if chosen else [str(number) for number in range(num_devices)]
    return [name.strip() for name in names[:num_ranks]]


def _environment(num_ranks: int) -> dict[str, str]:
    """The ranks share the cores, find this Python first, and no module of the working directory in front of others.

    On GPUs their memory is in segments that grow: micro-batches of ever new sizes leave no holes too small to use.
    """
    environment = os.environ.copy()
    let_waiting_threads_sleep(environment)
    threads = max(1, len(os.sched_getaffinity(0)) // num_ranks)
    environment.setdefault("OMP_NUM_THREADS", str(threads))
    environment.setdefault("PYTHONSAFEPATH", "1")  # Python 3.11 and later: a user's queue.py is not the library's
    if not environment.keys() & set(ALLOCATOR_VARIABLES):
        environment[ALLOCATOR_VARIABLES[0]] = "expandable_segments:True"
    environment[STARTED_BY] = str(os.getpid())
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
    return max(1, _num_gpus())


def _num_gpus() -> int:
    """Those that the user lets us see; none where DeepSpeed is told to take the processor."""
    return 0 if os.environ.get("DS_ACCELERATOR") == "cpu" else torch.cuda.device_count()
