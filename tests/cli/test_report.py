"""`deltalm report` says where it has written: beside the run, or a comparison."""

import json
from pathlib import Path

import pytest
from command import deltalm

RECORD = {"step": 10, "kind": "train", "loss": 2.0, "tokens_per_step": 100.0, "seconds_per_step": 0.5}


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Two runs, in the working directory."""
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        Path(name).mkdir()
        (Path(name) / "metrics.jsonl").write_text(json.dumps(RECORD | {"skipped_updates": 0}) + "\n")
    return [Path("one"), Path("two")]


def test_a_report_lies_in_its_run(runs: list[Path]) -> None:
    outcome = deltalm("report", runs[0])
    assert (outcome.code, outcome.stdout) == (0, "one/report.html\n")
    assert "<title>one</title>" in Path("one/report.html").read_text()


def test_a_comparison_lies_in_the_working_directory_or_where_it_is_wanted(runs: list[Path]) -> None:
    assert deltalm("report", *runs).stdout == "comparison.html\n"
    assert "<title>Comparison of runs</title>" in Path("comparison.html").read_text()
    assert deltalm("report", *runs, "--out", "pages/both.html").stdout == "pages/both.html\n"
    assert Path("pages/both.html").read_text() == Path("comparison.html").read_text()


def test_a_run_without_records_is_refused(runs: list[Path]) -> None:
    (runs[1] / "metrics.jsonl").unlink()
    outcome = deltalm("report", *runs)
    assert outcome.code == 2
    assert outcome.messages == [
        "deltalm: two has no metrics.jsonl with records: give the directory of a run that has begun."
    ]
