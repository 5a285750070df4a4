"""One attempt, as a state machine: what its agents say and do not say goes in, what to tell them and how it ended come
out. Has no clock, no connections and no files of its own.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from deltalm_ds.errors import DONE_EXIT_CODE, STOPPED_EXIT_CODE
from deltalm_ds.launch.meeting import common_address
from deltalm_ds.launch.ranks import code_of_rank

HELLO_S = 40.0  # to connect, and for Python to start
SILENT_S = 12.0  # without a line from an agent
PROOF_S = 1.0  # after the first sign: an agent that is heard still later is not lost
SETTLE_S = 2.0  # from the first sign of a fault to the verdict: the cause may be told after what follows from it
SAVE_S = 10.0  # for ranks that live when an agent or a launcher is lost
END_S = 15.0  # beyond a grace, for an agent to say that nothing is left
WELL = (DONE_EXIT_CODE, STOPPED_EXIT_CODE)
Kind = Literal["host", "connection", "agent", "launcher", "stopped", "rank", "fault"]
RANKS_MAY_LIVE = ("connection", "agent", "launcher", "fault")  # those kinds say nothing of ranks


@dataclass(frozen=True)
class Sign:
    """Something went wrong.

    Attributes:
        kind: a host is not heard any more; the connection to it, its agent, or DeepSpeed's launcher there, is gone; a
            process was stopped by a signal; a rank has ended; an agent says what else.
        host: by its number.
        at: when the supervisor heard of it.
        rank, code: of a rank that has ended or is stopped; None: not known.
        words: what was said.
    """

    kind: Kind
    host: int
    at: float
    rank: int | None = None
    code: int | None = None
    words: str = ""


@dataclass
class Host:
    """What is known of one agent.

    Attributes:
        heard: when the last line came.
        hello, met: what it said; None until then.
        beats: of its ranks, the last of each.
        unseen: ranks that have ended, nobody saw how.
        code: of its launcher, once nothing is left there.
        is_over: it has ended, or is given up.
        is_lost: it did not answer, or was not heard any more.
    """

    heard: float
    hello: dict[str, Any] | None = None
    met: dict[str, str] | None = None
    beats: dict[int, dict[str, Any]] = field(default_factory=dict)
    unseen: list[int] = field(default_factory=list)
    code: int | None = None
    is_over: bool = False
    is_lost: bool = False


@dataclass(frozen=True)
class Send:
    """A message for an agent."""

    host: int
    message: dict[str, Any]


@dataclass(frozen=True)
class Drop:
    """Let go of a connection whose other end does not answer."""

    host: int


class Attempt:
    """An attempt on some hosts.

    Args:
        num_hosts: how many.
        now: seconds of the caller's clock.
    """

    def __init__(self, num_hosts: int, now: float) -> None:
        self.hosts = [Host(now) for _ in range(num_hosts)]
        self.signs: list[Sign] = []
        self.has_started, self.was_asked, self.is_ending = False, False, False
        self.address, self.port = "", 0
        self._meeting, self._judge_at, self._end_by = False, float("inf"), float("inf")

    @property
    def is_over(self) -> bool:
        """Whether there is nothing left to wait for."""
        return all(host.is_over for host in self.hosts)

    @property
    def can_start(self) -> bool:
        """Whether all hosts have found the first one, and nobody has told them to start."""
        return not (self.has_started or self.is_ending or self.signs) and all(h.met is not None for h in self.hosts)

    @property
    def has_done(self) -> bool:
        """Whether all ranks came to their end."""
        return self.is_over and all(host.code == DONE_EXIT_CODE for host in self.hosts)

    @property
    def was_stopped(self) -> bool:
        """Whether ranks on some host ended as those do that have saved on request."""
        return any(host.code == STOPPED_EXIT_CODE for host in self.hosts)

    def beats(self) -> dict[int, dict[str, Any]]:
        """The last beat of every rank."""
        return {rank: beat for host in self.hosts for rank, beat in host.beats.items()}

    def start(self) -> list[Send]:
        """Tell all agents to start their ranks; only where `can_start`."""
        reached = [host.met or {} for host in self.hosts]
        self.has_started = True
        return [
            Send(number, {"start": {"address": self.address, "port": self.port, "own": met[self.address]}})
            for number, met in enumerate(reached)
        ]

    def heard(self, number: int, message: dict[str, Any], now: float) -> list[Send | Drop]:
        """An agent's line."""
        host = self.hosts[number]
        host.heard = now
        if host.is_over:
            return []
        if "hello" in message:
            host.hello = message["hello"]
            return self._meet()
        if "met" in message:
            host.met = message["met"]
            self._settle_address(now)
        elif "beat" in message:
            host.beats |= {int(rank): beat for rank, beat in message["ranks"].items()}
        elif "rank_ended" in message:
            if message["code"] is None:  # on a busy host its launcher was faster, and tells by its own code how it was
                host.unseen.append(message["rank_ended"])
            elif message["code"] not in WELL and not self.was_asked:
                self._sign("rank", number, now, message["rank_ended"], message["code"])
        elif "stopped" in message:
            self._sign("stopped", number, now, message["stopped"], words=f"process {message['pid']}")
        elif "launcher" in message:
            self._launcher_ended(number, message["launcher"], message["left"], now)
        elif "ended" in message:
            self._ended(number, message, now)
        return []

    def _launcher_ended(self, number: int, code: int, left: int, now: float) -> None:
        if code < 0 and left:
            self._sign("launcher", number, now, code=code)
        elif code not in WELL and not self.was_asked and not any(s.host == number for s in self.signs):
            rank = next(iter(self.hosts[number].unseen), None)
            self._sign("rank", number, now, rank, code_of_rank(code))

    def _ended(self, number: int, message: dict[str, Any], now: float) -> None:
        host = self.hosts[number]
        host.code, host.is_over = message["ended"], True
        if not self.is_ending and message["why"]:
            self._sign("fault", number, now, words=message["why"])

    def closed(self, number: int, words: str, ssh_failed: bool, now: float) -> None:
        """A connection has ended, and no agent said that it would.

        Args:
            number: of the host.
            words: what was said at its end: nothing where the agent alone was killed.
            ssh_failed: whether ssh gave up, and not the agent.
            now: seconds of the caller's clock.
        """
        host = self.hosts[number]
        if host.is_over:
            return
        is_cut = ssh_failed and bool(words)
        host.is_over, host.is_lost = True, host.hello is None or is_cut
        self._sign("host" if host.hello is None else "connection" if is_cut else "agent", number, now, words=words)

    def tick(self, now: float) -> list[Send | Drop]:
        """Time has passed."""
        actions: list[Send | Drop] = []
        for number, host in enumerate(self.hosts):
            if not host.is_over and now - host.heard > (SILENT_S if host.hello else HELLO_S):
                actions.append(self._give_up(number))
                self._sign("host", number, now, words=f"not heard for {now - host.heard:.0f} s")
        if now >= self._judge_at and not self.is_ending and not self._may_be_losing_a_host():
            lives_on = all(sign.kind in RANKS_MAY_LIVE for sign in self.signs)
            actions += self._end(SAVE_S if lives_on and self.has_started else 0.0, now)
        if now >= self._end_by:
            actions += [self._give_up(number) for number, host in enumerate(self.hosts) if not host.is_over]
        return actions

    def _may_be_losing_a_host(self) -> bool:
        """Whether some host is silent since the first sign: then ranks of others may have failed for its sake alone."""
        return any(not host.is_over and host.heard < self.signs[0].at + PROOF_S for host in self.hosts)

    def ask_to_stop(self, grace_s: float, now: float) -> list[Send | Drop]:
        """Somebody wants the end: let the ranks save; again, with a shorter grace, to hurry."""
        self.was_asked = True
        return self._end(grace_s, now)

    def _end(self, grace_s: float, now: float) -> list[Send | Drop]:
        self.is_ending, self._end_by = True, now + grace_s + END_S
        return [Send(number, {"stop": grace_s}) for number, host in enumerate(self.hosts) if not host.is_over]

    def _give_up(self, number: int) -> Drop:
        host = self.hosts[number]
        host.is_over = host.is_lost = True
        return Drop(number)

    def _sign(
        self, kind: Kind, host: int, now: float, rank: int | None = None, code: int | None = None, words: str = ""
    ) -> None:
        if self.is_ending:  # what ends now ends for that
            return
        self.signs.append(Sign(kind, host, now, rank, code, words))
        self._judge_at = min(self._judge_at, now + (SETTLE_S if self.has_started else 0.0))

    def _meet(self) -> list[Send | Drop]:
        """Once all are there, let them try to reach the first one."""
        first = self.hosts[0].hello
        if self._meeting or first is None or any(host.hello is None for host in self.hosts):
            return []
        self._meeting = True
        meet = {name: first[name] for name in ("addresses", "port", "word")}
        return [Send(number, {"meet": meet}) for number in range(len(self.hosts))]

    def _settle_address(self, now: float) -> None:
        if any(host.met is None for host in self.hosts):
            return
        first: dict[str, Any] = self.hosts[0].hello or {}
        found = common_address(first["addresses"], [host.met or {} for host in self.hosts])
        if found is not None:
            self.address, self.port = found, first["port"]
            return
        apart = [number for number, host in enumerate(self.hosts) if not host.met]
        words = f"reaches none of {', '.join(first['addresses'])} at port {first['port']}"
        self._sign("fault", apart[0] if apart else 1, now, words=f"{words}: is there a firewall?")
