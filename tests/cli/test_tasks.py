"""Tasks from files in their published forms: what the model reads, what it is scored with, what is refused."""

import json
import re
from pathlib import Path

import pytest
from command import deltalm, must
from published_tasks import ENTRY, PUBLISH, lines, objects, small_vocabulary, xgiga

from deltalm_ds.data.shards import ShardDataset
from deltalm_ds.evaluation.metrics import METRICS
from deltalm_ds.evaluation.suites import PreparedTask
from deltalm_ds.evaluation.tasks import TASKS
from deltalm_ds.recipe.loading import RECIPES, load_recipe
from deltalm_ds.vocabulary import Vocabulary


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_vocabulary(tmp_path_factory.mktemp("vocabulary"))


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, vocabulary: Path) -> Path:
    """A directory for every task, prepared from its published form."""
    directory = tmp_path_factory.mktemp("tasks")
    for name, publish in PUBLISH.items():
        publish(directory / "published" / name)
        must("data", "prepare", name, directory / "published" / name, "--vocab", vocabulary, "--out", directory / name)
    return directory


def test_every_task_is_known_to_the_tests() -> None:
    assert PUBLISH.keys() == TASKS.keys()


def test_triples_become_a_text_with_all_its_references(prepared: Path) -> None:
    (russian,) = PreparedTask.open("webnlg", prepared / "webnlg").test_sets(directions=["en-ru"])
    assert list(russian.sources) == ["Ann | likes | Fish soup", "Other dev | likes | Fish soup"]
    assert list(russian.references) == ["А dev", "А"]
    assert [list(texts) for texts in russian.further_references] == [["Б"], []]
    rows = objects(prepared / "webnlg" / "pairs" / "train.en-en.jsonl")
    assert [row["target"] for row in rows] == ["A train", "B", "A"]  # a row a text
    assert Vocabulary.load(prepared / "webnlg" / "vocabulary").languages == ("en", "ru")
    assert {corpus.num_rows for corpus in ShardDataset.open(prepared / "webnlg" / "train").manifest.corpora} == {3}


def test_the_answer_stands_before_the_passage(prepared: Path) -> None:
    (test,) = PreparedTask.open("xqg", prepared / "xqg").test_sets()
    assert (test.direction, test.sources[1], test.references[1]) == ("zh-zh", "狗 [S] 狗 跑 回家", "谁 跑 ？")
    vocabulary = Vocabulary.load(prepared / "xqg" / "vocabulary")
    separator = vocabulary.block_start("tasks")
    assert list(vocabulary.encode(test.sources[1])).count(separator) == 1
    assert vocabulary.languages == ()  # one language is generated: no tag


def test_each_direction_of_wmt_has_the_set_of_its_year(prepared: Path) -> None:
    task = PreparedTask.open("wmt10", prepared / "wmt10")
    tests = {test.direction: test for test in task.test_sets()}
    assert len(tests) == 20
    assert (tests["gu-en"].sources[0], tests["gu-en"].references[0]) == ("guen gu 1", "guen en 1")
    assert (tests["en-gu"].sources[0], tests["en-fr"].references[1]) == ("engu en 1", "enfr fr 2")
    assert tests["hi-en"].sources[0].startswith("hi")
    shards = ShardDataset.open(prepared / "wmt10" / "train").manifest
    assert {(corpus.kind, corpus.num_rows) for corpus in shards.corpora} == {("parallel", 2)}
    assert len(ShardDataset.open(prepared / "wmt10" / "dev").manifest.corpora) == 10  # a pair once
    assert len(Vocabulary.load(prepared / "wmt10" / "vocabulary").languages) == 11


def test_zero_shot_trains_on_english_and_on_text_of_the_others(prepared: Path) -> None:
    task = PreparedTask.open("zero_shot_summarisation", prepared / "zero_shot_summarisation")
    assert [test.direction for test in task.test_sets()] == ["fr-fr", "zh-zh"]
    corpora = {
        split: {
            (corpus.kind, corpus.languages)
            for corpus in ShardDataset.open(prepared / "zero_shot_summarisation" / split).manifest.corpora
        }
        for split in ("train", "mono")
    }
    assert corpora == {"train": {("task", ("en", "en"))}, "mono": {("mono", ("fr",)), ("mono", ("zh",))}}


def test_a_summary_in_english_of_four_languages(prepared: Path) -> None:
    tests = PreparedTask.open("wikilingua", prepared / "wikilingua").test_sets()
    assert {test.direction for test in tests} == {"es-en", "ru-en", "vi-en", "tr-en"}
    assert next(test for test in tests if test.direction == "vi-en").sources[0] == "vi val a"  # the validation set


def test_test_sets_in_the_training_data_are_counted(tmp_path: Path, vocabulary: Path, prepared: Path) -> None:
    outcome = deltalm(
        "data", "prepare", "webnlg", prepared / "published" / "webnlg", "--vocab", vocabulary, "--out", tmp_path / "w"
    )
    assert "Note: 1 of 2 sources of test.en-en are in the training data." in outcome.stderr
    assert "dev.en-en are" not in outcome.stderr


def test_a_new_vocabulary_and_what_is_not_there(tmp_path: Path) -> None:
    xgiga(tmp_path / "x")
    for side in "xy":
        (tmp_path / "x" / f"dev.{side}.fr").unlink()
    report = must("data", "prepare", "xgiga", tmp_path / "x", "--vocab-size", 31, "--out", tmp_path / "out")
    assert "Not there, and left out: dev.fr-fr" in report
    assert not (tmp_path / "out" / "dev").exists()
    assert Vocabulary.load(tmp_path / "out" / "vocabulary").has_text
    content = json.loads((tmp_path / "out" / "task.json").read_text())
    assert (content["task"], content["form"], content["absent"]) == ("xgiga", "published", ["dev.fr-fr"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("remove", "has not all files of train.fr-fr: there is no train.y.fr"),
        ("shorten", "train.x.fr has 3 lines but .*train.y.fr has 1"),
    ],
)
def test_files_that_do_not_belong_together(tmp_path: Path, vocabulary: Path, change: str, message: str) -> None:
    xgiga(tmp_path / "x")
    headlines = tmp_path / "x" / "train.y.fr"
    headlines.unlink()
    if change == "shorten":
        lines(headlines, ["Le chat"])
    outcome = deltalm("data", "prepare", "xgiga", tmp_path / "x", "--vocab", vocabulary, "--out", tmp_path / "out")
    assert outcome.code == 2
    assert re.search(message, outcome.stderr)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "file", "content", "message"),
    [
        ("webnlg", "en/train/a.xml", "<benchmark><entry>", "a.xml is not well-formed XML, or cut short"),
        (
            "webnlg",
            "en/train/a.xml",
            f"<b>\n{ENTRY}{ENTRY}</b>".format(number=1, subject="A", texts="<lex>A</lex>"),
            "a.xml, line 9, entry Id1: the id 'Id1' stands there twice, first at .*line 5",
        ),
        ("xqg", "xquad/zh.jsonl", '{"passage": "a"\n', "zh.jsonl, line 1: not valid JSON"),
        (
            "xqg",
            "xquad/zh.jsonl",
            '{"id": "q1", "passage": "a", "question": "b", "answer": "a"}\n' * 2,
            "zh.jsonl, line 2: the id 'q1' stands there twice, first at .*line 1",
        ),
        ("wmt10", "train.en-fr.tsv", "a\tb\n", "train.en-fr.tsv, line 1: found 2 columns, expected at least 3"),
        ("xgiga", "orangesum_fr_title.test.jsonl", '{"text": "a"}\n', "line 1: expected an object with .*`summary`"),
        ("xgiga", "notes.txt", "", "has no data of xgiga: expected XNLG's XGiga"),
    ],
)
def test_malformed_files(tmp_path: Path, vocabulary: Path, name: str, file: str, content: str, message: str) -> None:
    path = tmp_path / "published" / file
    path.parent.mkdir(parents=True)
    path.write_text(content)
    if name == "xqg":
        (tmp_path / "published" / "zhqa").mkdir()
        for other in ("drcd_dev", "cmrc2018_dev"):
            lines(
                tmp_path / "published" / "zhqa" / f"{other}.jsonl", ['{"passage": "a", "question": "b", "answer": "a"}']
            )
    outcome = deltalm("data", "prepare", name, tmp_path / "published", "--vocab", vocabulary, "--out", tmp_path / "out")
    assert outcome.code == 2
    assert re.search(message, outcome.stderr), outcome.stderr


def test_an_unknown_task_has_a_nearest(tmp_path: Path) -> None:
    outcome = deltalm("data", "prepare", "webnlgg", tmp_path, "--vocab-size", 31, "--out", tmp_path / "out")
    assert "There is no task 'webnlgg', the nearest is 'webnlg'" in outcome.stderr


@pytest.mark.parametrize("name", TASKS)
def test_recipes_train_on_what_is_prepared(name: str) -> None:
    for recipe in (load_recipe(RECIPES / "tasks" / f"{name}{suffix}.yaml") for suffix in ("", "_sample")):
        directory = recipe.vocabulary.parent
        assert {group.path.parent for group in recipe.data.train} == {directory}
        assert {group.path.name for group in recipe.data.train} <= {"train", "mono"}
    assert all(set(form.metrics) <= set(METRICS) for form in TASKS[name].forms)
