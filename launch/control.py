"""`deltalm launch --status | --stop`: what a supervised run is at, and its end on every host."""

import fcntl
import json
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from deltalm_ds.errors import InputError
from deltalm_ds.launch.fleet import Memory, read_memory
from deltalm_ds.launch.job import JOB, read_job
from deltalm_ds.launch.ranks import GRACE_S
from deltalm_ds.launch.remote import run_on_hosts, why_ssh_failed
from deltalm_ds.runs.attempts import attempt_name
from deltalm_ds.runs.beats import read_beats
from deltalm_ds.runs.checkpoints import checkpoint_directories
from deltalm_ds.training.prepare import LOCK

STOP = Path("launch") / "stop"  # of a run directory: somebody wants the end
END_S = 60.0  # beyond the grace, for a supervisor to end all
LOOK_S = 0.5


def status(run: Path) -> dict[str, Any]:
    """What a supervised run is at.

    Raises:
        InputError: the run was never launched.
    """
    memory = _memory(run)
    beats = read_beats(run, memory.attempt)
    checkpoints = checkpoint_directories(run)
    runs = _is_held(run)
    return {
        "run": str(run),
        "supervisor": f"process {memory.pid} on {memory.host}" if runs else "none",
        "attempt": memory.attempt,
        "hosts": memory.hosts,
        "lost": sorted(memory.lost),
        "excluded": memory.excluded,
        "failures": [asdict(failure) for failure in memory.failures],
        "end": None if runs else memory.end,
        "newest_checkpoint": checkpoints[-1].name if checkpoints else None,
        "ranks": [vars(beats[rank]) for rank in sorted(beats)] if runs else [],
    }


def stop(run: Path) -> dict[str, str]:
    """End a supervised run, saved, and see to it that nothing is left of it; by host what is left, or empty.

    Raises:
        InputError: the run was never launched, or its supervisor cannot be asked, or does not end.
    """
    memory = _memory(run)
    if _is_held(run):
        try:
            (run / STOP).touch()
        except OSError as error:
            raise InputError(
                f"{run / STOP} cannot be written ({error.strerror}): ask its supervisor by `kill {memory.pid}` on "
                f"{memory.host}."
            ) from None
        until = time.monotonic() + GRACE_S + END_S
        while _is_held(run):
            if time.monotonic() > until:
                raise InputError(
                    f"The supervisor of {run} (process {memory.pid} on {memory.host}) does not end: kill it, then give "
                    "the same command again."
                )
            time.sleep(LOOK_S)
        (run / STOP).unlink(missing_ok=True)
        memory = _memory(run)
    return end_on_hosts(run, memory.attempt, sorted({*memory.hosts, *memory.lost, *memory.excluded}), GRACE_S)


def end_on_hosts(run: Path, attempt: int, hosts: Sequence[str], grace_s: float) -> dict[str, str]:
    """End what is left of a run on hosts, with the time to save; by host why that may be in vain, or empty.

    Args:
        run: the run directory.
        attempt: the newest one's number.
        hosts: by name.
        grace_s: that ranks have to save.
    """
    path = run / "launch" / attempt_name(attempt) / JOB
    if not path.exists():
        return {}
    command = read_job(path).end_command(grace_s)
    found = {}
    for name, outcome in run_on_hosts(hosts, command, grace_s + END_S).items():
        try:
            left = json.loads(outcome.output)["left"]
            found[name] = f"{left} processes are left" if left else ""
        except (ValueError, KeyError, TypeError):
            found[name] = why_ssh_failed(name, outcome) or outcome.errors or f"exit code {outcome.code}"
    return found


def _memory(run: Path) -> Memory:
    memory = read_memory(run)
    if not memory.attempt:
        raise InputError(f"{run} was never launched: there is no attempt in it.")
    return memory


def _is_held(run: Path) -> bool:
    with open(run / LOCK, "rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False
