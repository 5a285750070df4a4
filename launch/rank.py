"""`python -m deltalm_ds.launch.rank LOGS MODULE ARGUMENTS`: a rank whose output goes into a file of its own."""

import os
import runpy
import sys
from pathlib import Path


def log_path(logs: Path, rank: int) -> Path:
    """Where the stdout and stderr of a rank are."""
    return logs / f"rank_{rank:05d}.log"


def launcher_log(logs: Path, host: str) -> Path:
    """Where the output of a host's launcher is, and of its ranks before they have a file of their own."""
    return logs / f"host_{host}.log"


if __name__ == "__main__":
    log = os.open(log_path(Path(sys.argv[1]), int(os.environ["RANK"])), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, sys.stdout.fileno())
    os.dup2(log, sys.stderr.fileno())
    os.close(log)
    sys.argv = sys.argv[2:]
    runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
