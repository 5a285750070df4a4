"""One attempt on real hosts: between its state machine, the connections, the run directory and the terminal."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from deltalm_ds.launch.attempt import Attempt, Drop, Send
from deltalm_ds.launch.connections import Connections
from deltalm_ds.launch.disk import DiskWatch
from deltalm_ds.launch.job import Job
from deltalm_ds.launch.slow_hosts import SlowHosts
from deltalm_ds.launch.telling import Follower, Teller, last_lines
from deltalm_ds.launch.verdicts import Verdict, judge
from deltalm_ds.runs.beats import reports
from deltalm_ds.runs.history import read_starts
from deltalm_ds.streams import say

ALIVE_S = 1.0  # between two lines to each agent
WAIT_S = 0.2

KIND_OF_EVENT = {"host": "host lost", "connection": "host lost", "agent": "agent lost"}  # else: rank lost


class AttemptRun:
    """A job while it runs.

    Args:
        job: written already.
        teller: of the launch.
        before_start: called once all hosts have met, before any rank starts.
        grace_s: called again and again: how long ranks may take to save if somebody wants the end; None if nobody does.
    """

    def __init__(
        self, job: Job, teller: Teller, before_start: Callable[[], None], grace_s: Callable[[], float | None]
    ) -> None:
        self._job, self._teller, self._before_start, self._grace_s = job, teller, before_start, grace_s
        self.attempt = Attempt(len(job.hosts), time.monotonic())
        self.verdict: Verdict | None = None
        self._asked: float | None = None
        self._slow, self._disk = SlowHosts(), DiskWatch(Path(job.run))
        self._known_stacks = reports(Path(job.run))

    def run(self) -> None:
        """Until it is over on all hosts; whatever happens, agents that are left lose their supervisor."""
        names = [host.name for host in self._job.hosts]
        commands = [self._job.command(number) for number in range(len(names))]
        connections, follower = Connections(names, commands), Follower(self._job.logs)
        alive, told = 0, 0.0
        self._disk.start()
        try:
            while not self.attempt.is_over:
                self._do(self._look(connections), connections)
                follower.show()
                self._tell_slow_ranks()
                self._tell_disk()
                if time.monotonic() - told >= ALIVE_S:
                    alive, told = alive + 1, time.monotonic()
                    for number in range(len(names)):
                        connections.send(number, {"alive": alive})
        finally:
            connections.close()
            self._disk.end()
            follower.show()

    def _look(self, connections: Connections) -> list[Send | Drop]:
        messages, ended = connections.read(WAIT_S)
        now, attempt = time.monotonic(), self.attempt
        actions: list[Send | Drop] = []
        for number, message in messages:
            actions += attempt.heard(number, message, now)
        for number, words, ssh_failed in ended:
            attempt.closed(number, words, ssh_failed, now)
        actions += attempt.tick(now)
        if attempt.signs and self.verdict is None and (attempt.is_ending or attempt.is_over) and not attempt.was_asked:
            self._judge()
        if attempt.can_start:
            self._start()
            actions += attempt.start()
        grace_s = self._grace_s()
        if grace_s is not None and grace_s != self._asked:
            self._asked = grace_s
            actions += attempt.ask_to_stop(grace_s, now)
        return actions

    def _start(self) -> None:
        self._before_start()
        job, attempt = self._job, self.attempt
        hosts = [host.name for host in job.hosts]
        where = f"{attempt.address} port {attempt.port}"
        say(f"attempt {job.attempt}: {job.num_ranks} ranks on {', '.join(hosts)}, meeting at {where}.")
        leftovers = [host.hello["leftovers"] for host in attempt.hosts if host.hello is not None]
        if any(leftovers):
            found = [f"{name} ({number})" for name, number in zip(hosts, leftovers, strict=True) if number]
            say(f"processes of earlier attempts were ended on {', '.join(found)}.")
        self._teller.event(
            "attempt",
            number=job.attempt,
            hosts=hosts,
            ranks=job.num_ranks,
            address=attempt.address,
            port=attempt.port,
            leftovers=leftovers,
            interfaces=[self._interface_of(number) for number in range(len(hosts))],
        )

    def _interface_of(self, number: int) -> str:
        host = self.attempt.hosts[number]
        assert host.hello is not None and host.met is not None
        return str(host.hello["interfaces"].get(host.met[self.attempt.address], ""))

    def _tell_slow_ranks(self) -> None:
        beats = self.attempt.beats()
        if len(beats) < self._job.num_ranks or self.attempt.is_ending:
            return
        for slow in self._slow.look(beats):
            host = self._job.hosts[self._job.host_of(slow.beat.rank)].name
            say(f"{slow}: all others wait for it.")
            values = {"host": host, "rank": slow.beat.rank, "step": slow.beat.step, "what": str(slow)}
            self._teller.event("slow rank", attempt=self._job.attempt, **values)

    def _tell_disk(self) -> None:
        fault, run = self._disk.news(), self._job.run
        if fault:
            say(f"{run} cannot be written ({fault}): training goes on, its records and checkpoints wait.")
            self._teller.event("run directory not writable", attempt=self._job.attempt, reason=fault)
        elif fault is not None:
            say(f"{run} can be written again.")
            self._teller.event("run directory writable again", attempt=self._job.attempt)

    def _judge(self) -> None:
        signs, starts = self.attempt.signs, read_starts(Path(self._job.run)) if self.attempt.has_started else []
        ranks = [sign.rank for sign in signs if sign.rank is not None]
        told = starts[-1].rank_ends if starts else []
        self.verdict = judge(signs, self._job, told, last_lines(self._job.logs, ranks))
        stacks = sorted(str(path) for path in reports(Path(self._job.run)) - self._known_stacks)
        where = f"; stacks of its ranks: {', '.join(stacks)}" if stacks else ""
        say(f"attempt {self._job.attempt}: {self.verdict.what}{where}.")
        event = KIND_OF_EVENT.get(self.verdict.kind, "rank lost")
        values = {"host": self.verdict.host, "rank": self.verdict.rank, "what": self.verdict.what, "stacks": stacks}
        self._teller.event(event, attempt=self._job.attempt, **values)

    @staticmethod
    def _do(actions: Sequence[Send | Drop], connections: Connections) -> None:
        for action in actions:
            if isinstance(action, Send):
                connections.send(action.host, action.message)
            else:
                connections.drop(action.host)
