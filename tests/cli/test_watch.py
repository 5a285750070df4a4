"""`deltalm watch` beside a run that writes: what it shows, when it ends, what it reads."""

import io
import json
import threading
import time
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from command import deltalm

from deltalm_ds.report.terminal import RunView, sparkline
from deltalm_ds.runs.events import record_event, time_text

RECIPE = "name: small\ntraining: {max_steps: 40}\nvalidation: {shards: x}\n"


def append(run: Path, step: int, kind: str = "train", **values: Any) -> None:
    speed = {"tokens_per_second": 1500.0, "seconds_per_step": 2.0} if kind == "train" else {}
    with open(run / "metrics.jsonl", "a") as file:
        record = {"step": step, "kind": kind, "time": time_text(), "loss": 50.0 / step, **speed, **values}
        file.write(json.dumps(record) + "\n")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path


def test_lines_come_while_the_run_writes_and_end_with_it(run: Path) -> None:
    record_event(run, "start", host="n1", ranks=2)

    def work() -> None:
        for step in (10, 20, 30, 40):
            append(run, step)
            time.sleep(0.15)
        append(run, 40, "validation", bleu=12.5, bleu_of={"en-de": 12.5})
        record_event(run, "end", code=0, reason="done")

    worker = threading.Thread(target=work)
    worker.start()
    outcome = deltalm("watch", run, "--seconds", 0.1)
    worker.join()
    assert outcome.code == 0
    first, *lines, last = outcome.stdout.splitlines()
    assert lines == [
        *(f"step {step} train: loss {50 / step:.4f}, 1,500 tokens/s" for step in (10, 20, 30, 40)),
        "step 40 validation: loss 1.2500, bleu 12.5000",
    ]
    assert first.endswith(" start: host: n1; ranks: 2") and last.endswith(" end: code: 0; reason: done")


def test_a_run_without_events_of_its_end_ends_at_its_last_step(run: Path) -> None:
    append(run, 40)
    view = RunView(run)
    view.update()
    assert not view.has_ended  # it validates yet
    append(run, 40, "validation")
    view.update()
    assert view.has_ended


def test_the_view_has_progress_speed_validation_and_events(run: Path) -> None:
    view = RunView(run)
    assert view.update() == [] and "no records yet" in view.lines()
    append(run, 10, mfu=0.314, padding=0.05, seconds={"forward": 3.0, "backward": 6.0, "data": 1.0})
    append(run, 10, "validation", loss=3.0, bleu=12.5, bleu_of={"en-de": 12.5})
    append(run, 20, "validation", loss=4.0)
    record_event(run, "validation failed", step=20, fault="no\nroom")
    view.update()
    text = "\n".join(view.lines())
    assert "step 10 of 40 (25 %)   1 min 0 s left" in text  # 30 steps of 2 s
    assert "tokens/s 1,500   MFU % 31.4   padding % 5.0" in text
    assert "backward 60 %   forward 30 %   data 10 %" in text
    assert "validation at 20: loss 4.000 (lowest loss 3.000 at 10)" in text
    assert "validation failed: step: 20; fault: no room" in text


def test_a_resume_that_cuts_the_log_off_starts_the_curve_again(run: Path) -> None:
    view = RunView(run)
    for step in (10, 20):
        append(run, step)
    view.update()
    kept = (run / "metrics.jsonl").read_text().splitlines(keepends=True)[0]
    (run / "new").write_text(kept)
    (run / "new").replace(run / "metrics.jsonl")
    append(run, 11)
    view.update()
    assert "step 11 of 40" in view.lines()[1]


def test_the_curve_has_its_shape() -> None:
    assert sparkline([]) == ""
    assert sparkline([(step, float(step)) for step in range(8)], columns=8) == "▁▂▃▄▅▆▇█"
    assert sparkline([(1, 3.0)], columns=8) == "▁"
    assert sparkline([(step, 1.0 if step < 500 else 0.0) for step in range(1000)], columns=4) == "██▁▁"


def test_ctrl_c_leaves_without_a_word(run: Path) -> None:
    with mock.patch.object(time, "sleep", side_effect=KeyboardInterrupt):
        outcome = deltalm("watch", run)
    assert (outcome.code, outcome.stdout, outcome.stderr) == (0, "", "")


class Terminal(io.StringIO):
    """What is written to a terminal."""

    def isatty(self) -> bool:
        return True


def test_on_a_terminal_the_view_is_drawn(run: Path) -> None:
    record_event(run, "start", host="n1")
    append(run, 10)

    def end(_: float) -> None:
        append(run, 20)
        record_event(run, "end", code=0)

    with mock.patch.object(time, "sleep", side_effect=end), mock.patch.object(io, "StringIO", Terminal):
        outcome = deltalm("watch", run)
    assert outcome.code == 0
    assert "step 20 of 40" in outcome.stdout and "\nended" in outcome.stdout


def test_there_is_no_such_run(tmp_path: Path) -> None:
    outcome = deltalm("watch", tmp_path / "none")
    assert outcome.code == 2
    assert outcome.messages == [f"deltalm: There is no run directory {tmp_path / 'none'}."]


def test_a_supervised_run_ends_with_its_supervisor(run: Path) -> None:
    """An attempt that has ended is followed by another one."""
    view = RunView(run)
    for kind, has_ended in (
        ("supervisor started", False),
        ("attempt", False),
        ("host lost", False),
        ("end", False),
        ("attempt", False),
        ("end", False),
        ("supervisor ended", True),
        ("supervisor started", False),
    ):
        record_event(run, kind, host="n1")
        (line,) = view.update()
        assert line.endswith(f" {kind}: host: n1") and line in view.lines()
        assert view.has_ended == has_ended
    append(run, 40)
    append(run, 40, "validation")
    view.update()
    assert not view.has_ended
