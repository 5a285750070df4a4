"""Suites: what is kept and made anew, which cells are empty, and the tables in each form."""

import json
from pathlib import Path

import pytest

from deltalm_ds.errors import InputError
from deltalm_ds.evaluation.suites import PreparedTask, as_latex, as_markdown, run_suite, table_of
from deltalm_ds.evaluation.systems import FloorSystem, OutputsSystem, find_systems
from deltalm_ds.evaluation.tasks import TASKS
from deltalm_ds.evaluation.tasks.interface import Table
from deltalm_ds.evaluation.test_sets import TestSet
from deltalm_ds.generation.interface import SearchOptions

TESTS = [
    TestSet("en-de", ["a b c d e", "f g h i j"], ["a b c d e", "f g h i j"]),
    TestSet("en-fr", ["k l m n o", "p q r s t"], ["k l m n o", "x y z v w"]),
]
TABLE = Table("Toys, X > Y", ("en-de", "en-fr"), ("bleu",), {"Paper": (12.5,)})
OPTIONS = SearchOptions()


class CountingSystem:
    """Copies one direction; counts how often it is asked."""

    is_slow = True

    def __init__(self, name: str, content: str) -> None:
        self.name, self.content, self.asked = name, content, 0

    def identity(self, direction: str) -> str:
        return self.content

    def outputs(self, test: TestSet, options: SearchOptions) -> list[str]:
        if test.direction == "en-fr":
            raise InputError("no tag for fr.")
        self.asked += 1
        return list(test.sources)


@pytest.fixture
def prepared(tmp_path: Path) -> PreparedTask:
    task = TASKS["wmt10"]
    return PreparedTask(task, task.forms[0], tmp_path, ())


def test_outputs_are_made_once_for_what_decides_them(prepared: PreparedTask, tmp_path: Path) -> None:
    system = CountingSystem("a", "one")

    def run(options: SearchOptions = OPTIONS, tests: list[TestSet] = TESTS) -> bool:
        return run_suite(prepared, [system], tests, options, ["bleu"], tmp_path / "out")[0].was_kept

    assert (run(), run(), system.asked) == (False, True, 1)
    system.name = "renamed"
    assert (run(), system.asked) == (True, 1)  # a name decides nothing
    assert (run(SearchOptions(beam=2)), system.asked) == (False, 2)
    system.content = "two"
    assert (run(), system.asked) == (False, 3)
    assert (run(tests=[TestSet("en-de", ["a"], ["a"])]), system.asked) == (False, 4)
    other_references = [TestSet("en-de", TESTS[0].sources, ["x", "y"])]
    assert (run(tests=other_references), system.asked) == (True, 4)


def test_what_a_system_cannot_do_is_told_and_stays_empty(
    prepared: PreparedTask, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    systems = [CountingSystem("model", "x"), FloorSystem("copy", lambda source, _: source)]
    results = run_suite(prepared, systems, TESTS, OPTIONS, ["bleu"], tmp_path / "out")
    assert "model, en-fr: nothing, as no tag for fr." in capsys.readouterr().err
    table = table_of(TABLE, results, ["model", "copy", "absent"])
    assert table.header == ("system", "en-de", "en-fr", "average")
    copy_fr = next(r.score.scores["bleu"] for r in results if (r.system, r.score.direction) == ("copy", "en-fr"))
    assert dict(table.rows) == {
        "Paper": (None, None, 12.5),
        "model": (pytest.approx(100), None, None),
        "copy": (pytest.approx(100), copy_fr, pytest.approx((100 + copy_fr) / 2)),
        "absent": (None, None, None),
    }
    assert as_markdown(table).splitlines()[-3:-1] == ["| model | 100.00 |  |  |", as_markdown(table).splitlines()[-2]]
    assert r"model & 100.00 &  &  \\" in as_latex(table)
    assert r"\caption{Toys, X \textgreater{} Y}" in as_latex(table)


def test_a_line_for_every_score(prepared: PreparedTask, tmp_path: Path) -> None:
    run_suite(prepared, find_systems(["copy"]), TESTS, OPTIONS, ["bleu"], tmp_path / "out")
    lines = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text().splitlines()]
    assert [line["direction"] for line in lines] == ["en-de", "en-fr"]
    assert lines[0]["scores"]["bleu"] == pytest.approx(100)
    assert {"task", "form", "system", "identity", "data_sha256", "search", "bleu_signature", "versions"} <= lines[
        0
    ].keys()
    assert lines[0]["data_sha256"] != lines[1]["data_sha256"]


def test_columns_are_metrics_where_a_table_is_of_means() -> None:
    table = Table("Means", ("en-de", "en-fr"), ("bleu", "chrf"))
    assert table_of(table, [], ["a"]).header == ("system", "BLEU", "chrF2")
    assert dict(table_of(table, [], ["a"]).rows) == {"a": (None, None)}


def test_outputs_in_files(prepared: PreparedTask, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "en-de.hyp").write_text("a b c d e\nf g h i j\n")
    (system,) = find_systems([f"ours={tmp_path / 'mine'}"])
    assert isinstance(system, OutputsSystem)
    (result,) = run_suite(prepared, [system], TESTS, OPTIONS, ["bleu"], tmp_path / "out")
    assert (result.system, result.score.scores["bleu"]) == ("ours", pytest.approx(100))
    (tmp_path / "mine" / "en-de.hyp").write_text("a\n")
    with pytest.raises(InputError, match=r"en-de\.hyp has 1 lines, but en-de has 2 sources"):
        system.outputs(TESTS[0], OPTIONS)


def test_systems_that_are_none() -> None:
    with pytest.raises(InputError, match="There is no system 'nowhere': name a model directory"):
        find_systems(["copy", "nowhere"])
    with pytest.raises(InputError, match="Two systems have one name: copy, copy"):
        find_systems(["copy", "copy"])
    assert [system.name for system in find_systems(["a=copy", "copy", "memory:x"])] == ["a", "copy", "memory:x"]
