"""Suites: what is kept and made anew, which cells are empty, which differences are marked, the tables in each form."""

import json
import multiprocessing
import os
import random
import signal
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest
from sacrebleu.metrics import CHRF

from deltalm_ds.data_tools.workers import Workers, start_workers
from deltalm_ds.errors import InputError
from deltalm_ds.evaluation import kept_outputs, kept_scores
from deltalm_ds.evaluation.scores import DirectionScore, DirectionScorer
from deltalm_ds.evaluation.significance import RESAMPLES, SEED
from deltalm_ds.evaluation.suite_tables import as_latex, as_markdown, fill_table
from deltalm_ds.evaluation.suites import PreparedTask, Result, run_suite, write_results
from deltalm_ds.evaluation.systems import ModelSystem, OutputsSystem, RuleSystem, System, Unable, find_systems
from deltalm_ds.evaluation.tasks import TASKS
from deltalm_ds.evaluation.tasks.interface import Table
from deltalm_ds.evaluation.test_sets import TestSet
from deltalm_ds.generation.interface import EngineOptions, SearchOptions

TESTS = [
    TestSet("en-de", ["a b c d e", "f g h i j"], ["a b c d e", "f g h i j"]),
    TestSet("en-fr", ["k l m n o", "p q r s t"], ["k l m n o", "x y z v w"]),
]
TABLE = Table("Toys, X > Y", ("en-de", "en-fr"), ("bleu",), {"Paper": (12.5,)})
OPTIONS = SearchOptions()
ASKED: Counter[str] = Counter()  # how many sources each content was asked for, in this process


@dataclass(frozen=True)
class CountingSystem(System):
    """Copies one direction; `dies_at`: a source at which its process is killed."""

    content: str = "one"
    dies_at: str = ""

    def check(self, test: TestSet) -> None:
        if test.direction == "en-fr":
            raise Unable("no tag for fr.")

    def identity(self, direction: str) -> str:
        return self.content

    def outputs(self, test: TestSet, options: SearchOptions) -> list[str]:
        if self.dies_at in test.sources:
            os.kill(os.getpid(), signal.SIGKILL)
        ASKED[self.content] += len(test.sources)
        return list(test.sources)


@pytest.fixture(autouse=True)
def _nothing_asked() -> None:
    ASKED.clear()


def run(
    out: Path,
    *systems: System,
    tests: list[TestSet] = TESTS,
    options: SearchOptions = OPTIONS,
    baseline: str | None = None,
    workers: Workers | None = None,
) -> list[Result]:
    return run_suite(systems, tests, options, ["bleu", "chrf"], out, baseline or systems[0].name, workers or Workers())


def hypotheses(out: Path) -> dict[str, str]:
    return {
        str(path.relative_to(out)): path.read_text()
        for path in sorted((out / "hypotheses").rglob("*"))
        if path.is_file()
    }


def test_outputs_are_made_once_for_what_decides_them(tmp_path: Path) -> None:
    def asked(content: str = "one", name: str = "a", tests: list[TestSet] = TESTS[:1], **options: int) -> int:
        ASKED.clear()
        run(tmp_path, CountingSystem(name, content), tests=tests, options=SearchOptions(**options))
        return ASKED[content]

    assert (asked(), asked()) == (2, 0)
    assert asked(name="renamed") == 0  # a name decides nothing
    assert asked(beam=2) == 2
    assert asked("two") == 2
    assert asked(tests=[TestSet("en-de", ["a"], ["a"])]) == 1
    assert asked(tests=[TestSet("en-de", TESTS[0].sources, ["x", "y"])]) == 0  # nor do references


def test_a_killed_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_outputs, "PART_LINES", 3)
    sources = [f"line {number}" for number in range(10)]
    test = TestSet("en-de", sources, sources)
    arguments = tmp_path / "out", CountingSystem("a", dies_at="line 7")
    process = multiprocessing.get_context("fork").Process(target=run, args=arguments, kwargs={"tests": [test]})
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    run(tmp_path / "out", CountingSystem("a"), tests=[test])
    assert ASKED["one"] == 4  # of three whole parts nothing
    run(tmp_path / "whole", CountingSystem("a"), tests=[test])
    assert hypotheses(tmp_path / "out") == hypotheses(tmp_path / "whole")
    assert hypotheses(tmp_path / "out") == {"hypotheses/a/en-de.hyp": "".join(f"{line}\n" for line in sources)}


def test_a_dead_process_ends_the_suite_and_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_outputs, "PART_LINES", 2)
    sources = [f"line {number}" for number in range(9)]
    test = TestSet("en-de", sources, sources)
    with pytest.raises(InputError, match="A process died"), start_workers(2, compute=True) as workers:
        run(tmp_path / "out", CountingSystem("a", dies_at="line 8"), tests=[test], workers=workers)
    assert len(list((tmp_path / "out" / "outputs").glob("*.json"))) >= 1
    run(tmp_path / "out", CountingSystem("a"), tests=[test])
    assert 1 <= ASKED["one"] < 9  # the rest was done by the processes
    assert hypotheses(tmp_path / "out") == {"hypotheses/a/en-de.hyp": "".join(f"{line}\n" for line in sources)}


def test_what_a_system_cannot_do_is_told_and_stays_empty(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = run(tmp_path, CountingSystem("model"), RuleSystem("copy", "copy"))
    assert "model, en-fr: nothing, as no tag for fr." in capsys.readouterr().err
    table = fill_table(TABLE, results, ["model", "copy", "absent"], "model")
    assert table.header == ("system", "en-de", "en-fr", "average")
    copy_fr = next(r.score.scores["bleu"] for r in results if (r.system.name, r.score.direction) == ("copy", "en-fr"))
    assert {name: tuple(cell and cell.value for cell in cells) for name, cells in table.rows} == {
        "Paper": (None, None, 12.5),
        "model": (pytest.approx(100), None, None),
        "copy": (pytest.approx(100), copy_fr, pytest.approx((100 + copy_fr) / 2)),
        "absent": (None, None, None),
    }
    assert dict(table.rows)["copy"][0].p == 1  # the same outputs
    assert dict(table.rows)["copy"][1].p is None  # nothing to compare with
    assert as_markdown(table).splitlines()[-3] == "| model | 100.00 ±0.00 |  |  |"
    assert r"model & 100.00 &  &  \\" in as_latex(table)
    assert r"\caption{Toys, X \textgreater{} Y}" in as_latex(table)


def _noisy(lines: list[str], share: float, seed: int) -> list[str]:
    draw = random.Random(seed)
    return [" ".join("x" if draw.random() < share else word for word in line.split()) for line in lines]


def test_marks_are_those_of_a_paired_bootstrap_by_hand(tmp_path: Path) -> None:
    """Cells and their mean against resampled corpora that sacreBLEU itself scores."""
    import numpy as np

    draw = random.Random(1)
    texts = [" ".join(draw.choice("abcdefgh") * 3 for _ in range(5)) for _ in range(20)]
    tests = [TestSet("en-de", texts, texts), TestSet("en-fr", texts[:15], texts[:15])]
    for name, share in {"base": 0.3, "near": 0.31, "worse": 0.5}.items():
        for test in tests:
            path = tmp_path / name / f"{test.direction}.hyp"
            path.parent.mkdir(exist_ok=True)
            path.write_text("".join(f"{line}\n" for line in _noisy(list(test.sources), share, len(name))))
    systems = [OutputsSystem(name, tmp_path / name) for name in ("near", "worse", "base")]
    results = run(tmp_path / "out", *systems, tests=tests, baseline="base")
    assert [result.system.name for result in results] == ["near"] * 2 + ["worse"] * 2 + ["base"] * 2
    layout = Table("Toys", ("en-de", "en-fr"), ("chrf",))
    table = fill_table(layout, results, ["near", "worse", "base"], "base")

    resampled: dict[str, list[list[float]]] = {}
    for name in ("near", "worse", "base"):
        resampled[name] = []
        for test in tests:
            lines = (tmp_path / name / f"{test.direction}.hyp").read_text().splitlines()
            drawn = np.random.default_rng(SEED).integers(len(lines), size=(RESAMPLES, len(lines)))[:100]
            chrf = CHRF()
            scores = [chrf.corpus_score([lines[i] for i in row], [[texts[i] for i in row]]).score for row in drawn]
            resampled[name].append(scores)
    for name in ("near", "worse"):
        cells = dict(table.rows)[name]
        for column, cell in enumerate(cells):
            columns = [column] if column < 2 else [0, 1]
            own, base = (np.mean([resampled[each][i] for i in columns], axis=0) for each in (name, "base"))
            found, value = own - base, cell.value - dict(table.rows)["base"][column].value
            p = np.mean(np.abs(found - found.mean()) >= abs(value))
            assert cell.p == pytest.approx(p, abs=0.13)  # 100 of 1,000 resamples
            assert cell.interval[0] < np.median(own) < cell.interval[1]
    assert [cell.is_marked for cell in dict(table.rows)["worse"]] == [True, True, True]
    assert not any(cell.is_marked for cell in dict(table.rows)["base"])
    assert table.note.startswith("* differs from base, p < 0.05 (paired bootstrap, two-sided, 1,000 resamples, seed")
    assert "$^{*}$ & " in as_latex(table) and r"p \textless{} 0.05" in as_latex(table)
    assert r"\*" in as_markdown(table)
    row = table.as_dict()["rows"][1]
    assert row["p"] == [cell.p for cell in dict(table.rows)["worse"]] and len(row["intervals"]) == 3


def test_a_line_for_every_score(tmp_path: Path) -> None:
    prepared = PreparedTask(TASKS["wmt10"], TASKS["wmt10"].forms[0], tmp_path, ())
    results = run(tmp_path, *find_systems(["copy", "lead"]))
    write_results(results, prepared, OPTIONS, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [(line["system"], line["direction"]) for line in lines] == [
        (name, direction) for name in ("copy", "lead") for direction in ("en-de", "en-fr")
    ]
    assert lines[0]["scores"]["bleu"] == pytest.approx(100) and lines[0]["differences"] == {}
    assert lines[2]["differences"]["bleu"]["p"] == 1
    known = {"task", "form", "system", "identity", "data_sha256", "search", "bleu_signature", "versions"}
    assert known <= lines[0].keys()
    assert lines[0]["data_sha256"] != lines[1]["data_sha256"]


def test_columns_are_metrics_where_a_table_is_of_means() -> None:
    table = Table("Means", ("en-de", "en-fr"), ("bleu", "chrf"))
    assert fill_table(table, [], ["a"], "a").header == ("system", "BLEU", "chrF2")
    assert dict(fill_table(table, [], ["a"], "a").rows) == {"a": (None, None)}


def test_kept_counts_give_the_scores_of_all_outputs_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In parts, by metrics with and without counts, and with numbers of references that differ."""
    monkeypatch.setattr(kept_scores, "PART_LINES", 3)
    texts = [f"the {word} cat sleeps here" for word in ("old", "new", "red", "big", "sad", "shy", "odd")]
    test = TestSet("de-en", texts[::-1], texts, [()] * 5 + [("one",), ("two", "three")])
    metrics = ["bleu", "chrf", "ter", "rougelsum", "meteor", "distinct_2", "length_ratio"]
    system = RuleSystem("copy", "copy")
    whole = DirectionScorer("de-en", test.as_references(), metrics).score(texts[::-1])

    def score() -> DirectionScore:
        return run_suite([system], [test], OPTIONS, metrics, tmp_path, "copy", Workers())[0].score

    first = score()
    assert (first.scores, first.signatures, first.notes) == (whole.scores, whole.signatures, whole.notes)
    assert "nrefs:var" in first.signatures["bleu"] and first.intervals == whole.intervals
    monkeypatch.setattr(kept_scores, "_count_part", None)  # a second run counts nothing
    assert score() == first
    test = TestSet("de-en", test.sources, [*texts[:6], "another"], test.further_references)
    with pytest.raises(TypeError):
        score()


def test_a_metric_that_was_not_asked_for_has_empty_cells(tmp_path: Path) -> None:
    table = Table("Others", ("en-de", "en-fr"), ("ter",))
    assert dict(fill_table(table, run(tmp_path, *find_systems(["copy"])), ["copy"], "copy").rows) == {
        "copy": (None,) * 3
    }


def test_outputs_in_files(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    path = tmp_path / "mine" / "en-de.hyp"
    path.write_text("a b c d e\nf g h i j\n")
    (system,) = find_systems([f"ours={tmp_path / 'mine'}"])
    (result,) = run(tmp_path / "out", system)
    assert (result.system.name, result.score.scores["bleu"]) == ("ours", pytest.approx(100))
    (one,) = find_systems([str(path)])
    with pytest.raises(InputError, match=r"en-de\.hyp is one file for 2 test sets"):
        run(tmp_path / "out", one)
    path.write_text("a\n")
    with pytest.raises(InputError, match=r"en-de\.hyp has 1 lines, but en-de has 2 sources"):
        run(tmp_path / "out", system)


def test_a_task_in_english_for_other_languages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def outputs(self: ModelSystem, test: TestSet, options: SearchOptions) -> list[str]:
        return [f"{self.directory.name}.{test.direction}.{options.max_length}({text})" for text in test.sources]

    monkeypatch.setattr(ModelSystem, "outputs", outputs)
    monkeypatch.setattr(ModelSystem, "identity", lambda self, direction: self.directory.name)
    for name in ("mt", "sum", "back"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    there, both, alone = find_systems(["pivot:mt+sum", "b=pivot:mt+sum+back", "pivot:mt+copy"])

    def said(system: System, direction: str) -> str:
        return system.outputs(TestSet(direction, ["Un. Deux."], ["x"]), SearchOptions(max_length=80))[0]

    assert said(there, "fr-en") == "sum.en-en.80(mt.fr-en.200(Un.) mt.fr-en.200(Deux.))"
    assert said(there, "en-de") == "sum.en-de.80(Un. Deux.)"
    assert said(both, "fr-fr").startswith("back.en-fr.200(sum.en-en.80(mt.fr-en.200(Un.)")
    assert said(both, "en-en") == "sum.en-en.80(Un. Deux.)"
    assert said(alone, "fr-en") == "mt.fr-en.200(Un.) mt.fr-en.200(Deux.)"
    identities = {each.identity(direction) for each in (there, both) for direction in ("fr-en", "fr-fr", "en-en")}
    assert len(identities) == 4  # into English there is no way back, and from it nothing but the model
    (tmp_path / "file").write_text("x\n")
    for wrong in ("pivot:mt", "pivot:mt+sum+back+mt", "pivot:file+sum"):
        with pytest.raises(InputError, match="is no pipeline: name a translator into English, a model"):
            find_systems([wrong])


def test_what_an_engine_is_asked_for_decides_outputs(tmp_path: Path) -> None:
    def identity(engine: str | None = None, **options: object) -> str:
        (system,) = find_systems([str(tmp_path)], engine, EngineOptions(**options))
        return system.identity("en-de")

    assert identity() == identity(threads=3)
    assert len({identity(), identity("pytorch"), identity(dtype="bfloat16"), identity(device="cuda")}) == 4


def test_systems_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="There is no system 'nowhere': name a model directory"):
        find_systems(["copy", "nowhere"])
    with pytest.raises(InputError, match="Two systems have one name: copy, copy"):
        find_systems(["copy", "copy"])
    assert [system.name for system in find_systems(["a=copy", "copy", "memory:x"])] == ["a", "copy", "memory:x"]
    with pytest.raises(InputError, match="There is no system 'cop' here, the nearest is 'copy'"):
        run(tmp_path, *find_systems(["copy"]), baseline="cop")
