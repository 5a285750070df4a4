"""Language codes wherever the command line takes them: what is understood, and what is refused with what to write."""

import json

import pytest
from command import deltalm, make_world, must

from deltalm_ds.vocabulary import Vocabulary


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    directory = tmp_path_factory.mktemp("world")
    make_world(directory)
    languages = "en,pt-BR,zh_Hans,zh_TW"
    must(
        "vocab",
        "import",
        "--spm",
        directory / "vocabulary/spm.model",
        "--languages",
        languages,
        "--out",
        directory / "v",
    )
    return directory


@pytest.fixture(autouse=True)
def in_world(world, monkeypatch):
    monkeypatch.chdir(world)


def refused(*arguments):
    outcome = deltalm(*arguments)
    assert outcome.code == 2 and len(outcome.messages) == 1
    return outcome.messages[0]


@pytest.mark.parametrize(
    ("languages", "advice"),
    [
        ("en de", "several with commas between: en,de"),
        ("EN", "perhaps en."),
        ("a:b", "de, pt-BR or zh_Hans."),
        ("../x", "."),
    ],
)
@pytest.mark.parametrize("verb", ["train", "import"])
def test_vocabularies_take_codes_only(languages, advice, verb):
    source = ("--input", "text.en", "--size", 28) if verb == "train" else ("--spm", "vocabulary/spm.model")
    message = refused("vocab", verb, *source, "--languages", languages, "--out", "none")
    assert f"{languages!r} is not a language code" in message and message.endswith(f"{advice.removesuffix('.')}.")


def test_a_vocabulary_keeps_its_tags_and_is_asked_in_other_spellings():
    vocabulary = Vocabulary.load("v")
    assert vocabulary.blocks["languages"] == ("__en__", "__pt-BR__", "__zh_Hans__", "__zh_TW__")
    asked = {"eng_Latn": "en", "pt": "pt-BR", "por_Latn": "pt-BR", "zho_Hans": "zh_Hans", "zh-Hant": "zh_TW"}
    assert {code: vocabulary.language_id(code) for code in asked} == {
        code: vocabulary.language_id(tag) for code, tag in asked.items()
    }


@pytest.mark.parametrize(
    ("option", "name", "kind", "languages"),
    [
        ("--mono", "zh-Hans", "mono", ["zh-Hans"]),
        ("--mono", "pt_BR", "mono", ["pt_BR"]),
        ("--parallel", "en-pt-BR", "parallel", ["en", "pt-BR"]),
        ("--parallel", "zh_CN-en_XX", "parallel", ["zh_CN", "en_XX"]),
        ("--parallel", "pt-br", "parallel", ["pt", "br"]),
        ("--task", "titles:zh-Hans-en", "task", ["zh-Hans", "en"]),
    ],
)
def test_corpora_are_what_their_names_say(option, name, kind, languages, tmp_path):
    files = "text.en" if kind == "mono" else "text.en,text.de"
    built = must("data", "build", "--vocab", "v", "--out", tmp_path / "out", option, f"{name}={files}", "--json")
    (corpus,) = json.loads(built)["corpora"]
    assert (corpus["name"], corpus["kind"], corpus["languages"]) == (name.partition(":")[0], kind, languages)


@pytest.mark.parametrize(
    ("option", "name", "advice"),
    [
        ("--mono", "pt-br", "--mono takes one language, as in de=, pt-BR= or zh_Hans=; 'pt-br' is not that"),
        ("--parallel", "pt-BR", "--parallel takes a pair, as in en-de= or en-pt-BR=; 'pt-BR' is not that"),
        ("--parallel", "en_de", "perhaps en-DE or en-de."),
        ("--mono", "zh-hans", "perhaps zh-Hans."),
        ("--parallel", "EN-DE", "perhaps en-DE or en-de."),
    ],
)
def test_names_that_could_be_something_else_are_refused(option, name, advice, tmp_path):
    files = "text.en" if option == "--mono" else "text.en,text.de"
    message = refused("data", "build", "--vocab", "v", "--out", tmp_path / "out", option, f"{name}={files}")
    assert advice in message
    assert not (tmp_path / "out").exists()


def test_translating_takes_another_spelling():
    by_tag, by_flores = (
        must("translate", "model", "--input", "text.en", "--target-lang", c) for c in ("de", "deu_Latn")
    )
    assert by_tag == by_flores
    assert "perhaps de." in refused("translate", "model", "--input", "text.en", "--target-lang", "DE")
    assert "it has: en, de." in refused("translate", "model", "--input", "text.en", "--target-lang", "pt-BR")


def test_evaluating_takes_codes_with_regions_and_strays_beside_them(tmp_path):
    for language in ("en_GB", "de-AT"):
        (tmp_path / f"test.en_GB-de-AT.{language}").write_text("one two three four\nfive six seven eight\n")
    (tmp_path / "test.en_GB-de-AT.de-AT.bak").write_text("one\n")
    summary = json.loads(must("evaluate", "model", "--data", tmp_path, "--directions", "en_GB-de-AT", "--json"))
    assert [score["direction"] for score in summary["directions"]] == ["en_GB-de-AT"]
    assert json.loads(must("evaluate", "model", "--data", tmp_path, "--directions", "eng_GB-deu_AT", "--json"))[
        "average_bleu"
    ] == pytest.approx(summary["average_bleu"])
    assert "'DE' is not made of language codes" in refused(
        "evaluate", "model", "--data", tmp_path, "--directions", "DE"
    )
