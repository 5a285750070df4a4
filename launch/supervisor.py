"""`deltalm launch`: attempts on the hosts of a hostfile, one after the other, until the run is done or given up."""

import os
import signal
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from deltalm_ds.errors import (
    DONE_EXIT_CODE,
    FAILED_EXIT_CODE,
    FINAL_EXIT_CODES,
    STOPPED_EXIT_CODE,
    CheckError,
    InputError,
    os_error_sentence,
)
from deltalm_ds.files import locked
from deltalm_ds.launch.attempt_run import AttemptRun
from deltalm_ds.launch.control import STOP, end_on_hosts
from deltalm_ds.launch.fleet import (
    Failure,
    backoff_s,
    choose_hosts,
    may_go_on_with,
    read_memory,
    remember_failure,
)
from deltalm_ds.launch.hostfile import Host
from deltalm_ds.launch.job import Job, JobHost, environment_of_ranks, write_job
from deltalm_ds.launch.ranks import GRACE_S
from deltalm_ds.launch.remote import run_on_hosts
from deltalm_ds.launch.telling import Teller
from deltalm_ds.recipe.launch_section import LaunchSection
from deltalm_ds.runs.attempts import begin_attempt, current_attempt
from deltalm_ds.runs.checkpoints import checkpoint_directories, step_of
from deltalm_ds.runs.history import record_end, record_start
from deltalm_ds.runs.starter import stop_signals
from deltalm_ds.streams import say
from deltalm_ds.training.prepare import IN_USE, LOCK
from deltalm_ds.training.rendezvous import wanted_port

PROBE_S = 5.0  # between two looks whether a lost host is back
ANSWER_S = 15.0  # for a host to answer
TRAINING = "deltalm_ds.training.train"


@dataclass(frozen=True)
class Launch:
    """What a supervisor is asked to do.

    Attributes:
        run: a prepared run directory, absolute.
        hosts: of the hostfile, spares among them.
        section: of the recipe.
        again: start even if earlier starts all failed at the same step.
    """

    run: Path
    hosts: tuple[Host, ...]
    section: LaunchSection
    again: bool = False


def supervise(launch: Launch) -> int:
    """Train on the hosts until the run is done, given up, or stopped on request; the exit code.

    Raises:
        InputError: another process holds the run, or a host cannot be used before anything has started.
        CheckError: too many failures, or none of the last attempts made progress.
    """
    with locked(launch.run / LOCK, IN_USE.format(run=launch.run)):
        supervisor = Supervisor(launch)
        try:
            return supervisor.run()
        finally:
            supervisor.close()


def goes_on(run: Path) -> bool:
    """Whether a run was launched whose supervisor did not come to its end."""
    memory = read_memory(run)
    return memory.attempt > 0 and memory.end is None


class Supervisor:
    """Holds a run."""

    def __init__(self, launch: Launch) -> None:
        self._launch, self._run = launch, launch.run
        self._wanted = sum(not host.is_spare for host in launch.hosts)
        self._memory = read_memory(self._run)
        self._goes_on = goes_on(self._run)
        self._teller = Teller(self._run, launch.section.hook)
        self._asked = 0  # times
        self._newest = current_attempt(self._run)
        (self._run / "launch").mkdir(exist_ok=True)
        (self._run / STOP).unlink(missing_ok=True)
        self._previous = {number: signal.signal(number, self._on_signal) for number in stop_signals()}

    def run(self) -> int:
        """Attempts until the end; the exit code."""
        memory = self._memory
        if self._goes_on:
            say(f"going on after attempt {memory.attempt}, whose supervisor on {memory.host} is gone.")
            end_on_hosts(self._run, memory.attempt, memory.hosts, GRACE_S)
        elif memory.end is not None:  # a new start: what was wrong with hosts may be mended
            memory.lost, memory.excluded, memory.failures = {}, {}, []
        memory.host, memory.pid, memory.end = socket.gethostname(), os.getpid(), None
        self._remember()
        self._teller.event("supervisor started", host=memory.host, pid=memory.pid, goes_on=self._goes_on)
        code, reason = FAILED_EXIT_CODE, "ended by an error of its own"
        try:
            code, reason = self._attempts()
        except InputError as error:
            code, reason = error.exit_code, str(error)
            raise
        finally:
            memory.end = {"code": code, "reason": reason}
            self._remember()
            self._teller.event("supervisor ended", code=code, reason=reason.split("\n")[0])
        return code

    def close(self) -> None:
        """Signals are this process's own again."""
        self._teller.await_hooks()
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _attempts(self) -> tuple[int, str]:
        is_first = not self._goes_on
        while True:
            hosts = self._await_hosts()
            if self._grace_s() is not None:
                return STOPPED_EXIT_CODE, "stopped, saved"
            try:
                running = self._attempt(hosts)
            except OSError as error:
                if is_first:
                    raise
                what = f"no attempt can be made: {os_error_sentence(error)}".removesuffix(".")
                say(f"{what}; it is tried again.")
                self._learn("", what, [])
                continue
            attempt, verdict = running.attempt, running.verdict
            if is_first and not attempt.has_started and verdict is not None:
                raise InputError(f"Nothing was started: {verdict.what}.")
            is_first = False
            code = self._code(running)
            if code == DONE_EXIT_CODE:
                return code, "done"
            if code in FINAL_EXIT_CODES:
                return code, verdict.what if verdict else f"exit code {code}"
            if attempt.was_asked:
                return code, "stopped, saved" if code == STOPPED_EXIT_CODE else "stopped, not saved"
            what = verdict.what if verdict else "its ranks were asked to stop by somebody else"
            lost = [self._memory.hosts[number] for number, host in enumerate(attempt.hosts) if host.is_lost]
            self._learn(verdict.host if verdict else "", what, lost)

    def _attempt(self, hosts: Sequence[Host]) -> AttemptRun:
        if (newest := current_attempt(self._run)) != self._newest:  # where the lock does not hold: no two take turns
            raise InputError(f"Another supervisor has begun attempt {newest} in {self._run}: this one ends.")
        self._newest = number = begin_attempt(self._run)
        self._memory.attempt, self._memory.hosts = number, [host.name for host in hosts]
        self._memory.write(self._run)
        job_hosts = tuple(JobHost(host.name, host.devices) for host in hosts)
        program = TRAINING, str(self._run)
        job = Job(str(self._run), number, job_hosts, program, environment_of_ranks(), wanted_port())
        write_job(job)
        again = self._launch.again and not self._memory.failures
        running = AttemptRun(job, self._teller, lambda: record_start(self._run, job.num_ranks, again), self._grace_s)
        running.run()
        return running

    def _code(self, running: AttemptRun) -> int:
        """What the attempt's end means, what its ranks said of themselves included."""
        attempt, verdict = running.attempt, running.verdict
        if attempt.has_done:
            code = DONE_EXIT_CODE
        else:
            code = STOPPED_EXIT_CODE if attempt.was_stopped and verdict is None else FAILED_EXIT_CODE
        if not attempt.has_started:
            return STOPPED_EXIT_CODE if attempt.was_asked else FAILED_EXIT_CODE
        return record_end(self._run, code, verdict.what if verdict else "", attempt.was_asked)

    def _remember(self) -> None:
        """For a supervisor that goes on after this one; a disk that does not take it is no reason to end."""
        with suppress(OSError):
            self._memory.write(self._run)

    def _learn(self, host: str, what: str, lost: Sequence[str]) -> None:
        """Remember that an attempt failed, and wait before the next.

        Args:
            host: that was to blame, or none.
            what: in words.
            lost: hosts that are not heard any more.

        Raises:
            CheckError: that was too often.
        """
        memory, section, now = self._memory, self._launch.section, time.time()
        memory.lost |= dict.fromkeys(lost, now)
        failure = Failure(now, host, what, self._step())
        excluded = remember_failure(memory, failure, self._launch.hosts, section)
        self._remember()
        if excluded is not None:
            say(f"{excluded} is left out from now on: {memory.excluded[excluded]}.")
        recent = memory.recent(now, section)
        if len(recent) > section.max_failures:
            whats = "\n".join(f"  {one.what}" for one in recent)
            raise CheckError(
                f"{len(recent)} attempts failed within {section.window_s:.0f} s (launch.max_failures: "
                f"{section.max_failures}):\n{whats}\nFind out why, and start it again."
            )
        self._wait(backoff_s(memory, section))

    def _step(self) -> int:
        checkpoints = checkpoint_directories(self._run)
        return step_of(checkpoints[-1]) if checkpoints else 0

    def _await_hosts(self) -> tuple[Host, ...]:
        """The hosts for the next attempt, once there are enough, or nobody waits any more.

        Raises:
            CheckError: there are too few.
        """
        launch, memory = self._launch, self._memory
        before, until, has_said = list(memory.hosts), time.monotonic() + launch.section.wait_for_host_s, False
        while len(chosen := choose_hosts(launch.hosts, memory, self._wanted)) < self._wanted:
            if self._find_back():
                continue
            if time.monotonic() > until or self._grace_s() is not None:
                break
            if not has_said:
                has_said = True
                say(f"waiting for {', '.join(memory.lost)} for up to {launch.section.wait_for_host_s:.0f} s.")
            self._wait(PROBE_S)
        if self._grace_s() is not None:
            return chosen
        if not chosen or not may_go_on_with(len(chosen), self._wanted, launch.section):
            raise CheckError(
                f"{', '.join(memory.lost)} did not come back within {launch.section.wait_for_host_s:.0f} s, there is "
                f"no spare, and {len(chosen)} hosts are too few (launch.min_hosts): mend it, then the same command "
                "goes on."
            )
        self._tell_changes(before, chosen)
        return chosen

    def _tell_changes(self, before: Sequence[str], chosen: Sequence[Host]) -> None:
        for host in chosen if before else ():
            if host.is_spare and host.name not in before:
                instead = [name for name in before if name not in {one.name for one in chosen}]
                say(f"the spare {host.name} takes the place of {', '.join(instead)}.")
                self._teller.event("spare taken", host=host.name, instead=instead)
        if len(chosen) < self._wanted and len(chosen) != len(before):
            say(f"going on with {len(chosen)} of {self._wanted} hosts.")
            self._teller.event("went on with fewer hosts", hosts=[host.name for host in chosen], of=self._wanted)

    def _find_back(self) -> bool:
        """Whether a lost host answers again; it is lost no more."""
        names = list(self._memory.lost)
        back = [name for name, outcome in run_on_hosts(names, "true", ANSWER_S).items() if outcome.code == 0]
        for name in back:
            say(f"{name} answers again.")
            del self._memory.lost[name]
        return bool(back)

    def _wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until and self._grace_s() is None:
            time.sleep(0.2)

    def _on_signal(self, number: int, _frame: object) -> None:
        if not self._asked:
            self._asked = 1
            say("stopping: the ranks save and end (Ctrl-C once more ends them at once).")
        elif number == signal.SIGINT:
            self._asked = 2

    def _grace_s(self) -> float | None:
        """How long ranks may take to save, if somebody wants the end."""
        if not self._asked and (self._run / STOP).exists():
            self._asked = 1
            say("stopping, as `deltalm launch --stop` asks: the ranks save and end.")
        return {0: None, 1: GRACE_S}.get(self._asked, 0.0)
