"""Who is to blame for the end of an attempt: of all signs the cause, in a sentence."""

import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from deltalm_ds.launch.attempt import Kind, Sign
from deltalm_ds.launch.job import Job
from deltalm_ds.runs.history import OF_PARTNERS, first_cause

# What is a cause, and what may follow from it: a host that is lost has its ranks' partners fail.
_ORDER: tuple[Kind, ...] = ("host", "connection", "agent", "stopped", "launcher", "fault", "rank")
_LINES = 3  # of a rank's last ones in a sentence


@dataclass(frozen=True)
class Verdict:
    """The cause of an attempt's end.

    Attributes:
        kind: as of `Sign`.
        host: its name.
        rank: None where it is not one rank's.
        what: in a sentence.
    """

    kind: str
    host: str
    rank: int | None
    what: str


def judge(
    signs: Sequence[Sign], job: Job, told: Sequence[Mapping[str, Any]], last_lines: Mapping[int, Sequence[str]]
) -> Verdict:
    """The cause: a host or an agent that is lost; then a stopped process, a launcher that is gone; then ranks.

    Of ranks one that a signal ended; else the one whose own words name a cause; else the first whose last lines say
    anything but that a partner of theirs is gone.

    Args:
        signs: at least one, in the order in which they came.
        job: what was started.
        told: what ranks recorded of their own ends, oldest first (events `rank ended`).
        last_lines: what ranks wrote last, by rank.
    """
    cause = min(signs, key=lambda sign: (_ORDER.index(sign.kind), _order_of_rank(sign, last_lines)))
    killed = cause.code is not None and cause.code < 0 and cause.code != -signal.SIGTERM
    own = first_cause([dict(end) for end in told]) if cause.kind == "rank" and not killed else None
    if own is not None:
        host = job.hosts[job.host_of(own["rank"])].name
        reason = own["reason"].removesuffix(".")
        return Verdict("rank", host, own["rank"], f"rank {own['rank']} on {host} ended: {reason}")
    host = job.hosts[cause.host].name
    return Verdict(cause.kind, host, cause.rank, _sentence(cause, host, last_lines))


def _order_of_rank(sign: Sign, last_lines: Mapping[int, Sequence[str]]) -> int:
    if sign.kind != "rank":
        return 0
    if sign.code is not None and sign.code < 0:
        return 0 if sign.code != -signal.SIGTERM else 2  # its launcher sends that to a rank whose neighbour has ended
    return 3 if any(OF_PARTNERS.search(line) for line in last_lines.get(_rank(sign), ())) else 1


def _rank(sign: Sign) -> int:
    return -1 if sign.rank is None else sign.rank


def _sentence(sign: Sign, host: str, last_lines: Mapping[int, Sequence[str]]) -> str:
    words = f" ({sign.words})" if sign.words else ""
    rank = "a rank" if sign.rank is None else f"rank {sign.rank}"
    if sign.kind == "host":
        return f"host {host} is lost{words}"
    if sign.kind == "connection":
        return f"the connection to {host} is lost{words}"
    if sign.kind == "agent":
        return f"the agent on {host} is gone{words}"
    if sign.kind == "stopped":
        who = "DeepSpeed's launcher" if sign.rank is None else rank
        return f"{who} on {host} was stopped by a signal{words}"
    if sign.kind == "launcher":
        return f"DeepSpeed's launcher on {host} was ended by {_signal_name(sign.code)}"
    if sign.kind == "fault":
        return f"{host}: {sign.words}"
    is_signal = sign.code is not None and sign.code < 0  # which comes unawares
    said = "" if is_signal else " / ".join(_said(last_lines.get(_rank(sign), ())))
    return f"{rank} on {host} ended by {_end(sign.code)}" + (f": {said}" if said else "")


def _said(lines: Sequence[str]) -> list[str]:
    return [line.strip() for line in lines if line.strip()][-_LINES:]


def _end(code: int | None) -> str:
    if code is None:
        return "an end that nobody saw"
    if code >= 0:
        return f"exit code {code}"
    why = " (probably out of memory)" if code == -signal.SIGKILL else ""
    return f"{_signal_name(code)}{why}"


def _signal_name(code: int | None) -> str:
    try:
        return signal.Signals(-(code or 0)).name
    except ValueError:
        return f"code {code}"
