"""A long study: parts that are done once each; stopped, the same command goes on.

A part leaves a file or a directory by its name, and a note of its seconds and whether it is done; a training that was
stopped goes on from its newest checkpoint, a suite with the outputs that it has. Several commands may work at a study
at once: one of them does a part. Seconds are a processor's: what else the machine does while a study runs for hours
makes them no more.
"""

import fcntl
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from benchmarks.recording import ROOT
from deltalm_ds.files import read_json, write_json
from deltalm_ds.processor import native_bfloat16

SHARED = ROOT.parent / "shared" / "data"
STUDIES = ROOT / "runs" / "quality"
LOWEST_PRIORITY = 19
LOOK_EVERY_S = 2  # for new sessions
THREADS = 1  # of a part: two studies, or two seeds of one, share two cores without waiting for each other


def give_way() -> None:
    """From now on this process and those that it starts compute when nobody else does."""
    os.nice(LOWEST_PRIORITY)
    threading.Thread(target=_let_sessions_give_way, daemon=True).start()


def zero1() -> str:
    """An override of a recipe: ZeRO stage 1 in the precision that this processor multiplies fastest."""
    return f"deepspeed={'bf16' if native_bfloat16() else 'fp32'}_zero1"


def _let_sessions_give_way() -> None:
    """Linux may share cores out by session, so that priorities count within one alone; launchers begin new ones."""
    this = psutil.Process()
    while True:
        for process in [this, *this.children(recursive=True)]:
            with suppress(OSError):  # it has ended, or sessions are not groups here
                group = Path(f"/proc/{process.pid}/autogroup")
                if not group.read_text().endswith(f" nice {LOWEST_PRIORITY}\n"):
                    group.write_text(str(LOWEST_PRIORITY))
        time.sleep(LOOK_EVERY_S)


def _processor_seconds() -> float:
    """Of this process and those that it started and that have ended."""
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


class Study:
    """A directory in which parts are done."""

    def __init__(self, name: str) -> None:
        """`runs/quality/{name}`, made where it is not there."""
        self.directory = STUDIES / name
        (self.directory / "seconds").mkdir(parents=True, exist_ok=True)

    def path(self, part: str) -> Path:
        """What a part leaves."""
        return self.directory / part

    def seconds(self, part: str) -> float:
        """What it took of a processor, all threads and all starts together."""
        return self._note(part)["seconds"]

    def make(self, part: str, function: Callable[[Path], object]) -> Path:
        """Have a function leave the part at a path that is not there, or finish it where it is; the path."""
        with self._locked(part):
            if not self._note(part)["is_done"]:
                self._do(part, function)
        return self.path(part)

    def _do(self, part: str, function: Callable[[Path], object]) -> None:
        print(f"{time.strftime('%H:%M:%S')} {self.directory.name}: {part}", file=sys.stderr, flush=True)
        self.path(part).parent.mkdir(parents=True, exist_ok=True)
        start, is_done = _processor_seconds() - self.seconds(part), False
        try:
            function(self.path(part))
            is_done = True
        finally:
            write_json(self._noted(part), {"seconds": round(_processor_seconds() - start, 1), "is_done": is_done})

    def deltalm(self, part: str, *command: object) -> Path:
        """A part that one of our commands leaves at `--out`; paths in it are relative to the study's directory.

        Raises:
            SystemExit: the command failed, or was stopped; it says why on stderr, and its code is ours.
        """
        resumes = command[0] == "train" or "--suite" in command

        def run(out: Path) -> None:
            if resumes or not out.exists():  # whatever else writes a directory leaves a whole one or none
                self._run(part, command)

        return self.make(part, run)

    def printed(self, part: str, *command: object) -> str:
        """What one of our commands prints that keeps at `--out` what it has, as a suite does: done, it only reads.

        Raises:
            SystemExit: as `deltalm`.
        """
        return self._run(part, command, stdout=subprocess.PIPE).stdout

    def _run(self, part: str, command: Sequence[object], stdout: int | None = None) -> subprocess.CompletedProcess[str]:
        program = [str(Path(sys.executable).with_name("deltalm")), *map(str, command), "--out", part]
        environment = {**os.environ, "OMP_NUM_THREADS": str(THREADS)}
        done = subprocess.run(
            program, check=False, cwd=self.directory, env=environment, stdout=stdout, encoding="utf-8"
        )
        if done.returncode:
            sys.exit(done.returncode)
        return done

    def _note(self, part: str) -> dict[str, Any]:
        noted = self._noted(part)
        return read_json(noted) if noted.exists() else {"seconds": 0.0, "is_done": False}

    def _noted(self, part: str) -> Path:
        return self.directory / "seconds" / f"{part.replace('/', '.')}.json"

    @contextmanager
    def _locked(self, part: str) -> Iterator[None]:
        with open(self._noted(part).with_suffix(".lock"), "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
