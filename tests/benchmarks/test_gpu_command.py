"""`python -m benchmarks.gpu`: parts are processes with limits, rows stay, and all of it runs dry on a processor."""

import argparse
import json
import os
import runpy
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import psutil
import pytest

from benchmarks import gpu

ROOT = Path(__file__).parents[2]
QUICK = "facts,large,kernels,sweeps"


def rows_of(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / gpu.ROWS).read_text().splitlines()]


def run(out: Path, *arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "benchmarks.gpu", "--out", str(out), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | variables)


def assert_all_ran(process: "subprocess.CompletedProcess[str]", out: Path, parts: str) -> list[dict]:
    assert process.returncode == 0, process.stderr + (out / gpu.LOG).read_text()[-3000:]
    rows = rows_of(out)
    assert {row["name"] for row in rows if row["part"] == "run"} == set(parts.split(","))
    assert sorted(path.name for path in out.iterdir()) == [gpu.LOG, gpu.ROWS]
    return rows


def test_dry(tmp_path):
    """The quick parts really run, and nothing of a processor counts as a GPU's."""
    rows = assert_all_ran(run(tmp_path, "--dry", "--parts", QUICK), tmp_path, QUICK)
    assert {row["part"] for row in rows} == {"run", *QUICK.split(",")}
    assert [row for row in rows if row.get("ok") is False] == []
    # a processor has no product of 16 bits that sums in float32 in place
    assert {row.get("way") for row in rows if "failed" in row} <= {"addmm into float32"}
    assert {row["op"] for row in rows if row["part"] == "kernels"} >= {
        "attention",
        "linear_cross_entropy",
        "layer_norm",
    }
    assert {row["on"] for row in rows if row["part"] != "run"} == {"cpu"}


@pytest.mark.slow
def test_dry_of_all_parts(tmp_path):
    rows = assert_all_ran(run(tmp_path, "--dry"), tmp_path, ",".join(gpu.PARTS))
    assert {row["row"] for row in rows if row["part"] == "step"} == {"trainer-bf16 x2", "mbart-bf16 x2"}
    assert {row["engine"] for row in rows if row["part"] == "generation"} == {"pytorch-float32", "huggingface-bfloat16"}
    (curve,) = (row for row in rows if row.get("what") == "curve")
    assert curve["ok"] and curve["largest apart"] < 1e-3  # a processor's own losses, again
    assert [row for row in rows if "failed" in row and row.get("way") != "addmm into float32"] == []


def test_a_missing_package_costs_rows_alone(tmp_path):
    """pydantic is away, as on a machine without the bundle: the facts name it, and what needs it says so."""
    (tmp_path / "sitecustomize.py").write_text("import sys; sys.modules['pydantic'] = None")
    out = tmp_path / "out"
    process = run(out, "--dry", "--parts", "facts,step", PYTHONPATH=str(tmp_path))
    assert process.returncode == 1
    rows = rows_of(out)
    assert any(row.get("what") == "copy" for row in rows)
    (failed,) = (row for row in rows if "failed" in row)
    assert failed["name"] == "step" and "pydantic" in failed["failed"]


def test_an_unknown_part_is_refused(tmp_path):
    process = run(tmp_path, "--parts", "stpe")
    assert process.returncode == 2
    assert "there is no part stpe; there are facts, check" in process.stderr


def test_without_a_gpu_it_is_refused(tmp_path):
    process = run(tmp_path / "out", CUDA_VISIBLE_DEVICES="")
    assert process.returncode == 2
    assert "has no torch that sees a GPU" in process.stderr and not (tmp_path / "out").exists()


@pytest.fixture
def part(tmp_path, monkeypatch):
    """A part made of the source of a module, which gets `--to FILE`; returns the rows of a run of it."""

    def run_part(source: str, limit: float = 60.0, deadline: float = 525.0) -> list[dict]:
        (tmp_path / "a_part.py").write_text("import json, os, sys, time\nto = sys.argv[-1]\n" + source)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        monkeypatch.setattr(gpu, "PARTS", {"a": gpu.Part("a_part", limit)})
        monkeypatch.setattr(gpu, "DEADLINE_S", deadline)
        gpu.Run(tmp_path, {"GIVEN": "yes"}).stage(["a"])
        return rows_of(tmp_path)

    return run_part


WRITE = "open(to, 'a').write(json.dumps({'part': 'a', 'given': os.environ['GIVEN']}) + '\\n')\n"


def test_a_part_that_is_stopped_keeps_its_rows_and_leaves_no_process(part, tmp_path):
    child = "import subprocess\nchild = subprocess.Popen(['sleep', '60'])\nopen('{}', 'w').write(str(child.pid))\n"
    rows = part(WRITE + child.format(tmp_path / "pid") + "time.sleep(60)", limit=8)
    assert rows[0] == {"part": "a", "given": "yes"}
    assert rows[1]["name"] == "a" and rows[1]["failed"] == "stopped after 8 s"
    end = time.monotonic() + 30
    while (runs := is_running(int((tmp_path / "pid").read_text()))) and time.monotonic() < end:
        time.sleep(0.05)  # a busy machine takes its time to end what was killed
    assert not runs


def is_running(pid):
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_command_that_is_ended_leaves_no_part(tmp_path):
    process = subprocess.Popen([sys.executable, "-m", "benchmarks.gpu", "--out", str(tmp_path), "--dry"], cwd=ROOT)
    while not (parts := psutil.Process(process.pid).children()):
        time.sleep(0.05)
    process.terminate()
    assert process.wait(30) == 128 + signal.SIGTERM
    assert psutil.wait_procs(parts, timeout=10)[1] == []


def test_a_part_that_fails_says_why(part, tmp_path):
    rows = part(WRITE + "print('on the way')\nraise ValueError('no such card')")
    assert rows[-1]["failed"] == "exit code 1: ValueError: no such card"
    assert "===== a =====" in (tmp_path / gpu.LOG).read_text() and "on the way" in (tmp_path / gpu.LOG).read_text()


def test_nothing_begins_when_the_time_is_up(part):
    (row,) = part(WRITE, deadline=10.0)
    assert row["failed"].startswith("not begun: 10 s")


def test_a_bundle_is_installed_also_where_a_wheel_does_not_fit(tmp_path):
    """Two wheels of one module each; that of another platform is left out."""
    bundle, site = tmp_path / "bundle", tmp_path / "site"
    (bundle / "data").mkdir(parents=True)
    for name, tag in (("fitting", "py3-none-any"), ("unfit", "cp27-cp27m-win32")):
        with zipfile.ZipFile(bundle / f"{name}-1.0-{tag}.whl", "w") as wheel:
            wheel.writestr(f"{name}.py", "")
            wheel.writestr(f"{name}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
            wheel.writestr(f"{name}-1.0.dist-info/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n")
            wheel.writestr(f"{name}-1.0.dist-info/RECORD", "")
    with open(tmp_path / "log", "w") as log:
        variables = gpu.install(bundle, site, log)
    assert (site / "fitting.py").is_file() and not (site / "unfit.py").exists()
    assert variables == {"DELTALM_QUALITY_DATA": str(bundle / "data")}
    assert "unfit" in (tmp_path / "log").read_text()


def test_without_a_bundle_nothing_is_installed(tmp_path):
    with open(tmp_path / "log", "w") as log:
        assert gpu.install(tmp_path / "bundle", tmp_path / "site", log) == {}


def test_parts_and_stages_name_each_other():
    assert sorted(name for stage in gpu.STAGES for name in stage) == sorted(gpu.PARTS)


@pytest.mark.parametrize(
    ("config", "seen"),
    [
        ({"args": ["tests"]}, ""),
        ({"args": ["tests/kernels/check_fused.py"]}, "3"),
        ({"args": ["tests"], "workerinput": {}}, "3"),  # of pytest-xdist: whoever started it has decided
    ],
)
def test_the_suite_is_for_the_processor_and_check_fused_for_the_gpu(config, seen, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    runpy.run_path(str(ROOT / "tests" / "conftest.py"))["pytest_configure"](argparse.Namespace(**config))
    assert os.environ["CUDA_VISIBLE_DEVICES"] == seen
