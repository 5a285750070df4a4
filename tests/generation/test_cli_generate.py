"""translate, score, evaluate and export as a user runs them, on a tiny model with random weights."""

import json

import pytest
import sentencepiece
import torch
from safetensors.torch import save_file

from deltalm_ds.errors import InputError
from deltalm_ds.files import write_json
from deltalm_ds.generation.choosing import Wishes
from deltalm_ds.generation.glossary import Glossary
from deltalm_ds.generation.interface import SearchOptions
from deltalm_ds.generation.translator import Translator
from deltalm_ds.model.config import DeltaLMConfig
from deltalm_ds.model.deltalm import DeltaLM
from deltalm_ds.vocabulary import Vocabulary

LINES = "one two three\n\nfour five six seven\n"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A model directory whose vocabulary has tags for de and en."""
    directory = tmp_path_factory.mktemp("cli") / "model"
    text = iter(["one two three four five six seven eight nine ten"] * 20)
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=text,
        model_prefix=str(directory.parent / "spm"),
        vocab_size=45,
        minloglevel=2,
        hard_vocab_limit=False,
    )
    vocabulary = Vocabulary.from_spm(directory.parent / "spm.model", num_sentinels=2, languages=["de", "en"])
    vocabulary.save(directory)
    torch.manual_seed(0)
    tiny = DeltaLM(DeltaLMConfig.preset("tiny", vocabulary_size=vocabulary.num_tokens, max_positions=30))
    write_json(directory / "config.json", {"model": tiny.config.model_dump()})
    save_file(tiny.state_dict(), directory / "model.safetensors")
    return directory


@pytest.fixture(scope="module", params=["ctranslate2", "onnx"])
def exported(request, model, run):
    out = model.parent / request.param
    report = json.loads(run("export", model, "--to", request.param, "--out", out, "--json"))
    assert report["max_error"] <= 1e-5
    return out


def test_translate_keeps_lines(model, run):
    output = run("translate", model, "--target-lang", "de", "--max-length", "8", input=LINES)
    assert len(output.split("\n")) == 4 and output.split("\n")[1] == ""
    best = run("translate", model, "--target-lang", "de", "--max-length", "8", "--n-best", "2", input=LINES)
    rows = [row.split("\t") for row in best.removesuffix("\n").split("\n")]
    assert [row[0] for row in rows] == ["0", "0", "1", "2", "2"]
    assert rows[0][2] == output.split("\n")[0]
    assert float(rows[0][1]) >= float(rows[1][1])


def test_both_engines_print_the_same(model, exported, run):
    arguments = ("--target-lang", "en", "--max-length", "8", "--json")
    ours = [json.loads(line) for line in run("translate", model, *arguments, input=LINES).splitlines()]
    theirs = [json.loads(line) for line in run("translate", exported, *arguments, input=LINES).splitlines()]
    assert [line["source"] for line in ours] == LINES.splitlines()
    for a, b in zip(ours, theirs, strict=True):
        (a,), (b,) = a["hypotheses"], b["hypotheses"]
        assert (a["text"], a["ids"]) == (b["text"], b["ids"])
        assert len(a["token_scores"]) == len(b["token_scores"])
        assert a["token_scores"] == pytest.approx(b["token_scores"], abs=1e-5)


def test_engines_agree_on_every_option(model, exported, run):
    """Lengths that depend on the source, prefixes, penalties, n-grams: texts and scores are the same.

    But CTranslate2 divides what is left of a probability by it where something is excluded, and may search elsewhere.
    """
    source = "one two three\n\nfour\nfive six seven eight nine ten one\n"
    no_repeats = () if exported.name == "ctranslate2" else ("--no-repeat-ngram-size", 2)
    options = {
        "prefix": ("--prefix", "two one", "--n-best", 2),
        "ratios": ("--min-length-ratio", 1, "--max-length-ratio", 1.5),
        "short": ("--max-length-ratio", 0.5, "--min-length", 0, "--beam", 3),
        "all": ("--prefix", "ten", "--min-length-ratio", 0.8, "--max-length-ratio", 1, *no_repeats),
        "penalty": ("--length-penalty", 0.3, "--min-length", 4),
    }
    for name, given in options.items():
        arguments = ("--target-lang", "en", "--max-length", 10, *given, "--json")
        ours, theirs = (
            [json.loads(line) for line in run("translate", where, *arguments, input=source).splitlines()]
            for where in (model, exported)
        )
        for a, b in zip(ours, theirs, strict=True):
            assert [one["ids"] for one in a["hypotheses"]] == [one["ids"] for one in b["hypotheses"]], name
            for one, other in zip(a["hypotheses"], b["hypotheses"], strict=True):
                assert one["score"] == pytest.approx(other["score"], abs=1e-5), name
                assert one["is_cut"] == other["is_cut"], name
        begins = {"prefix": "two one", "all": "ten"}.get(name, "")
        assert all(one["text"].startswith(begins) for row in ours if row["source"] for one in row["hypotheses"])
    lengths = [len(row["hypotheses"][0]["ids"]) for row in ours]
    assert lengths[1] == 0 and min(lengths[0], *lengths[2:]) >= 4


WISHES = {
    "alignments": ("--alignments", "words", "--check", "--n-best", 2),
    "pieces": ("--alignments", "pieces"),
    "glossary": ("--glossary", "glossary.tsv", "--n-best", 3, "--max-length", 24),
    "protect": ("--protect", "url,number", "--alignments", "words"),
    "mbr": ("--rerank", "mbr", "--n-best", 5),
    "reverse": ("--rerank", "reverse", "--reverse-model", "model", "--source-lang", "de", "--rerank-weight", 0.5),
    "coverage": ("--rerank", "coverage", "--n-best", 5),
    "all": ("--rerank", "coverage", "--glossary", "glossary.tsv", "--protect", "number", "--n-best", 6, "--beam", 6),
    "ban": ("--ban", "ban.txt"),
}


@pytest.mark.parametrize("name", WISHES)
def test_engines_agree_on_every_wish(name, model, exported, run, tmp_path, monkeypatch):
    """What candidates must have and are ranked by, and what they look at: all is equal, to rounding."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").symlink_to(model)
    (tmp_path / "glossary.tsv").write_text("two\tseven eight*\nfour\tten*\nfive\tone*\n")
    (tmp_path / "ban.txt").write_text("three\nsix seven\n")
    source = "one two three\n\nfour 12 five two\nsee www.a.b/c1 and 7 one\n12\n"
    arguments = ("--target-lang", "en", "--max-length", 12, *WISHES[name], "--json")
    ours, theirs = (
        [json.loads(line) for line in run("translate", where, *arguments, input=source).splitlines()]
        for where in (model, exported)
    )
    best = [row["hypotheses"][0] for row in ours]
    if name == "glossary":
        assert not any(one.get("faults") for one in best)
        assert "seven eight" in best[0]["text"] and "ten" in best[2]["text"]
        assert any(one.get("faults") for row in ours for one in row["hypotheses"])  # the search had not all of it
    if name == "protect":
        assert "www.a.b/c1" in best[3]["text"] and "7" in best[3]["text"] and best[4]["text"] == "12"
        assert "12" in best[2]["text"] and "⁇" not in best[2]["text"]
    if name == "ban":
        assert "three" not in " ".join(one["text"] for one in best)
        if exported.name == "ctranslate2":
            return  # see `test_engines_agree_on_every_option`
    for a, b in zip(ours, theirs, strict=True):
        assert len(a["hypotheses"]) == len(b["hypotheses"])
        for one, other in zip(a["hypotheses"], b["hypotheses"], strict=True):
            assert one.keys() == other.keys()
            assert (one["text"], one["ids"]) == (other["text"], other["ids"]), name
            assert one["score"] == pytest.approx(other["score"], abs=1e-5)
            assert one.get("rerank_score", 0) == pytest.approx(other.get("rerank_score", 0), abs=1e-3)
            assert one.get("checks") == other.get("checks")
            assert ("alignment" in one) == ("--alignments" in WISHES[name])
            if "alignment" in one:
                assert one["alignment"]["target"] == other["alignment"]["target"]
                assert one["alignment"]["source"] == other["alignment"]["source"]
                for row, other_row in zip(*(x["alignment"]["weights"] for x in (one, other)), strict=True):
                    assert row == pytest.approx(other_row, abs=2e-4) and sum(row) == pytest.approx(1, abs=2e-3)
    if name in ("mbr", "coverage"):
        ranks = [[one["rerank_score"] for one in row["hypotheses"]] for row in ours if row["source"]]
        assert all(of_row == sorted(of_row, reverse=True) and len(of_row) == 5 for of_row in ranks)


def test_documents_and_python_take_wishes_too(model, run, tmp_path):
    (tmp_path / "glossary.tsv").write_text("two\tseven eight*\nfour\tten\n")
    (tmp_path / "in.txt").write_text("one two three.\n\nsix www.a.b/c1 two.\n")
    arguments = ("--target-lang", "en", "--document", "--input", tmp_path / "in.txt", "--max-length", 20)
    plain = run("translate", model, *arguments)
    found = run("translate", model, *arguments, "--glossary", tmp_path / "glossary.tsv")
    assert "seven eight" not in plain and "www.a.b/c1" in found
    assert found.split("\n\n")[0].count("seven eight") == 1
    wishes = Wishes(Glossary.read(tmp_path / "glossary.tsv"))
    translator = Translator(model, options=SearchOptions(max_length=20), wishes=wishes)
    assert translator("one two three.", target_lang="en") == found.split("\n\n")[0]
    found = translator.align("one two three", "six seven", target_lang="en")
    assert found.source[0] == "__en__" and found.target == (" six", " seven", "</s>")
    assert found.weights.sum(axis=1) == pytest.approx([1, 1, 1], abs=1e-5)


def test_options_that_mean_nothing_are_refused(model, run, tmp_path):
    (tmp_path / "g").write_text("a\tb\n")
    for given, message in {
        ("--alignments", "words"): "--alignments means nothing without --json or --check",
        ("--ids", "--glossary", tmp_path / "g"): "--glossary means nothing with --ids",
        ("--rerank-weight", 2): "--rerank-weight means nothing without --rerank",
        ("--source-lang", "de"): "--source-lang means nothing without --document",
        ("--document", "--alignments", "words"): "--alignments means nothing with --document",
        ("--protect", "urls"): "no kind of text 'urls' to protect: the nearest is 'url'",
        (
            "--rerank",
            "reverse",
            "--reverse-model",
            model,
        ): r"name the language of the sources \(--source-lang\): de, en",
    }.items():
        with pytest.raises(InputError, match=message):
            run("translate", model, "--target-lang", "de", *given, input="one\n")


def test_what_an_engine_cannot_do_is_refused_by_name(model, exported, run):
    arguments = (
        "--target-lang",
        "en",
        "--max-length",
        10,
        "--temperature",
        1,
        "--top-k",
        9,
        "--seed",
        4,
        "--n-best",
        3,
    )
    ours = run("translate", model, *arguments, input=LINES)
    assert len({row.partition("\t")[2] for row in ours.splitlines()}) > 4
    if exported.name == "ctranslate2":
        with pytest.raises(InputError, match="--temperature: CTranslate2 draws from a state of its own"):
            run("translate", exported, *arguments, input=LINES)
    else:
        texts, others = (
            [row.split("\t")[::2] for row in out.splitlines()]
            for out in (ours, run("translate", exported, *arguments, input=LINES))
        )
        assert texts == others


def test_ids_need_no_vocabulary(model, exported, run, tmp_path):
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((model / name).read_bytes())
    output = run("translate", tmp_path, "--ids", "--max-length", "5", "--beam", "1", input="4 5 6\n\n7\n")
    assert output == run("translate", exported, "--ids", "--max-length", "5", "--beam", "1", input="4 5 6\n\n7\n")
    (tmp_path / "source").write_text("4 5 6\n7\n")
    (tmp_path / "target").write_text("8\n9 10\n")
    arguments = ("--source", tmp_path / "source", "--target", tmp_path / "target", "--ids")
    rows = [json.loads(line) for line in run("score", tmp_path, *arguments, "--json").splitlines()]
    assert [row["ids"] for row in rows] == [[8], [9, 10]]
    assert [len(row["token_scores"]) for row in rows] == [2, 3]
    plain = [row.split("\t") for row in run("score", exported, *arguments).splitlines()]
    for row, (total, tokens) in zip(rows, plain, strict=True):
        assert float(total) == pytest.approx(row["score"], abs=1e-4)
        assert [float(value) for value in tokens.split()] == pytest.approx(row["token_scores"], abs=1e-4)


def test_scores_of_translations_are_those_of_score(model, run, tmp_path):
    (tmp_path / "source").write_text("one two\n")
    arguments = ("--target-lang", "de", "--max-length", "6", "--json")
    (hypothesis,) = json.loads(run("translate", model, "--input", tmp_path / "source", *arguments))["hypotheses"]
    (tmp_path / "source_ids").write_text(" ".join(map(str, tagged_ids(model, "de", "one two"))) + "\n")
    (tmp_path / "target_ids").write_text(" ".join(map(str, hypothesis["ids"])) + "\n")
    files = ("--source", tmp_path / "source_ids", "--target", tmp_path / "target_ids")
    scored = json.loads(run("score", model, *files, "--ids", "--json"))
    assert scored["token_scores"] == pytest.approx(hypothesis["token_scores"], abs=1e-5)


def tagged_ids(model, language, text):
    vocabulary = Vocabulary.load(model)
    return [vocabulary.language_id(language), *vocabulary.encode(text).tolist()]


def test_score_names_both_counts(model, run, tmp_path):
    (tmp_path / "a").write_text("one\ntwo\n")
    (tmp_path / "b").write_text("one\n")
    with pytest.raises(InputError, match=r"a has 2 lines but .*b has 1"):
        run("score", model, "--source", tmp_path / "a", "--target", tmp_path / "b", "--target-lang", "de")


def test_evaluate_writes_outputs_and_scores(model, run, tmp_path):
    for name in ("test.de-en.de", "test.de-en.en"):
        (tmp_path / name).write_text("one two three\nfour five\n")
    arguments = ("evaluate", model, "--data", tmp_path, "--beam", "1", "--max-length", "6")
    summary = json.loads(run(*arguments, "--json", "--out", tmp_path / "out"))
    assert [score["direction"] for score in summary["directions"]] == ["de-en", "en-de"]
    assert len((tmp_path / "out/de-en.hyp").read_text().splitlines()) == 2
    assert json.loads((tmp_path / "out/scores.json").read_text()) == summary
    table = run(*arguments, "--directions", "en-de", "--metrics", "bleu,rouge1,meteor,copy_rate,off_target")
    assert "en-de" in table and "de-en" not in table and "BLEU: nrefs:1|case:mixed|eff:no|tok:13a" in table
    assert table.split()[:7] == ["direction", "BLEU", "ROUGE-1", "METEOR", "copies", "off-target", "sentences"]
    with pytest.raises(InputError, match="exists already"):
        run(*arguments, "--out", tmp_path / "out")


def test_evaluate_given_outputs_without_a_model(run, tmp_path):
    (tmp_path / "hyp").write_text("the cat sat on the mat\n")
    arguments = ("evaluate", "--hypotheses", tmp_path / "hyp", "--reference", tmp_path / "hyp", "--json")
    (score,) = json.loads(run(*arguments))["directions"]
    assert score["bleu"] == pytest.approx(100)
    with pytest.raises(InputError, match=r"bleu needs references \(--reference\), and none is given"):
        run("evaluate", "--hypotheses", tmp_path / "hyp")
    with pytest.raises(InputError, match="--data, or --source"):
        run("evaluate", "--source", tmp_path / "hyp")


def test_export_checks_with_the_sentences_given(model, run, tmp_path):
    (tmp_path / "check").write_text("one two\n\nthree four five\nsix\n")
    arguments = ("export", model, "--to", "onnx", "--out", tmp_path / "out", "--precision", "int8", "--check-file")
    report = json.loads(run(*arguments, tmp_path / "check", "--json"))
    assert (report["num_sentences"], report["format"], report["precision"]) == (3, "onnx", "int8")
    assert Vocabulary.load(tmp_path / "out").hash == Vocabulary.load(model).hash
    (tmp_path / "empty").write_text("\n\u200b\n", encoding="utf-8")
    with pytest.raises(InputError, match="no sentences"):
        run("export", model, "--out", tmp_path / "out2", "--check-file", tmp_path / "empty")
