"""Throughput, health and history of a run's page."""

import json
from pathlib import Path
from typing import Any

from pages import points
from test_run_page import report_of, training_record, write_metrics


def timed_record(step: int, **values: Any) -> dict[str, Any]:
    seconds = {"start": 5.0} if step == 20 else {}
    seconds |= {"data": 1.0, "forward": 6.0, "backward": 12.0}
    seconds |= {"checkpoint": 2.0} if step == 60 else {}
    minute, second = divmod(20 * step // 20, 60)
    record = training_record(step) | {"time": f"2026-01-01T00:{minute:02d}:{second:02d}+00:00", "seconds": seconds}
    return (
        record | {"mfu": 0.25, "padding": 0.1, "target_tokens_per_second": 7000.0, "teraflops_per_rank": 0.05} | values
    )


def fabricate(run: Path) -> list[dict[str, Any]]:
    records = [timed_record(step, peak_memory_bytes=step << 26) for step in (20, 40, 60)]
    records.append(timed_record(80, loss_scale=512.0) | {"step": 80})
    write_metrics(run, records)
    events: list[dict[str, Any]] = [
        {"time": "2026-01-01T00:00:00+00:00", "kind": "start", "host": "n1", "ranks": 2},
        {"time": "2026-01-01T00:00:30+00:00", "kind": "changed", "changes": {"training.max_steps": [10, 20]}},
        {"time": "2026-01-01T00:00:31+00:00", "kind": "started", "seconds": {"imports": 2.25, "first step": 1}},
        {"time": "2026-01-01T00:01:20+00:00", "kind": "end", "code": 0, "reason": "<done>"},
    ]
    (run / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    return records


def test_throughput_is_what_the_log_says(tmp_path: Path) -> None:
    fabricate(tmp_path)
    page = report_of(tmp_path)
    figures = page.figures()
    stacked = figures["Seconds per step by section"]["lines"]
    assert list(stacked) == ["data", "forward", "backward"]  # what is outside of steps is in the table
    assert points(stacked["forward"]) == [(step, 6.0 / 20) for step in (20, 40, 60, 80)]
    assert all(line["stackgroup"] for line in stacked.values())
    rates = figures["Tokens per second"]["lines"]
    assert points(rates["target"])[0] == (20, 7000.0) and points(rates["source and target"])[0] == (20, 15000.0)
    assert points(figures["Share of the device's peak (MFU)"]["lines"]["MFU"])[-1] == (80, 0.25)
    assert page.row("steps that count")[1:] == ["1 min 16 s", "95.0 %"]  # 4 · 19 s of 80
    assert page.row("saving checkpoints")[1:] == ["2 s", "2.5 %"]


def test_health_and_history(tmp_path: Path) -> None:
    fabricate(tmp_path)
    page = report_of(tmp_path)
    assert page.row("Peak memory of a rank")[1] == "3.75 GiB"
    assert page.row("Loss scale")[1] == "512 at first, 512 at last"
    assert page.row("Loss spikes")[1] == "none"
    assert ["2026-01-01T00:00:30+00:00", "changed", "training.max_steps: 10 → 20"] in page.rows
    assert ["2026-01-01T00:00:31+00:00", "started", "seconds: imports 2.25, first step 1"] in page.rows
    assert ["2026-01-01T00:01:20+00:00", "end", "code: 0; reason: <done>"] in page.rows


def test_spikes_are_those_that_the_run_told_of(tmp_path: Path) -> None:
    fabricate(tmp_path)
    spike = {"time": "2026-01-01T00:01:10+00:00", "kind": "loss spike", "fault": "so much", "policy": "skip"}
    with open(tmp_path / "events.jsonl", "a") as file:
        file.writelines(json.dumps(spike | {"step": step}) + "\n" for step in (33, 1047))
    assert report_of(tmp_path).row("Loss spikes")[1] == "2, at steps 33, 1,047"
