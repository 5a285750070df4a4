"""`deltalm compare`, and `deltalm evaluate --hypotheses` with all that metrics may need."""

import json

import pytest
from command import deltalm, must

TEXTS = {
    "a": ["The dog sleeps.", "Ein Haus", "It rains today."],
    "b": ["The dog sleeps.", "A house", "It rains today."],
    "ref": ["The dog is asleep.", "A house", "It is raining today."],
    "ref2": ["The dog sleeps.", "", ""],
    "src": ["Der Hund schläft.", "Ein Haus", "Heute regnet es."],
}


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, lines in TEXTS.items():
        (tmp_path / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def test_as_text_as_a_page_and_as_json(files, tmp_path):
    compare = "compare", "a", "b", "--reference", "ref", "--source", "src", "--target-lang", "en"
    text = must(*compare, "--html", "page.html")
    assert "chrF2 by length of the reference:" in text and "F1 of words by frequency" in text
    assert "line 2: chrF2" in text and "source: Ein Haus" in text and "b: A house" in text
    assert text.splitlines()[-1].startswith("BLEU: nrefs:1")
    assert "sleeps" not in (tmp_path / "page.html").read_text()  # both have that line
    found = json.loads(must(*compare, "--json", "--metrics", "rouge1,off_target,copy_rate", "--languages", "en,de"))
    off_target = next(metric for metric in found["metrics"] if metric["name"] == "off_target")
    assert (off_target["first"], off_target["second"]) == (pytest.approx(100 / 3), 0)
    assert found["sentences"][0]["line"] == 2 and found["ranked_by"] == "rouge1"


def test_directories_of_several_directions(files, tmp_path):
    for direction, name in (("src-en", "b"), ("fr-en", "a")):
        for directory, text in (("old", TEXTS["a"]), ("new", TEXTS[name])):
            (tmp_path / directory).mkdir(exist_ok=True)
            (tmp_path / directory / f"{direction}.hyp").write_text("".join(f"{line}\n" for line in text))
        rows = [{"source": one, "references": [two]} for one, two in zip(TEXTS["src"], TEXTS["ref"], strict=True)]
        (tmp_path / f"test.{direction}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (tmp_path / "old" / "de-en.hyp").write_text("x\n")
    (tmp_path / "test.de-en.jsonl").write_text(json.dumps({"source": "x", "references": ["x"]}))
    outcome = deltalm("compare", "old", "new", "--data", ".", "--metrics", "chrf,copy_rate", "--html", "page.html")
    assert outcome.code == 0 and "de-en is left out: there is old/de-en.hyp alone." in outcome.stderr
    assert "Metrics, means over 2 directions:" in outcome.stdout and "src-en, line 2: chrF2" in outcome.stdout
    assert "By direction" in (tmp_path / "page.html").read_text()
    found = json.loads(must("compare", "old", "new", "--data", ".", "--directions", "src-en", "--json"))
    assert found["directions"] == [] and found["num_sentences"] == 3 and found["metrics"][0]["name"] == "chrf"


def test_evaluate_takes_several_references_and_sources(files):
    options = "--hypotheses", "b", "--reference", "ref", "--reference", "ref2", "--target-lang", "en", "--json"
    found = json.loads(must("evaluate", *options, "--metrics", "exact_match,bleu,copy_rate", "--source", "src"))
    (score,) = found["directions"]
    assert score["exact_match"] == pytest.approx(200 / 3) and score["copy_rate"] == 0
    assert "nrefs:var" in score["bleu_signature"] and set(score["intervals"]) == {"exact_match", "bleu", "copy_rate"}


def test_evaluate_without_references(files):
    found = json.loads(must("evaluate", "--hypotheses", "a", "--metrics", "distinct_1", "--json"))
    assert found["directions"][0]["num_sentences"] == 3 and found["directions"][0]["intervals"] == {}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("compare", "a", "b", "--reference", "ref", "--metrics", "copy_rate,chrf"),
            "copy_rate needs sources (--source)",
        ),
        (("compare", "a", "short", "--reference", "ref"), "a has 3 lines but short has 1"),
        (("compare", "a", "b", "--reference", "ref", "--metrics", "chrf,blue"), "the nearest is 'bleu'"),
        (
            ("compare", "a", "b"),
            "Give the references of files (--reference) or, of directories, the test sets (--data).",
        ),
        (("compare", "a", "b", "--data", ".", "--reference", "ref"), "--reference means nothing with --data"),
        (
            ("compare", ".", ".", "--data", "one"),
            "have no outputs for a direction in common: expected files such as de-en",
        ),
        (("compare", "one", "one", "--data", "one"), "one/de-en.hyp has 2 lines, but de-en has 1 references."),
        (("evaluate", "--hypotheses", "a"), "needs references (--reference), and none is given"),
        (("evaluate", "--hypotheses", "none", "--reference", "none"), "none, none: there is no line to score."),
        (("evaluate", "--hypotheses", "a", "--reference", "ref", "--data", "."), "no model, no --data."),
        (("evaluate", "--hypotheses", "a", "--metrics", "off_target"), "needs a language (--target-lang)"),
        (("average", "run", "--best", "1", "--metric", "length_ratio", "--out", "m"), "length_ratio has no better end"),
    ],
)
def test_wrong_options_are_one_sentence(files, tmp_path, arguments, message):
    (tmp_path / "short").write_text("one\n")
    (tmp_path / "none").touch()
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "test.de-en.jsonl").write_text(json.dumps({"source": "x", "references": ["x"]}))
    (tmp_path / "one" / "de-en.hyp").write_text("x\ny\n")
    outcome = deltalm(*arguments)
    assert outcome.code == 2
    assert message in outcome.messages[0]
