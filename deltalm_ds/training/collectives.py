"""What all ranks agree on beside gradients: whether to stop, and whether one of them met a fault.

They talk over gloo, in host memory: to ask costs no wait for a GPU.
"""

import os
import signal
from datetime import timedelta
from types import FrameType
from typing import Any

import psutil
import torch
from torch import distributed

from deltalm_ds.recipe.training_section import LimitsSection
from deltalm_ds.runs.starter import STARTED_BY, stop_signals

COLLECTIVE_TIMEOUT = timedelta(minutes=30)  # while ranks join; then `collective_timeout`


def collective_timeout(limits: LimitsSection) -> timedelta:
    """After how long a collective gives up: when the watchdog, which knows more, has had its time in any section."""
    longest = max(limits.start_s, limits.step_s, limits.checkpoint_s, limits.validation_s)
    return timedelta(seconds=2 * longest)


class StopRequested(Exception):
    """All ranks have agreed to end the run here; nothing of the step at hand was applied."""


class StopSignal:
    """Whether somebody wants the run to end: one of `stop_signals`, or the end of what started this rank.

    A launcher that is killed leaves its ranks behind; without it nobody could stop them, nor see them fail. Signals
    that were held back while this rank started (`launch/local.py`) are looked at from now on.
    """

    def __init__(self) -> None:
        self._signalled = False
        self._launcher = os.getppid()
        self._starter: psutil.Process | None = None
        if started_by := os.environ.get(STARTED_BY):
            try:
                self._starter = psutil.Process(int(started_by))
            except psutil.NoSuchProcess:
                self._signalled = True
        self._group = distributed.new_group(backend="gloo", timeout=COLLECTIVE_TIMEOUT)
        asking = stop_signals()
        for number in asking:
            signal.signal(number, self._on_signal)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, asking)

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        self._signalled = True

    @property
    def is_set(self) -> bool:
        """Whether this rank was asked to stop."""
        starter_ended = self._starter is not None and _has_ended(self._starter)
        return self._signalled or starter_ended or os.getppid() != self._launcher

    def agreed(self) -> bool:
        """Whether any rank was asked to stop. A collective."""
        flag = torch.tensor(int(self.is_set))
        distributed.all_reduce(flag, group=self._group)
        return bool(flag)

    def check(self) -> None:
        """Raise StopRequested on all ranks if any of them was asked to stop. A collective."""
        if self.agreed():
            raise StopRequested


def _has_ended(process: psutil.Process) -> bool:
    """Also where nobody has waited for it yet."""
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def of_all_ranks(value: Any, group: distributed.ProcessGroup | None = None) -> list[Any]:
    """What every rank gives, in order of ranks, the same on every rank. A collective, of all ranks by another group."""
    values: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value, group=group)
    return values


def first_fault(fault: str | None, group: distributed.ProcessGroup | None = None) -> str | None:
    """The first rank's fault that there is, the same on every rank. A collective, of all ranks by another group."""
    return next((fault for fault in of_all_ranks(fault, group) if fault), None)
