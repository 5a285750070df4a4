"""From the start of `deltalm train` to its first step, fresh and resumed: seconds and CPU seconds by process and part.

    python -m benchmarks.start DEMO      the directory of a `deltalm demo` that has got past its shards

Libraries load others when they are first used (DeepSpeed the compiler of PyTorch): `of it imports` is all of that, by a
clock within Python's import.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil

from benchmarks.recording import ROOT, existing, parser, report
from deltalm_ds.recipe.loading import recipe_path
from deltalm_ds.runs.events import read_events

TRAIN = "from deltalm_ds.cli import main; main()"
IMPORTS_OF_IT = "of it imports"
CLOCK = ROOT / "benchmarks" / "import_clock"
IMPORTS = {  # of what each process imports before it does anything
    "torch": "import torch",
    "torch and DeepSpeed": "import torch, deepspeed",
    "deltalm train": "import deltalm_ds.cli, deltalm_ds.launch.local, deltalm_ds.training.prepare",
    "DeepSpeed's launcher": "import deepspeed.launcher.launch",
    "a rank": "import deltalm_ds.training.train",
}
NOTE = (
    "CPU seconds are those of all threads of a process; those of its imports, whenever they were, stand beside its "
    "first part. With the model grow `inputs` (the newest checkpoint is read once for its checksums), `model`, "
    "`DeepSpeed` and `restoring`; with the data what `deltalm train` prepares (shards up to 4 GB are read once)."
)


def main() -> None:
    """Start a run twice and show the table."""
    options = parser(__doc__)
    options.add_argument("demo", type=existing)
    arguments = options.parse_args()
    rows = [
        {"start": "", "process": "alone", "part": f"import {name}"} | _alone(code) for name, code in IMPORTS.items()
    ]
    with tempfile.TemporaryDirectory() as directory:
        for name in ("fresh", "resumed"):
            rows += _start(name, arguments.demo, Path(directory))
    report(arguments, "Start of a run, one rank", "python -m benchmarks.start DEMO", rows, [NOTE])


def _alone(code: str) -> dict[str, Any]:
    began = time.monotonic()
    process = psutil.Popen([sys.executable, "-c", f"{code}; import time; print(time.process_time())"], stdout=-1)
    cpu = float(process.communicate()[0].split()[-1])  # behind what DeepSpeed says
    return {"seconds": time.monotonic() - began, "CPU seconds": cpu}


def _start(name: str, demo: Path, directory: Path) -> list[dict[str, Any]]:
    """The rows of one start, which is stopped after its first steps."""
    run = directory / "run"
    arguments = ["train", str(recipe_path("demo_pretrain")), "--out", str(run), "--ranks", "1"]
    environment = os.environ | {"PYTHONPATH": f"{CLOCK}{os.pathsep}{ROOT}", "IMPORT_CLOCK": str(directory)}
    began = time.time()
    starter = psutil.Popen(
        [sys.executable, "-c", TRAIN, *arguments], cwd=demo, env=environment, stderr=subprocess.DEVNULL
    )
    _await_event(run, "start", began)
    preparing = {"part": "imports, preparing", "seconds": time.time() - began, "CPU seconds": _cpu_seconds(starter)}
    started = _await_event(run, "started", began)
    total = time.time() - began
    (launcher,) = starter.children()
    (rank,) = launcher.children()
    launching = {"part": "all", "CPU seconds": _cpu_seconds(launcher)}
    starter.send_signal(signal.SIGTERM)
    starter.wait()

    rows = [{"process": "deltalm train", **preparing, **_imports(directory, starter)}]
    rows.append({"process": "DeepSpeed's launcher", **launching, **_imports(directory, launcher)})
    for part, seconds in started["seconds"].items():
        rows.append({"process": "rank", "part": part, "seconds": seconds, "CPU seconds": started["cpu_seconds"][part]})
    rows[2].update(_imports(directory, rank))
    cpu, imports = (sum(row.get(column, 0) for row in rows) for column in ("CPU seconds", IMPORTS_OF_IT))
    rows.append({"process": "all", "part": "until the first step has ended", "seconds": total, "CPU seconds": cpu})
    rows[-1] |= {IMPORTS_OF_IT: imports, "beside imports": cpu - imports}
    return [{"start": name} | row for row in rows]


def _imports(directory: Path, process: psutil.Process) -> dict[str, float]:
    return {IMPORTS_OF_IT: float((directory / str(process.pid)).read_text())}


def _await_event(run: Path, kind: str, since: float) -> dict[str, Any]:
    """The first event of a kind that this start records."""
    number = sum(event["kind"] == kind for event in read_events(run))
    while True:
        events = [event for event in read_events(run) if event["kind"] == kind]
        if len(events) > number:
            return events[number]
        if time.time() - since > 120:
            raise SystemExit(f"{run}: no event `{kind}` in two minutes.")
        time.sleep(0.01)


def _cpu_seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


if __name__ == "__main__":
    main()
