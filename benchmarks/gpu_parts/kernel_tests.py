"""The tests of kernels and CUDA graphs on the GPU itself: natively, or the kernels' under a tool of compute-sanitizer.

python -m benchmarks.gpu_parts.kernel_tests native
python -m benchmarks.gpu_parts.kernel_tests memcheck      out of bounds, misaligned
python -m benchmarks.gpu_parts.kernel_tests racecheck     races in shared memory
"""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from typing import Any

from benchmarks.device import TOY
from benchmarks.recording import FAILED, ROOT, keep, parser

KERNELS = "tests/kernels/check_fused.py"
NATIVE = (
    KERNELS,
    "tests/kernels/test_torch_internals.py",
    "tests/kernels/test_dispatch.py",
    "tests/kernels/test_guarded_memory.py",
    "tests/model/test_cuda_graph.py",
    "tests/training/test_graphs.py::test_losses_masks_and_gradients_are_the_models_own",
    "tests/generation/test_recorded_search.py::test_graphs_on_a_gpu",
)
PROCESSES = 10  # that compile and run side by side
LIMIT_S = {"native": 125.0, "memcheck": 100.0, "racecheck": 100.0}
# Few tests, as the tools slow them down: every kernel in small blocks and in one type, what the table compares.
SANITIZED = "small_blocks or (test_table and bfloat16 and not large)"
# Shared memory, in which alone racecheck looks: reductions of the norm, and tiles of attention.
RACES = "(small_blocks and blocks0) or (test_table and float16 and not bfloat16 and layer_norm)"
TOY_TESTS = "test_poison or guards"
SUMMARY = re.compile(r"(\d+) (passed|failed|skipped|error)")


def command(tool: str) -> list[str]:
    """pytest natively in several processes, or in one under the tool."""
    pytest = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-rfE", "--tb=short"]
    if TOY:
        return [*pytest, KERNELS, "-k", TOY_TESTS]
    if tool == "native":
        parallel = ["-n", str(PROCESSES)] if importlib.util.find_spec("xdist") else []
        # a file that needs what is missing is an error among the others' results
        return [*pytest, *parallel, "--maxfail", "40", "--continue-on-collection-errors", *NATIVE]
    sanitizer = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9", "--print-limit", "20"]
    return [*sanitizer, *pytest, KERNELS, "-k", SANITIZED if tool == "memcheck" else RACES]


def main() -> None:
    """Run them, and keep one row."""
    options = parser(__doc__)
    options.add_argument("tool", choices=("native", "memcheck", "racecheck"))
    arguments = options.parse_args()
    row: dict[str, Any] = {"what": arguments.tool}
    if arguments.tool != "native" and not TOY and not shutil.which("compute-sanitizer"):
        keep(arguments, "tests", {**row, FAILED: "compute-sanitizer is not on the PATH"})
        return
    start = time.monotonic()
    output, code = _run(arguments.tool)
    print(output, flush=True)
    row |= {"seconds": time.monotonic() - start, **_counts(output), "ended": code is not None}
    if arguments.tool != "native" and not TOY:
        errors = re.search(r"ERROR SUMMARY: (\d+)|RACECHECK SUMMARY: (\d+)", output)
        reports = re.findall(r"^========= (?:Invalid|Misaligned|Error|Race)", output, re.MULTILINE)
        row["errors of the tool"] = int(errors[1] or errors[2]) if errors else len(reports)
    failures = re.findall(r"^(?:FAILED|ERROR) (\S+)", output, re.MULTILINE)
    keep(arguments, "tests", {**row, "ok": _is_ok(row, code), "failures": failures[:10]})


def _run(tool: str) -> tuple[str, int | None]:
    """What it prints, and its exit code; None where the time is up."""
    variables = {**os.environ, "PYTHONUNBUFFERED": "1"}
    if TOY:
        variables["TRITON_INTERPRET"] = "1"
    elif tool != "native":
        variables["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"  # else all tensors are one allocation to the tool
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        process = subprocess.Popen(command(tool), stdout=output, stderr=subprocess.STDOUT, cwd=ROOT, env=variables)
        try:
            code: int | None = process.wait(LIMIT_S[tool])
        except subprocess.TimeoutExpired:
            process.kill()  # those that it started are of our group, and end with it
            process.wait()
            code = None
        output.seek(0)
        return output.read(), code


def _counts(output: str) -> dict[str, int]:
    """Passed, failed, skipped: by pytest's last line, or by the dots of a run that was stopped."""
    lines = [line for line in output.splitlines() if SUMMARY.search(line) and " in " in line]
    if lines:
        counts = {word: int(number) for number, word in SUMMARY.findall(lines[-1])}
        counts["failed tests"] = counts.pop("failed", 0) + counts.pop("error", 0)
        return counts
    progress = "".join(re.findall(r"^([.sFE]+)(?: +\[ *\d+%\])?$", output, re.MULTILINE))
    return {"passed": progress.count("."), "failed tests": progress.count("F") + progress.count("E")}


def _is_ok(row: dict[str, Any], code: int | None) -> bool:
    """A run that was stopped is well if nothing was found until then, which the row says: ended is false."""
    return (
        code in (0, None) and bool(row.get("passed")) and not row["failed tests"] and not row.get("errors of the tool")
    )


if __name__ == "__main__":
    main()
