"""How benchmarks measure: the order of what a GPU is asked for, rows of processes, and contenders that fail."""

import argparse
import json
import math
import os
import sys

import pytest
import torch

from benchmarks import device, recording
from benchmarks.gpu_parts import kernel_tests, large, quality
from benchmarks.kernels import harness

GPU_CLOCK_HZ = 1.98e9  # an H100's


class StandIn:
    """A GPU's queue: what it was asked for, in order."""

    def __init__(self, host_is_ahead):
        self.asked, self.host_is_ahead = [], host_is_ahead

    def event(self, enable_timing):
        stand_in = self

        class Event:
            def record(self):
                stand_in.asked.append("event")

            def query(self):
                return not stand_in.host_is_ahead

            def synchronize(self):
                stand_in.asked.append("wait")

            def elapsed_time(self, other):
                return 2.5

        return Event()


@pytest.mark.parametrize("host_is_ahead", [True, False])
def test_a_call_is_timed_behind_a_spin_that_outlasts_the_host(host_is_ahead, monkeypatch):
    gpu = StandIn(host_is_ahead)
    monkeypatch.setattr(device, "ON_GPU", True)
    monkeypatch.setattr(torch.cuda, "Event", gpu.event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: gpu.asked.append(("spin", cycles / GPU_CLOCK_HZ)))
    monkeypatch.setattr(device, "_flush_buffer", lambda: argparse.Namespace(zero_=lambda: gpu.asked.append("flush")))
    timing = device.time_call(lambda: gpu.asked.append("call"), host_seconds=1e-3)
    (_, seconds), *others = gpu.asked
    assert seconds > 1e-3
    assert others == ["flush", "event", "call", "event", "wait"]
    assert timing == (2.5e-3, not host_is_ahead)


def test_on_a_processor_it_is_the_clock():
    calls = []
    timing = device.time_call(lambda: calls.append(1))
    assert calls == [1] and timing.seconds > 0 and not timing.waited


def test_a_contender_that_cannot_run_is_a_row_with_the_reason():
    x = torch.ones(3, requires_grad=True)

    def broken():
        raise RuntimeError("no such card\nand more")

    work = harness.Work("w", "GB/s", 1e3, {"ours": (lambda: x * 2, [x]), "peer": (broken, [x])})
    ours, peer = harness.measure(work)
    assert ours["contender"] == "ours" and ours["ms"] > 0 and ours["ours / it"] == 1
    assert peer == {"setting": "w", "contender": "peer", "failed": "RuntimeError: no such card"}


def test_both_ways_gives_the_gradients():
    x = torch.tensor([1.0, 2.0], requires_grad=True)
    (grad,) = harness.both_ways(lambda: x**2, [x])()
    assert grad.tolist() == [2.0, 4.0]


def test_rows_are_kept_one_by_one(tmp_path, capsys):
    arguments = argparse.Namespace(to=tmp_path / "rows.jsonl")
    for number in (1.23456789, 2):
        recording.keep(arguments, "step", {"s": number})
    lines = (tmp_path / "rows.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"part": "step", "on": "cpu", "s": 1.2346},
        {"part": "step", "on": "cpu", "s": 2},
    ]
    assert capsys.readouterr().err.splitlines() == lines


@pytest.mark.parametrize(
    ("source", "limit", "row"),
    [
        ("print('x'); print('{\"a\": 1}')", None, {"a": 1}),
        ("raise ValueError('no')", None, {"failed": "ValueError: no"}),
        (
            "import os; os.kill(os.getpid(), 9)",
            None,
            {"failed": "killed, as it needs more memory than this machine has"},
        ),
        ("import time; time.sleep(60)", 0.5, {"failed": "it took more than 0 s"}),
    ],
)
def test_rows_of_processes(source, limit, row):
    assert recording.row_of_process(["-c", source], limit) == row


def test_errors_of_tensors():
    """Relative to the expected one's norm; what is not a number is never within a limit."""
    found = [torch.tensor([3.0, 4.5]), torch.tensor([math.nan])]
    first, second = large.errors(found, [torch.tensor([3.0, 4.0]), torch.tensor([1.0])])
    assert first == pytest.approx(0.1)
    assert not second <= 1.0


CURVES = {"float32": {"4": {"data": "d", "losses": {"1": 5.0, "2": 4.0, "3": 3.0, "4": 2.0}, "validation": 1.0}}}


def found_run(*losses, data="d"):
    by_step = {str(step): loss for step, loss in enumerate(losses, 1)}
    return {"engine": "bf16_zero1", "data": data, "losses": by_step, "validation": 1.1, "seconds": 9.0}


@pytest.mark.parametrize(
    ("losses", "ok"),
    [
        ((5.0, 4.0, 3.0, 2.0), True),
        ((5.0, 4.0 + 0.9 * quality.POINT_BAND, 3.0, 2.0), True),
        ((5.0, 4.0 + 1.1 * quality.POINT_BAND, 3.0, 2.0), False),  # one point is far off
        ((5.0, 4.0, *(x + 1.1 * quality.MEAN_BAND for x in (3.0, 2.0))), False),  # it learns less
        ((5.0, 4.0, *(x - 1.1 * quality.MEAN_BAND for x in (3.0, 2.0))), False),  # or more, which is as wrong
        ((5.0, 4.0, math.nan, 2.0), False),
    ],
)
def test_a_curve_is_within_the_band_or_not(losses, ok):
    *points, curve = quality.compare(found_run(*losses), CURVES, 4)
    assert [row["step"] for row in points] == [1, 2, 3, 4]
    assert curve["ok"] is ok


def test_a_curve_of_other_data_is_not_compared():
    with pytest.raises(ValueError, match="other data"):
        quality.compare(found_run(5.0, data="e"), CURVES, 4)


def test_the_tools_of_a_gpu_are_read():
    """What is counted of pytest's output, whole and cut short."""
    whole = "....F\nFAILED a.py::b - x\n1 failed, 4 passed, 2 skipped in 3.21s\n"
    assert kernel_tests._counts(whole) == {"passed": 4, "skipped": 2, "failed tests": 1}
    assert kernel_tests._counts("...s.F..  [ 10%]\n....\n") == {"passed": 10, "failed tests": 1}


@pytest.mark.parametrize(
    ("tool", "printed", "code", "expected"),
    [
        ("memcheck", "4 passed in 9.00s\n========= ERROR SUMMARY: 0 errors", 0, {"errors of the tool": 0, "ok": True}),
        ("memcheck", "4 passed in 9.00s\n========= ERROR SUMMARY: 2 errors", 9, {"errors of the tool": 2, "ok": False}),
        (
            "racecheck",
            "========= RACECHECK SUMMARY: 3 hazards displayed (1 error, 2 warnings)\n4 passed in 9.00s",
            9,
            {"errors of the tool": 3, "ok": False},
        ),
        (
            "memcheck",
            "1 failed, 4 passed in 9.00s\n========= ERROR SUMMARY: 0 errors",
            1,
            {"failed tests": 1, "ok": False},
        ),
        ("memcheck", "....\n========= Invalid __global__ write", "sleep", {"errors of the tool": 1, "ended": False}),
        ("racecheck", "....", "sleep", {"errors of the tool": 0, "ended": False, "ok": True, "passed": 4}),
    ],
)
def test_what_a_sanitizer_says_becomes_a_row(tool, printed, code, expected, tmp_path, monkeypatch):
    """A stand-in on the PATH, which prints and ends, or is stopped."""
    ending = "sleep 60" if code == "sleep" else f"exit {code}"
    script = tmp_path / "compute-sanitizer"
    script.write_text(f"#!/bin/sh\ncat <<END\n{printed}\nEND\n{ending}\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(kernel_tests, "LIMIT_S", {tool: 2.0})
    monkeypatch.setattr(sys, "argv", ["kernel_tests", tool, "--to", str(tmp_path / "rows.jsonl")])
    kernel_tests.main()
    row = json.loads((tmp_path / "rows.jsonl").read_text())
    assert row["what"] == tool
    assert {name: row[name] for name in expected} == expected


def test_an_input_that_is_not_there_is_told(tmp_path, capsys):
    options = recording.parser("")
    options.add_argument("model", type=recording.existing)
    assert options.parse_args([str(tmp_path)]).model == tmp_path
    with pytest.raises(SystemExit, match="2"):
        options.parse_args([str(tmp_path / "none")])
    assert capsys.readouterr().err.endswith(f"argument model: {tmp_path / 'none'} does not exist\n")
