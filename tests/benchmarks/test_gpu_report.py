"""`python -m benchmarks.gpu_report`: tables of made-up rows, and the verdict on every goal."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import gpu_report, recording
from benchmarks.gpu_goals import GOALS

ROOT = Path(__file__).parents[2]


def kernel(op, setting, contender, **values):
    return {"part": "kernels", "on": "cuda", "op": op, "setting": setting, "contender": contender, **values}


def attention(setting, contender, forward, whole):
    return kernel("attention", setting, contender, **{"forward ms": forward, "ms": whole})


def loss(contender, milliseconds, megabytes):
    values = {"ms": milliseconds, "peak extra MB": megabytes}
    return kernel("linear_cross_entropy", "8192 tokens", contender, **values)


def norm(setting, share):
    return kernel("layer_norm", setting, "ours", **{"of the ceiling": share})


def of_tool(what, failed=0, ended=True, **values):
    return {
        "part": "tests",
        "on": "cuda",
        "what": what,
        "failed tests": failed,
        "ended": ended,
        "ok": not failed,
        **values,
    }


def step(row, rate, mfu=None):
    return {"part": "step", "on": "cuda", "row": row, "tokens/s": rate, "MFU": mfu}


def generation(engine, rate, beam=5):
    return {"part": "generation", "on": "cuda", "engine": engine, "beam": beam, "tokens/s": rate}


GOOD = [
    {"part": "facts", "on": "cuda", "what": "versions", "python": "3.12.3", "torch": "2.11.0", "commit": "abc1234"},
    {"part": "facts", "on": "cuda", "what": "card", "name": "NVIDIA H100"},
    of_tool("native"),
    of_tool("memcheck", **{"errors of the tool": 0}),
    of_tool("racecheck", **{"errors of the tool": 0}),
    {"part": "large", "on": "cuda", "what": "a", "ok": True},
    attention("self, dropout 0.0", "ours", 1.0, 3.0),
    attention("self, dropout 0.0", "FlashAttention-2", 0.95, 3.2),
    attention("self, dropout 0.0", "cuDNN, dense", 0.92, 2.9),
    attention("mixed, dropout 0.1", "ours", 1.0, 3.0),
    attention("mixed, dropout 0.1", "FlashAttention-2", 1.1, 3.3),
    loss("ours", 20.0, 1000),
    loss("logits + cross_entropy, torch.bfloat16", 90.0, 12000),
    loss("Liger", 24.0, 900),
    norm("4096 tokens, dropout 0.1", 0.2),
    norm("65536 tokens, dropout 0.1", 0.85),
    step("trainer-bf16 x64", 500_000, 0.46),
    step("trainer-bf16 x13", 300_000, 0.26),
    step("mbart-bf16 x64", 300_000),
    generation("pytorch-bfloat16", 6000),
    generation("pytorch-bfloat16", 100, beam=1),
    generation("huggingface-bfloat16", 3000),
    generation("ctranslate2-float16", 5900),
    {"part": "quality", "on": "cuda", "what": "curve", "ok": True},
    {"part": "quality", "on": "cuda", "step": 20, "loss": 5.0},
]


def verdicts(rows):
    return {row["goal"]: row[""] for row in gpu_report.judged(rows)}


def without(contender):
    return [row for row in GOOD if row.get("contender") != contender and row.get("engine") != contender]


def test_every_goal_can_be_reached():
    assert set(verdicts(GOOD).values()) == {"passed"}
    assert len(verdicts(GOOD)) == len(GOALS)


def test_a_processor_measures_no_goal():
    assert set(verdicts([{**row, "on": "cpu"} for row in GOOD]).values()) == {"not measured"}
    assert set(verdicts([]).values()) == {"not measured"}


@pytest.mark.parametrize(
    ("worse", "goal"),
    [
        (of_tool("native", failed=1), "failed tests of the kernel table, in three dtypes"),
        (of_tool("memcheck", **{"errors of the tool": 2}), "findings of memcheck"),
        (of_tool("racecheck", ended=False, **{"errors of the tool": 1}), "findings of racecheck"),
        ({"part": "large", "on": "cuda", "what": "b", "ok": False}, "ops wrong at real sizes"),
        ({"part": "large", "on": "cuda", "what": "b", "ok": False, "failed": "no memory"}, "ops wrong at real sizes"),
        (attention("self, dropout 0.0", "memory-efficient", 0.89, 4.0), "attention forward × the best peer"),
        (attention("self, dropout 0.0", "memory-efficient", 1.0, 2.79), "attention backward × the best peer"),
        (attention("mixed, dropout 0.1", "padded SDPA", 1.0, 2.9), "attention × the best peer, ragged with dropout"),
        (loss("logits, float16", 23.0, 12000), "loss × plain logits"),
        (loss("logits, float16", 90.0, 9000), "memory of plain logits ÷ the loss's"),
        (loss("Liger, float32 sums", 19.0, 900), "loss × Liger"),
        (norm("65536 tokens, dropout 0.0", 0.79), "norm, share of copy bandwidth"),
        (step("trainer-bf16 x64", 460_000, 0.44), "MFU at 64 x (512 + 114) tokens, on an H100"),
        (step("trainer-bf16 x13", 300_000, 0.24), "MFU at 13 x (512 + 114) tokens, on an H100"),
        (step("mbart-bf16 x64", 400_000), "step × transformers' mBART, 64 sequences"),
        (generation("pytorch-bfloat16", 4999), "tokens/s, beam 5, 64 sentences"),
        (generation("huggingface-bfloat16", 6001), "generation × transformers"),
        (generation("ctranslate2-float16", 6001), "generation × CTranslate2 float16"),
        ({"part": "quality", "on": "cuda", "what": "curve", "ok": False}, "training runs off the CPU's losses"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_what_falls_short_is_told(worse, goal):
    assert verdicts([*GOOD, worse])[goal] == "short"


@pytest.mark.parametrize(
    ("rows", "goal"),
    [
        (without("Liger"), "loss × Liger"),
        (without("ctranslate2-float16"), "generation × CTranslate2 float16"),
        ([*GOOD, of_tool("racecheck", ended=False, **{"errors of the tool": 0})], "findings of racecheck"),
        ([row for row in GOOD if row["part"] != "quality"], "training runs off the CPU's losses"),
    ],
)
def test_what_was_not_measured_is_neither(rows, goal):
    assert verdicts(rows)[goal] == "not measured"


def test_numbers_that_are_not_are_short():
    assert (
        verdicts([*GOOD, step("trainer-bf16 x64", 1, float("nan"))])["MFU at 64 x (512 + 114) tokens, on an H100"]
        == "short"
    )


def report(directory, *arguments):
    command = [sys.executable, "-m", "benchmarks.gpu_report", str(directory), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_tables(tmp_path):
    """A row that was measured again counts once, and a line that was cut short not at all."""
    again = [
        attention("self, dropout 0.0", "ours", 4.0, 6.0),
        {"part": "run", "on": "", "name": "step", "failed": "stopped"},
    ]
    lines = [json.dumps(row, ensure_ascii=False) for row in (*GOOD, *again)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines) + '\n{"part": "st')
    process = report(tmp_path)
    assert process.returncode == 0, process.stderr
    assert "## A run on NVIDIA H100 (" in process.stdout and "commit abc1234)" in process.stdout
    assert process.stdout.count("| self, dropout 0.0 | ours |") == 1
    assert "| attention forward × the best peer | at least 0.9 | 0.23 | short |" in process.stdout
    assert "### Kernels beside their peers, device time: layer_norm" in process.stdout
    assert "| step | stopped |" in process.stdout
    assert "short: 1\n  attention forward × the best peer: 0.23 (at least 0.9)" in process.stderr


def test_recorded(tmp_path, monkeypatch, capsys):
    """What is printed is what is appended."""
    results = tmp_path / "RESULTS.md"
    results.write_text("# Results\n")
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in GOOD))
    monkeypatch.setattr(gpu_report, "RESULTS", results)
    monkeypatch.setattr(sys, "argv", ["gpu_report", str(tmp_path), "--record"])
    gpu_report.main()
    assert results.read_text() == "# Results\n" + capsys.readouterr().out.removesuffix("\n")


def test_a_directory_without_rows_is_refused(tmp_path):
    process = report(tmp_path)
    assert process.returncode == 2
    assert "rows.jsonl is not there" in process.stderr


def test_a_table_has_every_column():
    assert recording.table([{"a": 1}, {"a": 2000, "b": "x|y"}]) == [
        "| a | b |",
        "|---|---|",
        "| 1 |  |",
        "| 2,000 | x/y |",
    ]
