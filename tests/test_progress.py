"""Progress goes to stderr alone: lines now and then in a log, a bar on a terminal."""

import contextlib
import io
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltalm_ds import progress as module
from deltalm_ds.progress import duration_text, progress


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
        "train: 30/30 (1 steps/s) loss 3.1",
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
    assert capsys.readouterr().err == "empty: 0/0\n"


def test_nothing_is_told_of_a_rate_that_is_not_known_yet(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with progress("build", total=1000) as advance:
        clock[0] += 20.0
        advance(0, note="waiting")
    with progress("build", total=1000, start=1000) as advance:
        advance(0)
    assert capsys.readouterr().err == "build: 0/1,000 waiting\nbuild: 1,000/1,000\n"


def test_slow_work_has_a_rate_and_long_work_its_time_in_hours(
    clock: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    with progress("training", total=501, unit="steps", start=42) as advance:
        clock[0] += 17.0
        advance()
        clock[0] += 1e9
        advance()
    assert capsys.readouterr().err.splitlines() == [
        "training: 43/501 (0.059 steps/s, 2 h 9 min left)",  # 458 steps of 17 s: 7,786 s
        "training: 44/501 (<0.01 steps/s)",  # centuries: not to be told from two steps
    ]


WORK = st.lists(st.tuples(st.floats(0, 1e5), st.integers(0, 10**12)), min_size=1, max_size=20)


@given(WORK, st.integers(0, 10**15), st.integers(0, 10**12))
def test_time_left_is_what_the_rate_of_this_run_says_or_is_not_told(
    work: list[tuple[float, int]], more: int, start: int
) -> None:
    """Whatever comes: times of nothing, no work, more work than was announced, enormous totals."""
    now = [1000.0]
    total = start + more
    with (
        mock.patch.object(module.time, "monotonic", lambda: now[0]),
        contextlib.redirect_stderr(io.StringIO()) as stderr,
        progress("work", total=total, unit="rows", start=start) as advance,
    ):
        done, expected = 0, []
        for seconds, count in work:
            now[0] += seconds
            done += count
            printed = len(stderr.getvalue())
            advance(count)
            if len(stderr.getvalue()) > printed:
                expected.append((done, now[0] - 1000.0))
    lines = stderr.getvalue().splitlines()
    assert len(lines) == len(expected)
    for line, (done, seconds) in zip(lines, expected, strict=True):
        head, _, pace = line.partition(" (")
        assert head == f"work: {start + done:,}/{total:,}"
        told = re.fullmatch(r"(\S+) rows/s(?:, (.+) left)?\)", pace)
        if done == 0 or seconds < 0.1:
            assert pace == ""
            continue
        assert told
        left = max(more - done, 0) * seconds / done
        if told[2] is None:
            assert left == 0 or left > 99 * 86_400
        else:
            # the smaller unit that is told is cut off, not rounded
            shown, unit = seconds_of(told[2])
            assert left > 0 and shown <= 100 * 86_400 and left - unit - 0.5 <= shown <= left + 0.5


SECONDS = {"d": 86_400, "h": 3600, "min": 60, "s": 1}


def seconds_of(text: str) -> tuple[int, int]:
    """The seconds that a time such as `2 h 9 min` stands for, and those of its smaller unit."""
    words = text.split()
    amounts = [int(number) * SECONDS[unit] for number, unit in zip(words[::2], words[1::2], strict=True)]
    return sum(amounts), SECONDS[words[-1]]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "0 s"),
        (59.4, "59 s"),
        (59.6, "1 min 0 s"),
        (3599.7, "1 h 0 min"),
        (7_859, "2 h 10 min"),
        (86_400, "1 d 0 h"),
        (277_200, "3 d 5 h"),
    ],
)
def test_times_in_two_units(seconds: float, text: str) -> None:
    assert duration_text(seconds) == text


def test_plain_lines_need_no_library_for_bars() -> None:
    code = (
        "import sys; from deltalm_ds.progress import progress\n"
        "with progress('x', total=1) as advance: advance()\n"
        "sys.exit('rich' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=Path(__file__).parent.parent
    )
    assert (done.returncode, done.stderr) == (0, "x: 1/1\n")


def test_an_error_inside_is_not_swallowed() -> None:
    with pytest.raises(KeyError), progress("x", total=1):
        raise KeyError("inside")


def _all_of(terminal: int) -> bytes:
    """What was written to a terminal whose other end is closed: a read gives a part of it, and at the end an error."""
    found = b""
    with contextlib.suppress(OSError):
        while part := os.read(terminal, 1 << 16):
            found += part
    return found


def test_a_bar_on_a_terminal() -> None:
    """On a real (pseudo) terminal: a bar with count and note on stderr, nothing on stdout."""
    code = (
        "from deltalm_ds.progress import progress\n"
        "with progress('count', total=2, unit='steps', start=1) as advance:\n"
        "    import time; time.sleep(0.2)\n"
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
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", _all_of(terminal).decode())
    os.close(terminal)
    assert process.stdout == b""
    assert "count" in text and "2/2" in text and "steps/s" in text and "done now" in text
