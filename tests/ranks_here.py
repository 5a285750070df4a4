"""Ranks that tests start: processes of this machine that meet as a launcher's do."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from deltalm_ds.training.rendezvous import free_port

SECONDS_TO_FOLLOW = 30  # for the others, after one has failed
SECONDS_TO_TELL = 10


def places(num_ranks: int = 1) -> list[dict[str, str]]:
    """What a launcher sets for each of the ranks."""
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(num_ranks)}
    return [common | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(num_ranks)]


def start_rank(arguments: Sequence[object], place: dict[str, str], **options: Any) -> subprocess.Popen[bytes]:
    """Python with these arguments as one of the ranks, on one thread; its stacks are told where it is ended by us.

    Args:
        arguments: of the interpreter.
        place: variables of this rank, beside this process's own.
        options: of `subprocess.Popen`.
    """
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "PYTHONFAULTHANDLER": "1"}
    environment |= {"OMP_NUM_THREADS": "1"} | place
    return subprocess.Popen([sys.executable, *map(str, arguments)], env=environment, **options)


def exit_codes(ranks: Sequence[subprocess.Popen[bytes]], timeout_s: float) -> list[int]:
    """When all have ended; those that wait for a failed one, or longer than that, are ended and write their stacks."""
    end = time.monotonic() + timeout_s
    is_failed = False
    try:
        while None in [rank.poll() for rank in ranks] and time.monotonic() < end:
            if any(rank.returncode for rank in ranks) and not is_failed:
                is_failed, end = True, min(end, time.monotonic() + SECONDS_TO_FOLLOW)
            time.sleep(0.05)
    finally:
        for rank in ranks:
            if rank.poll() is None:
                _end(rank)
    return [rank.returncode for rank in ranks]


def _end(rank: subprocess.Popen[bytes]) -> None:
    rank.send_signal(signal.SIGABRT)
    try:
        rank.wait(SECONDS_TO_TELL)
    except subprocess.TimeoutExpired:
        rank.kill()
        rank.wait()
