"""Progress goes to stderr alone: lines now and then in a log, a bar on a terminal."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from deltalm_ds import progress as module
from deltalm_ds.progress import progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that tests set: its one element is the time in seconds."""
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def test_a_line_at_each_interval_and_at_the_end(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with progress("train", total=30, unit="steps") as advance:
        for _ in range(30):
            clock[0] += 1.0
            advance(note="loss 3.1")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.splitlines() == [
        "train: 10/30 (1 steps/s, 20 s left) loss 3.1",
        "train: 20/30 (1 steps/s, 10 s left) loss 3.1",
        "train: 30/30 (1 steps/s, 0 s left) loss 3.1",
    ]


def test_rate_and_eta_count_the_work_of_this_run(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    """A resumed run that starts at 900 of 1,000 has done 50 in 10 s, not 950."""
    with progress("build", total=1000, start=900) as advance:
        clock[0] += 10.0
        advance(50)
    assert capsys.readouterr().err == "build: 950/1,000 (5 lines/s, 10 s left)\n"


def test_quick_work_prints_one_line(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with progress("verify", total=3) as advance:
        for _ in range(3):
            advance()
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_no_time_passed_and_nothing_to_do(clock: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with progress("empty", total=0) as advance:
        advance(0)
    assert capsys.readouterr().err.startswith("empty: 0/0")


def test_an_error_inside_is_not_swallowed() -> None:
    with pytest.raises(KeyError), progress("x", total=1):
        raise KeyError("inside")


def test_a_bar_on_a_terminal() -> None:
    """On a real (pseudo) terminal: a bar with count and note on stderr, nothing on stdout."""
    code = (
        "from deltalm_ds.progress import progress\n"
        "with progress('count', total=2, unit='steps', start=1) as advance:\n"
        "    advance(note='done now')\n"
    )
    terminal, stderr = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    process = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent.parent,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=stderr,
        check=True,
    )
    os.close(stderr)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", os.read(terminal, 1 << 16).decode())
    os.close(terminal)
    assert process.stdout == b""
    assert "count" in text and "2/2" in text and "steps/s" in text and "done now" in text
