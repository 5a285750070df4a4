"""The starts of a run and how each one ended, written to and read from its events.

`start` (host, ranks, step, again) is recorded before ranks start, `rank ended` (rank, host, code, reason) by each rank
that does not get to the last step, `end` (code, reason, step, asked) by what started the ranks, unless it was killed.
"""

import re
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deltalm_ds.errors import DONE_EXIT_CODE, FAILED_EXIT_CODE, FINAL_EXIT_CODES, STOPPED_EXIT_CODE, CheckError
from deltalm_ds.runs.beats import Beat
from deltalm_ds.runs.checkpoints import checkpoint_directories
from deltalm_ds.runs.events import read_events, record_event

MOST_STARTS_WITHOUT_PROGRESS = 3
# What a rank says whose partner, or the way to it, is gone: of gloo, of NCCL, and of the store of torch.
OF_PARTNERS = re.compile(
    r"Connection (closed|reset|refused)|Broken pipe|Timed out waiting|wait timeout after|Socket Timeout|gloo.*timed out"
    r"|ncclRemoteError|NCCL communicator was aborted|remote process exit|remote worker crash"
    r"|collective operation timeout|DistNetworkError|DistStoreError",
    re.IGNORECASE,
)


@dataclass
class Start:
    """One start of a run.

    Attributes:
        time: in UTC.
        host, ranks: where it ran, on how many.
        step: of the newest checkpoint when it began.
        again: it was told to forget how earlier ones ended.
        rank_ends: what its ranks said when they ended early: rank, code, reason.
        end: the exit code, its reason, and whether the end was asked for; None for one that was killed with its ranks.
    """

    time: str
    host: str
    ranks: int
    step: int
    again: bool = False
    rank_ends: list[dict[str, Any]] = field(default_factory=list)
    end: dict[str, Any] | None = None

    @property
    def was_stopped(self) -> bool:
        """Whether its ranks saved on request, whoever asked and whatever became of what started them."""
        return any(end["rank"] == 0 and end["code"] == STOPPED_EXIT_CODE for end in self.rank_ends)

    @property
    def failed(self) -> bool:
        """Whether it ended by itself, before the last step."""
        if self.end is None:
            return not self.was_stopped
        return not self.end["asked"] and self.end["code"] not in (DONE_EXIT_CODE, STOPPED_EXIT_CODE)

    @property
    def reason(self) -> str:
        """Why it ended, in words."""
        return self.end["reason"] if self.end else "killed without a word"


def read_starts(run: Path) -> list[Start]:
    """The starts of a run, oldest first."""
    starts: list[Start] = []
    for event in read_events(run):
        if event["kind"] == "start":
            starts.append(Start(**{name: event[name] for name in ("time", "host", "ranks", "step", "again")}))
        elif event["kind"] == "rank ended" and starts:
            starts[-1].rank_ends.append(event)
        elif event["kind"] == "end" and starts:
            starts[-1].end = event
    return starts


def record_start(run: Path, ranks: int, again: bool) -> None:
    """Record that ranks are about to start.

    Args:
        run: the run directory.
        ranks: how many.
        again: forget how earlier starts ended.

    Raises:
        CheckError: too many starts failed, one after the other, and none of them got to a new checkpoint.
    """
    step = _newest_step(run)
    failed = [] if again else _without_progress(read_starts(run), step)
    if len(failed) >= MOST_STARTS_WITHOUT_PROGRESS:
        ends = "\n".join(f"  {start.time} on {start.host}, {start.ranks} rank(s): {start.reason}" for start in failed)
        raise CheckError(
            f"{run} makes no progress: {len(failed)} starts failed at step {step}, none of them with a new "
            f"checkpoint:\n{ends}\nFind out why, and start it with --again."
        )
    record_event(run, "start", host=socket.gethostname(), ranks=ranks, step=step, again=again)


def _without_progress(starts: list[Start], step: int) -> list[Start]:
    """The newest starts that failed where the run still is, oldest first, back to one that was told to forget."""
    found: list[Start] = []
    for start in reversed(starts):
        if start.step < step:
            break
        if start.failed:
            found.insert(0, start)
        if start.again:
            break
    return found


def _newest_step(run: Path) -> int:
    """Of the newest checkpoint; 0 where there is none."""
    names = [path.name for path in checkpoint_directories(run)]
    return int(names[-1].removeprefix("step_")) if names else 0


def record_rank_end(run: Path, rank: int, code: int, reason: str) -> None:
    """Record that a rank ends before the last step.

    Args:
        run: the run directory.
        rank: which.
        code: its exit code.
        reason: why, of which the first line is kept.
    """
    _record_rank_end(run, rank, socket.gethostname(), code, reason)


def _record_rank_end(run: Path, rank: int, host: str, code: int, reason: str) -> None:
    first_line = reason.strip().split("\n")[0][:500]
    record_event(run, "rank ended", rank=rank, host=host, code=code, reason=first_line)


def record_stuck(run: Path, fault: str, blamed: Sequence[Beat]) -> None:
    """Record that a run hangs and is ended, and that it is the first of the ranks to blame that ends it.

    Args:
        run: the run directory.
        fault: who keeps it from going on, in words.
        blamed: their beats; others may speak for them.
    """
    step, ranks = min(beat.step for beat in blamed), [beat.rank for beat in blamed]
    record_event(run, "stuck", fault=fault, step=step, ranks=ranks, hosts=sorted({beat.host for beat in blamed}))
    _record_rank_end(run, blamed[0].rank, blamed[0].host, FAILED_EXIT_CODE, fault)


def first_cause(rank_ends: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Of the ends that the ranks of one start recorded the one that made the others; None if none of them did.

    A rank that only lost its partners follows from what became of those. Where all did, the first cause is one that
    recorded nothing: a rank that was killed, a host or link that is gone. A save on request causes nothing, either.

    Args:
        rank_ends: events `rank ended`, oldest first.
    """
    own = [end for end in rank_ends if end["code"] != STOPPED_EXIT_CODE and not OF_PARTNERS.search(end["reason"])]
    final = [end for end in own if end["code"] in FINAL_EXIT_CODES]
    return next(iter([*final, *own]), None)


def record_end(run: Path, code: int, reason: str, asked: bool) -> int:
    """Record the end of all ranks of a start; returns its exit code.

    What a rank said of itself is more than what the launcher saw of it: that trying again is useless, whatever its
    partners died of meanwhile, or that all is saved.

    Args:
        run: the run directory.
        code: the launcher's.
        reason: what can be told from that code.
        asked: whether somebody wanted the end.
    """
    starts = read_starts(run)
    ends = starts[-1].rank_ends if starts else []
    cause = first_cause(ends)
    if cause and cause["code"] in FINAL_EXIT_CODES:
        code, reason = cause["code"], cause["reason"]
    elif code != DONE_EXIT_CODE and starts and starts[-1].was_stopped:
        code, reason = STOPPED_EXIT_CODE, "stopped, saved"
    elif not reason:
        told = [end["reason"] for end in (cause, *ends) if end]
        reason = "done" if code == DONE_EXIT_CODE else next(iter(told), f"exit code {code}")
    with suppress(OSError):  # a full disk, say: the code is what matters
        record_event(run, "end", code=code, reason=reason, asked=asked, step=_newest_step(run))
    return code
