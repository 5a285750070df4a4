"""Who is to blame for the end of an attempt: of all signs the cause, in a sentence."""

import re
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from deltalm_ds.launch.attempt import Sign
from deltalm_ds.launch.job import Job

# What ranks say when a partner of theirs is gone: gloo, NCCL, the store of torch.distributed.
_OF_FOLLOWERS = re.compile(
    r"Connection (?:closed|reset) by peer|Broken pipe|Connection refused|recvValue failed|sendBytes failed"
    r"|Socket closed|remote process exited|ncclRemoteError|ncclSystemError|DistNetworkError|Timed out waiting"
    r"|Application timeout caused pair closure"
)
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


def judge(signs: Sequence[Sign], job: Job, last_lines: Mapping[int, Sequence[str]]) -> Verdict:
    """The cause: a host or an agent that is lost; then a stopped process, a launcher that is gone; then ranks.

    Of ranks the first that ended by a signal, else the first that does not merely say that another one is gone.

    Args:
        signs: at least one, in the order in which they came.
        job: what was started.
        last_lines: what ranks wrote last, by rank.
    """
    order = {"host": 0, "agent": 1, "stopped": 2, "launcher": 3, "fault": 4, "rank": 5}

    def place(sign: Sign) -> tuple[int, int]:
        return order[sign.kind], _order_of_rank(sign, last_lines) if sign.kind == "rank" else 0

    cause = min(signs, key=place)  # the first of those alike
    host = job.hosts[cause.host].name
    return Verdict(cause.kind, host, cause.rank, _sentence(cause, host, last_lines))


def _order_of_rank(sign: Sign, last_lines: Mapping[int, Sequence[str]]) -> int:
    if sign.code is not None and sign.code < 0:
        return 0 if sign.code != -signal.SIGTERM else 2  # its launcher sends that to a rank whose neighbour has ended
    return 3 if follows(last_lines.get(sign.rank, ()) if sign.rank is not None else ()) else 1


def follows(lines: Sequence[str]) -> bool:
    """Whether a rank's last lines say that it ended because another one was gone."""
    return any(_OF_FOLLOWERS.search(line) for line in lines)


def _sentence(sign: Sign, host: str, last_lines: Mapping[int, Sequence[str]]) -> str:
    words = f" ({sign.words})" if sign.words else ""
    rank = "a rank" if sign.rank is None else f"rank {sign.rank}"
    if sign.kind == "host":
        return f"host {host} is lost{words}"
    if sign.kind == "agent":
        return f"the agent on {host} is gone{words}"
    if sign.kind == "stopped":
        who = "DeepSpeed's launcher" if sign.rank is None else rank
        return f"{who} on {host} was stopped by a signal{words}"
    if sign.kind == "launcher":
        return f"DeepSpeed's launcher on {host} was ended by {_signal_name(sign.code)}"
    if sign.kind == "fault":
        return f"{host}: {sign.words}"
    lines = last_lines.get(sign.rank, ()) if sign.rank is not None else ()
    said = "" if sign.code is not None and sign.code < 0 else " / ".join(_said(lines))  # a signal comes unawares
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
