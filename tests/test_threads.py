"""Waiting threads sleep where our entry points start, unless the user wants it otherwise."""

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from deltalm_ds import threads
from deltalm_ds.threads import (
    SET_BY_USERS,
    let_waiting_threads_sleep,
    threads_to_take,
    usable_cores,
    waiting_threads,
)


@pytest.fixture(autouse=True)
def nothing_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SET_BY_USERS:
        monkeypatch.setenv(name, "")  # so that it is restored
        monkeypatch.delenv(name)


def test_they_sleep() -> None:
    assert waiting_threads() == "spin"
    let_waiting_threads_sleep()
    assert waiting_threads() == "OMP_WAIT_POLICY=passive, GOMP_SPINCOUNT=5000"


@pytest.mark.parametrize("name", SET_BY_USERS)
def test_a_users_setting_stays(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "1")
    let_waiting_threads_sleep()
    assert waiting_threads() == f"{name}=1"


def test_the_command_line_sets_it_before_openmp_starts() -> None:
    """OMP_DISPLAY_ENV makes the OpenMP library print what it read when it was loaded."""
    environment = {name: value for name, value in os.environ.items() if name not in SET_BY_USERS}
    environment |= {"OMP_DISPLAY_ENV": "true", "PYTHONPATH": str(Path(__file__).parents[1])}
    command = [sys.executable, "-c", "from deltalm_ds.cli import main; main()", "env"]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert "waiting_threads: OMP_WAIT_POLICY=passive, GOMP_SPINCOUNT=5000" in process.stdout
    shown = [line for line in process.stderr.splitlines() if "OMP_WAIT_POLICY" in line]
    if not shown:
        pytest.skip("this OpenMP library shows no settings")
    assert all("PASSIVE" in line.upper() for line in shown)


@pytest.mark.parametrize(
    ("quota", "expected"),
    [("max 100000", 8), ("250000 100000", 2), ("20000 100000", 1), ("6400000 100000", 8), ("", 8)],
)
def test_a_containers_quota_counts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, quota: str, expected: int) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(threads, "CPU_QUOTA", tmp_path / "cpu.max")
    assert usable_cores() == 8
    (tmp_path / "cpu.max").write_text(quota)
    assert usable_cores() == expected


@pytest.mark.parametrize(
    ("cores", "busy", "expected"),
    [(2, 0, 2), (2, 50, 2), (2, 90, 1), (2, 100, 1), (16, 0, 16), (16, 50, 16), (16, 75, 4), (16, 100, 1), (1, 100, 1)],
)
def test_a_busy_machine_gets_fewer(monkeypatch: pytest.MonkeyPatch, cores: int, busy: float, expected: int) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads, "usable_cores", lambda: cores)
    monkeypatch.setattr(psutil, "cpu_count", lambda: cores)
    monkeypatch.setattr(psutil, "cpu_percent", lambda interval: busy)
    assert threads_to_take() == expected


def test_a_users_number_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert threads_to_take() == 0
