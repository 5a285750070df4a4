"""`deltalm evaluate --hypotheses`: languages however they are spelled, metrics, and wrong options."""

import json
import re

import pytest
from command import deltalm, must

CHINESE = ("会议将在星期五下午三点开始。", "会议将于星期五下午三点开始。")


@pytest.fixture
def files(tmp_path):
    for name, text in zip(("hyp", "ref"), CHINESE, strict=True):
        (tmp_path / name).write_text(f"{text}\n", encoding="utf-8")
    return "--hypotheses", tmp_path / "hyp", "--reference", tmp_path / "ref"


def test_every_spelling_gives_the_same_score_on_the_command_line(files):
    spellings = ("zh", "zh_CN", "zh-CN", "zho_Hans", "cmn")
    found = [json.loads(must("evaluate", *files, "--target-lang", code, "--json")) for code in spellings]
    scores = [summary["directions"][0]["scores"] for summary in found]
    assert scores[0]["bleu"] > 50
    assert all(score == scores[0] for score in scores)


def test_without_a_language_the_choice_is_said_on_stderr(files):
    outcome = deltalm("evaluate", *files, "--metrics", "bleu", "--json")
    assert json.loads(outcome.stdout)["directions"][0]["bleu"] > 50
    assert "Note: No language is named; as the references are written in Hans" in outcome.stderr


def test_metrics_are_chosen_and_become_columns(files):
    header, values, *signatures = must(
        "evaluate", *files, "--target-lang", "zh", "--metrics", "ter,chrf++"
    ).splitlines()
    assert header.split() == ["direction", "TER", "chrF2++", "sentences"]
    assert re.fullmatch(r"zh +\d+\.\d\d ±0\.00 +\d+\.\d\d ±0\.00 +1", values)  # one sentence is always drawn
    assert [line.partition(":")[0] for line in signatures] == ["TER", "chrF2++"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--metrics", "blue"), "the nearest is 'bleu'"),
        (("--target-lang", "ZH"), "perhaps zh."),
        (("--target-lang", "zh cn"), "'zh cn' is not a language code"),
        (("--metrics", "chrf", "--tokenizer", "zh"), "A tokenizer changes nothing but bleu"),
    ],
)
def test_wrong_options_are_one_sentence(files, options, message):
    outcome = deltalm("evaluate", *files, *options)
    assert outcome.code == 2
    assert message in outcome.messages[0]


def test_files_of_different_lengths_are_both_named(files, tmp_path):
    (tmp_path / "ref").write_text("a\nb\n")
    outcome = deltalm("evaluate", *files)
    assert outcome.code == 2
    assert f"{tmp_path / 'hyp'} has 1 lines but {tmp_path / 'ref'} has 2" in outcome.messages[0]
