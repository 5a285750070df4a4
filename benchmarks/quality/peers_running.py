"""Trainings of `peers` as processes: environments, a budget of seconds, the first step, and peak memory."""

import contextlib
import os
import signal
import subprocess
import sys
import time
import venv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.quality.peers_systems import System, Training, system_of
from benchmarks.recording import ROOT

WORK = ROOT / "runs" / "peers"
# What `deltalm_ds.allocator.keep_freed_memory` says to the C library, said by its variables.
KEPT = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**63 - 1)}
LOOK_S, MEMORY_EVERY_S, STOP_S = 0.1, 1.0, 60.0
ONE_PROCESS = Training()


@dataclass(frozen=True)
class Row:
    """What is trained, and how; kept: freed memory is kept, as our own training does by itself."""

    system: str
    training: Training = ONE_PROCESS
    kept: bool = False


@dataclass
class Running:
    """A training, its beginning (Unix seconds), the seconds until its first step had ended, its peak memory."""

    system: System
    out: Path
    process: psutil.Popen
    started: float = field(default_factory=time.time)
    first_step_s: float | None = None
    peak_bytes: int = 0
    next_memory: float = 0.0

    def look(self) -> None:
        """Note what is new, memory now and then; then wait for a moment.

        Raises:
            SystemExit: it has ended by itself.
        """
        if self.process.poll() is not None:
            raise SystemExit(f"{self.out} ended with {self.process.returncode}: see {self.out}.log")
        if self.first_step_s is None and self.system.has_begun(self.out):
            self.first_step_s = time.time() - self.started
        if time.time() >= self.next_memory:
            self.peak_bytes = max(self.peak_bytes, sum(map(_proportional_bytes, self.processes())))
            self.next_memory = time.time() + MEMORY_EVERY_S
        time.sleep(LOOK_S)

    def processes(self) -> list[psutil.Process]:
        """All that belong to it."""
        return [self.process, *self.process.children(recursive=True)]

    def stop(self, at_once: bool = False) -> None:
        """Ask it to end, and end what is left of its processes; at once: without being asked."""
        members = self.processes() if self.process.poll() is None else []
        if members and not at_once:
            with contextlib.suppress(psutil.NoSuchProcess):
                self.process.send_signal(signal.SIGTERM)
            psutil.wait_procs([self.process], timeout=STOP_S)
        for process in members:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(members, timeout=STOP_S)


def train_for(rows: Mapping[Path, Row], seconds: float, pinned: bool) -> dict[Path, Running]:
    """Train at the same time, each row into its directory, until the seconds are over; pinned: each on its own core."""
    cores = [{core} for core in sorted(os.sched_getaffinity(0))]
    running = {}
    prepared = {out: system_of(row.system).command(out, row.training) for out, row in rows.items()}
    pythons = {out: python_of(row.system) for out, row in rows.items()}
    try:
        for (out, row), core in zip(rows.items(), cores if pinned else [None] * len(rows), strict=False):
            threads = 1 if pinned or row.training.processes > 1 else None
            command = [pythons[out], *prepared[out]]
            running[out] = start(system_of(row.system), out, command, environment(row.kept, threads), core)
        end = time.time() + seconds
        while time.time() < end:
            for one in running.values():
                one.look()
    finally:
        for one in running.values():
            one.stop()
    return running


def python_of(system: str) -> str:
    """The Python of a system: ours, or that of an environment with what it needs beside our packages."""
    requirements = system_of(system).requirements
    if not requirements:
        return sys.executable
    directory = WORK / "environments" / system
    python = directory / "bin" / "python"
    if not (directory / "done").exists():
        venv.create(directory, with_pip=True, clear=True)
        (site,) = directory.glob("lib/python*/site-packages")
        ours = [path for path in sys.path if path.endswith("site-packages")]
        (site / "ours.pth").write_text("".join(f"{path}\n" for path in ours))
        install = [str(python), "-m", "pip", "install", "--quiet", *requirements]
        subprocess.run(install, check=True, stdout=sys.stderr)
        (directory / "done").touch()
    return str(python)


def environment(kept: bool = False, threads: int | None = None) -> dict[str, str]:
    """Variables of a training or a judgement."""
    variables = {**os.environ, "PYTHONPATH": str(ROOT), **(KEPT if kept else {})}
    return variables if threads is None else {**variables, "OMP_NUM_THREADS": str(threads)}


def start(
    system: System, out: Path, command: Sequence[str], variables: Mapping[str, str], cores: set[int] | None = None
) -> Running:
    """A command that trains into a directory; what it says goes into a file beside that."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{out}.log", "w") as log:
        process = psutil.Popen(
            command, cwd=ROOT, env=variables, stdout=log, stderr=log,
            preexec_fn=(lambda: os.sched_setaffinity(0, cores)) if cores else None,
        )  # fmt: skip
    return Running(system, out, process)


def _proportional_bytes(process: psutil.Process) -> int:
    """Pages that several processes have are divided among them."""
    try:
        return process.memory_full_info().pss
    except psutil.Error:
        return 0
