"""Training on this machine: DeepSpeed's launcher, watched until it and its ranks have ended.

The ranks also end, saved, when this process is gone without a word.
"""

import os
import signal
import sys
import time
from pathlib import Path

import torch

from deltalm_ds.errors import FAILED_EXIT_CODE, InputError
from deltalm_ds.launch.ranks import GRACE_S, NO_DEVICE, Launcher, code_of_rank, complete_environment, launcher_command
from deltalm_ds.launch.stopped import StoppedRanks
from deltalm_ds.runs.history import record_end, record_start
from deltalm_ds.runs.starter import stop_signals
from deltalm_ds.streams import say
from deltalm_ds.training.rendezvous import free_port, wanted_port


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
    watch = Watch(run, command, rank_environment(num_ranks))
    code = watch.wait()
    return record_end(run, code, _why_it_ended(code) if not watch.was_asked else "", watch.was_asked)


class Watch:
    """Starts a launcher, passes signals on to its ranks, and sees to it that nothing is left of it in the end."""

    def __init__(self, run: Path, command: list[str], environment: dict[str, str]) -> None:
        self._stopped_ranks = StoppedRanks(run)
        self._stopping_since: float | None = None
        self._is_impatient = False
        self._previous = {number: signal.signal(number, self._on_signal) for number in stop_signals()}
        self._launcher = Launcher(command, environment)

    @property
    def was_asked(self) -> bool:
        """Whether somebody wanted the end."""
        return self._stopping_since is not None

    def wait(self) -> int:
        """The launcher's exit code, once it and its ranks have ended; signals are this process's own again."""
        try:
            while self._launcher.code() is None and not self._is_impatient:
                time.sleep(0.2)
                if self._stopped_ranks.found():
                    break
                if self._stopping_since is None:
                    continue
                self._launcher.ask_to_stop()  # again, as some may have started only after the signal
                if time.monotonic() - self._stopping_since > GRACE_S:
                    say(f"ranks did not stop within {GRACE_S:.0f} s and are killed.")
                    break
        finally:
            code = self._launcher.end()
            for number, handler in self._previous.items():
                signal.signal(number, handler)
        return FAILED_EXIT_CODE if self._stopped_ranks.found() else code

    def _on_signal(self, number: int, _frame: object) -> None:
        if self._stopping_since is None:
            self._stopping_since = time.monotonic()
            print(file=sys.stderr)  # the progress bar has no line end
            say("stopping: the ranks save and end (Ctrl-C once more ends them at once).")
        elif number == signal.SIGINT:
            self._is_impatient = True


def _why_it_ended(code: int) -> str:
    """What the launcher's exit code says, where a signal ended a rank; it is told."""
    number = -code_of_rank(code)
    if number not in list(signal.Signals):
        return ""
    why = "probably out of memory" if number == signal.SIGKILL else signal.strsignal(number)
    reason = f"a rank was ended by signal {number} ({why})"
    say(f"{reason}; the same command goes on from the newest checkpoint.")
    return reason


def _command(run: Path, num_ranks: int) -> list[str]:
    port = wanted_port() or free_port()
    program = ["deltalm_ds.training.train", str(run.absolute())]
    return launcher_command({"localhost": rank_devices(num_ranks)}, 0, "127.0.0.1", port, program)


def rank_devices(num_ranks: int) -> list[str]:
    """What each rank finds in CUDA_VISIBLE_DEVICES, which the launcher sets: the user's own choice, or none.

    Raises:
        InputError: there are GPUs, and fewer than ranks.
    """
    num_devices = num_gpus()
    if num_devices == 0:
        return [NO_DEVICE] * num_ranks
    if num_ranks > num_devices:
        raise InputError(
            f"{num_ranks} ranks are asked for, and there are {num_devices} GPUs: give --ranks {num_devices}."
        )
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = chosen.split(",") if chosen else [str(number) for number in range(num_devices)]
    return [name.strip() for name in names[:num_ranks]]


def rank_environment(num_ranks: int) -> dict[str, str]:
    """That of this process, completed for so many ranks."""
    environment = os.environ.copy()
    complete_environment(environment, num_ranks, torch.cuda.is_available())
    return environment


def default_ranks() -> int:
    """One rank per GPU, or one on a machine without."""
    return max(1, num_gpus())


def num_gpus() -> int:
    """Those that the user lets us see; none where DeepSpeed is told to take the processor."""
    return 0 if os.environ.get("DS_ACCELERATOR") == "cpu" else torch.cuda.device_count()
