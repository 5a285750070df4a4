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
from deltalm_ds.errors import FAILED_EXIT_CODE, InputError
from deltalm_ds.launch.stopped import StoppedRanks
from deltalm_ds.runs.history import record_end, record_start
from deltalm_ds.runs.starter import STARTED_BY, stop_signals
from deltalm_ds.threads import let_waiting_threads_sleep, usable_cores

GRACE_S = 120.0  # from the signal to the end of the last rank: time to save
NO_DEVICE = "-1"  # in CUDA_VISIBLE_DEVICES: there is none


def train_on_this_machine(run: Path, num_ranks: int, again: bool = False) -> int:
    """Start `num_ranks` ranks of training on a prepared run directory and wait; returns the exit code.

    0 done, 75 stopped on request after saving, 2 to 4 useless to try again, else a rank failed: `deltalm_ds.errors`.
    Start and end are recorded in the run's events.

    Args:
        run: the run directory.
        num_ranks: how many ranks.
        again: start it even if earlier starts all failed at the same step.

    Raises:
        InputError: there are fewer devices than ranks. CheckError: several starts made no progress.
    """
    command = _command(run, num_ranks)
    record_start(run, num_ranks, again)
    watch = _Watch(run, command, _environment(num_ranks))
    code = watch.wait()
    return record_end(run, code, _why_it_ended(code) if not watch.was_asked else "", watch.was_asked)


class _Watch:
    """Starts a launcher, passes signals on to its ranks, and sees to it that nothing is left of it in the end.

    All that it watches starts with the signals that ask for an end held back. DeepSpeed's launcher, to which a
    scheduler may send them too, would give its ranks 30 s to save; a rank would end unsaved before it listens
    (`training/collectives.py`).
    """

    def __init__(self, run: Path, command: list[str], environment: dict[str, str]) -> None:
        self._stopped_ranks = StoppedRanks(run)
        self._stopping_since: float | None = None
        self._is_impatient = False
        self._asked: set[psutil.Process] = set()
        asking = stop_signals()
        self._previous = {number: signal.signal(number, self._on_signal) for number in asking}
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, asking)
        try:
            self._launcher = subprocess.Popen(
                command, env=environment, start_new_session=True, stdin=subprocess.DEVNULL
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    @property
    def was_asked(self) -> bool:
        """Whether somebody wanted the end."""
        return self._stopping_since is not None

    def wait(self) -> int:
        """The launcher's exit code, once it and its ranks have ended; signals are this process's own again."""
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
            for number, handler in self._previous.items():
                signal.signal(number, handler)
        code = self._launcher.wait()
        return FAILED_EXIT_CODE if self._stopped_ranks.found() else code

    def _on_signal(self, number: int, _frame: object) -> None:
        if self._stopping_since is None:
            self._stopping_since = time.monotonic()
            print("\ndeltalm: stopping: the ranks save and end (Ctrl-C once more ends them at once).", file=sys.stderr)
        elif number == signal.SIGINT:
            self._is_impatient = True

    def _ask_ranks_to_stop(self) -> None:
        """Signal the ranks that were not asked yet; a second signal could meet one that has saved and is ending."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in set(psutil.Process(self._launcher.pid).children(recursive=True)) - self._asked:
                with contextlib.suppress(psutil.NoSuchProcess):  # it has ended; the others have not
                    process.send_signal(signal.SIGTERM)
                    self._asked.add(process)


def _why_it_ended(code: int) -> str:
    """What the launcher's exit code says, where a signal ended a rank; it is told."""
    number = 256 - code if code > 192 else -code  # the launcher gives the rank's -9 as 247
    if number not in list(signal.Signals):
        return ""
    why = "probably out of memory" if number == signal.SIGKILL else signal.strsignal(number)
    reason = f"a rank was ended by signal {number} ({why})"
    print(f"deltalm: {reason}; the same command goes on from the newest checkpoint.", file=sys.stderr)
    return reason


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
    threads = max(1, usable_cores() // num_ranks)
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
