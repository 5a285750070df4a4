"""All that needs a GPU, in one call of at most nine minutes and without any network: `make gpu`, or

    python3 -m benchmarks.gpu --out DIR                 everything
    python3 -m benchmarks.gpu --out DIR --parts step    a part, or several with commas; rows are added to those there
    python3 -m benchmarks.gpu --out DIR --dry           toy sizes on a CPU: does everything run?

It needs a Python that has torch with CUDA and pytest. What else is missing comes from the folder that `make gpu-bundle`
made (--bundle), which is installed into a folder of its own; without it, what needs a missing package is a row that
says so. Each part is a process with a limit, and adds its rows to DIR/rows.jsonl as they come: one that is cut short
keeps those it had. All output is in DIR/log.txt. `python3 -m benchmarks.gpu_report DIR` makes tables of the rows and
says what falls short.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

ROOT = Path(__file__).resolve().parents[1]
BUNDLE = ROOT / "build" / "gpu-bundle"
DEADLINE_S = 525.0  # from the start: nothing runs longer
SHORTEST_S = 15.0  # in which a part may still do something
ROWS, LOG = "rows.jsonl", "log.txt"


@dataclass(frozen=True)
class Part:
    """A module to run, with its arguments, and the seconds that it may take."""

    module: str
    limit: float
    arguments: tuple[str, ...] = ()


PARTS = {
    "facts": Part("benchmarks.gpu_parts.facts", 40),
    "check": Part("benchmarks.gpu_parts.kernel_tests", 140, ("native",)),
    "large": Part("benchmarks.gpu_parts.large", 100),
    "memcheck": Part("benchmarks.gpu_parts.kernel_tests", 115, ("memcheck",)),
    "racecheck": Part("benchmarks.gpu_parts.kernel_tests", 115, ("racecheck",)),
    "kernels": Part("benchmarks.gpu_parts.kernels", 130),
    "step": Part("benchmarks.train_step", 150),
    "generation": Part("benchmarks.inference", 120),
    "quality": Part("benchmarks.gpu_parts.quality", 90),
    "sweeps": Part("benchmarks.gpu_parts.sweeps", 80),
}
# What runs side by side; only where nothing is timed.
STAGES = (
    ("facts",),
    ("check", "large", "memcheck", "racecheck"),
    ("kernels",),
    ("step",),
    ("quality",),
    ("generation",),
    ("sweeps",),
)


class Run:
    """The parts of one call, and how much time is left for them."""

    def __init__(self, out: Path, variables: dict[str, str]) -> None:
        self.out, self._variables, self._began = out, variables, time.monotonic()

    def stage(self, names: list[str]) -> None:
        """Run parts side by side, each within its limit; a row for each says how it ended."""
        left = DEADLINE_S - (time.monotonic() - self._began)
        if left < SHORTEST_S:
            for name in names:
                self._add(name, failed=f"not begun: {left:.0f} s were left")
            return
        with tempfile.TemporaryDirectory() as scratch:
            start = time.monotonic()
            started: dict[str, subprocess.Popen[bytes]] = {}
            try:
                for name in names:
                    started[name] = self._start(name, Path(scratch) / name)
                for name, process in started.items():
                    limit = min(PARTS[name].limit, left) - (time.monotonic() - start)
                    self._end(name, process, limit, start, Path(scratch) / name)
            finally:  # also when this process is told to end
                for process in started.values():
                    if process.poll() is None:
                        kill_group(process.pid)
                        process.wait()

    def _start(self, name: str, log: Path) -> "subprocess.Popen[bytes]":
        print(f"{name} …", file=sys.stderr, flush=True)
        part = PARTS[name]
        command = [sys.executable, "-m", part.module, *part.arguments, "--to", str(self.out / ROWS)]
        with open(log, "wb") as file:
            return subprocess.Popen(
                command, stdout=file, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, cwd=ROOT,
                # unbuffered: the log of a stopped part is whole, and the last line of one that fails is its error
                env=os.environ | self._variables | {"PYTHONUNBUFFERED": "1"}, start_new_session=True,
            )  # fmt: skip

    def _end(self, name: str, process: "subprocess.Popen[bytes]", limit: float, start: float, log: Path) -> None:
        reason = None
        try:
            code = process.wait(max(limit, 0.0))
        except subprocess.TimeoutExpired:
            reason = f"stopped after {time.monotonic() - start:.0f} s"
        kill_group(process.pid)  # all of it, or what outlived it
        process.wait()
        output = log.read_text(encoding="utf-8", errors="replace")
        with open(self.out / LOG, "a", encoding="utf-8") as file:
            file.write(f"\n===== {name} =====\n{output}")
        if reason is None and code:
            last = (output.strip().splitlines() or [""])[-1][:200]
            reason = f"exit code {code}: {last}"
        self._add(name, seconds=round(time.monotonic() - start, 1), **({"failed": reason} if reason else {}))

    def _add(self, name: str, **values: object) -> None:
        row = {"part": "run", "on": "", "name": name, **values}
        print(json.dumps(row), file=sys.stderr, flush=True)
        with open(self.out / ROWS, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def kill_group(pid: int) -> None:
    """End a process and those it started, which are its group."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def install(bundle: Path, site: Path, log: IO[str]) -> dict[str, str]:
    """Install the wheels of a bundle into the folder `site`; the environment with which parts find what it has."""
    wheels = sorted(str(wheel) for wheel in bundle.glob("*.whl"))
    if wheels and not _pip_install(wheels, site, log):  # one of them is for another Python, say: the others may do
        left_out = [Path(wheel).name for wheel in wheels if not _pip_install([wheel], site, log)]
        print(f"not installed (see {LOG}): {', '.join(left_out)}", file=sys.stderr)
    data = (bundle / "data").resolve()
    return {"DELTALM_QUALITY_DATA": str(data)} if data.is_dir() else {}


def _pip_install(wheels: list[str], site: Path, log: IO[str]) -> bool:
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-compile"]
    command += ["--disable-pip-version-check", "--target", str(site), *wheels]
    return subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, text=True).returncode == 0


def main() -> int:
    """Run the parts; the exit code is 1 if one failed or was stopped."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--out", type=Path, required=True, help="where rows.jsonl and log.txt go")
    options.add_argument("--parts", default=",".join(PARTS), help=f"which, of {', '.join(PARTS)}")
    options.add_argument("--bundle", type=Path, default=BUNDLE, help="what `make gpu-bundle` made; used where it is")
    options.add_argument("--dry", action="store_true", help="toy sizes on a CPU")
    arguments = options.parse_args()
    parts = arguments.parts.split(",")
    unknown = [name for name in parts if name not in PARTS]
    if unknown:
        options.error(f"there is no part {', '.join(unknown)}; there are {', '.join(PARTS)}")
    if not arguments.dry and not _has_gpu():
        options.error(f"{sys.executable} has no torch that sees a GPU: name another with make PYTHON=…, or give --dry")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # so that parts end with it
    out = arguments.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as site:
        # ranks do not look into the working directory, and this repository need not be installed
        variables = {"PYTHONPATH": os.pathsep.join(filter(None, [site, str(ROOT), os.environ.get("PYTHONPATH")]))}
        if arguments.dry:
            variables |= {"DELTALM_BENCHMARKS_TOY": "1", "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        else:
            variables["PYTORCH_CUDA_ALLOC_CONF"] = "expandable_segments:True"
            with open(out / LOG, "a", encoding="utf-8") as log:
                variables |= install(arguments.bundle, Path(site), log)
        run = Run(out, variables)
        for stage in STAGES:
            names = [name for name in stage if name in parts]
            if names:
                run.stage(names)
    return _summary(out)


def _has_gpu() -> bool:
    """In a process of its own: this one leaves the GPU, and all packages, to the parts."""
    return (
        subprocess.run([sys.executable, "-c", "import torch; torch.cuda.init()"], capture_output=True).returncode == 0
    )


def _summary(out: Path) -> int:
    rows = [json.loads(line) for line in (out / ROWS).read_text(encoding="utf-8").splitlines()]
    failed = [row for row in rows if "failed" in row or row.get("ok") is False]
    print(f"{out / ROWS}: {len(rows)} rows, {len(failed)} of them failed", *map(json.dumps, failed), sep="\n  ")
    return 1 if any(row["part"] == "run" and "failed" in row for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
