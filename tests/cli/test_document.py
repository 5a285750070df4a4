"""`translate --document` and `deltalm_ds.Translator` with a real, tiny model."""

import json
import subprocess
import sys
from io import BytesIO

import pytest
import torch
from command import WORDS, deltalm, must

import deltalm_ds
from deltalm_ds.checkpoints.directory import save_model
from deltalm_ds.errors import InputError
from deltalm_ds.generation.interface import SearchOptions
from deltalm_ds.model.config import DeltaLMConfig
from deltalm_ds.model.deltalm import DeltaLM
from deltalm_ds.vocabulary import Vocabulary

PAGE = "<h1>One two</h1>\n<p>Three <b>four</b> five. Six &amp; seven.<br>\n  eight</p>\n<script>nine()</script>\n"
OPTIONS = "--target-lang", "de", "--max-length", 40, "--beam", 2


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    directory = tmp_path_factory.mktemp("world")
    lines = [" ".join(WORDS[(number + shift) % 10] for shift in range(1 + number % 7)) for number in range(40)]
    (directory / "text").write_text("".join(f"{line}\n" for line in lines))
    settings = "--size", 28, "--sentinels", 2, "--languages", "en,de", "--out", directory / "vocabulary"
    must("vocab", "train", "--input", directory / "text", *settings)
    vocabulary = Vocabulary.load(directory / "vocabulary")
    config = DeltaLMConfig.preset("tiny", vocabulary_size=vocabulary.num_tokens, max_positions=64)
    torch.manual_seed(0)
    weights = {
        name: 2 * tensor if tensor.ndim == 2 else tensor for name, tensor in DeltaLM(config).state_dict().items()
    }
    save_model(directory / "model", config, weights, vocabulary, {})
    return directory


@pytest.fixture(scope="module")
def translator(world):
    return deltalm_ds.Translator(world / "model", options=SearchOptions(beam=2, max_length=40))


def test_a_page_keeps_its_markup(world):
    (world / "page.html").write_text(PAGE)
    out = world / "page.de.html"
    outcome = deltalm(
        "translate", world / "model", "--document", "--input", world / "page.html", *OPTIONS, "--out", out
    )
    assert (outcome.code, outcome.stdout) == (0, "")
    assert "translate: 3 passages, 4 sentences" in outcome.stderr
    written = out.read_text()
    assert written.count("\n") == PAGE.count("\n")
    for markup in ("<h1>", "</h1>\n<p>", "<b>", "</b>", "<br>\n  ", "</p>\n<script>nine()</script>\n"):
        assert written.count(markup) == 1
    arguments = "translate", world / "model", "--document", "--format", "html", *OPTIONS
    assert must(*arguments, stdin=PAGE.encode()) == written


def test_sentences_are_those_of_translating_lines(world, translator):
    lines = ["One two three.", "Four five.", "Six seven eight."]
    alone = must("translate", world / "model", *OPTIONS, stdin="".join(f"{line}\n" for line in lines).encode())
    together = must("translate", world / "model", "--document", *OPTIONS, stdin=(" ".join(lines) + "\n").encode())
    assert together == " ".join(line.strip() for line in alone.splitlines()) + "\n"
    assert translator(" ".join(lines), target_lang="de") == together.removesuffix("\n")
    assert translator(lines, target_lang="de") == [line.strip() for line in alone.splitlines()]


def test_in_python_progress_is_shown_to_who_asks_for_it(world, translator, capsys):
    translator("Four five.", target_lang="de")
    assert "translate: 1/1" not in capsys.readouterr().err
    shown = deltalm_ds.Translator(world / "model", options=translator.options, shows_progress=True)
    shown("Four five.", target_lang="de")
    assert "translate: 1/1" in capsys.readouterr().err


def test_long_sentences_are_cut_and_counted(world):
    outcome = deltalm("translate", world / "model", "--document", *OPTIONS, stdin=b"one two three four, " * 20)
    assert outcome.code == 0
    assert "1 too long for the model, cut into" in outcome.stderr
    assert "sources were longer" not in outcome.stderr


def test_word_documents_go_to_a_file(world):
    docx = pytest.importorskip("docx", reason="the extra documents is not installed")
    file = BytesIO()
    document = docx.Document()
    document.add_paragraph("One two. Three four.")
    document.save(file)
    (world / "a.docx").write_bytes(file.getvalue())
    arguments = "translate", world / "model", "--document", "--input", world / "a.docx", *OPTIONS
    assert deltalm(*arguments).messages == ["deltalm: A document in Word is no text: name a file for it with --out."]
    must(*arguments, "--out", world / "b.docx")
    assert docx.Document(world / "b.docx").paragraphs[0].text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--document", "--n-best", 2), "--n-best means nothing with --document: leave it out."),
        (("--document", "--json"), "--json means nothing with --document: leave it out."),
        (("--format", "html"), "--format means nothing without --document: leave it out."),
        (("--source-lang", "en"), "--source-lang means nothing without --document: leave it out."),
        (("--document", "--format", "pdf"), "There is no document format 'pdf': the nearest is"),
        (("--document", "--protect", "links"), "There is no kind of text 'links' to protect: the nearest is"),
        (("--document", "--source-lang", "English"), "'English' is not a language code"),
        (("--document", "--input", "x.tex"), "x.tex: no document format has the suffix .tex"),
        (("--document", "--input", "none.txt"), "none.txt cannot be read"),
        (("--document", "--out", "/proc/none/out.txt"), "deltalm: /proc/none/out.txt: No such file or directory."),
    ],
)
def test_bad_input_is_one_sentence(world, arguments, message):
    outcome = deltalm("translate", world / "model", *OPTIONS, *arguments, stdin=b"one\n")
    assert outcome.code == 2 and len(outcome.messages) == 1
    assert message in outcome.messages[0]


def test_languages_are_named(translator):
    assert translator.languages == ("en", "de")
    with pytest.raises(InputError, match="Name the language"):
        translator("one")
    with pytest.raises(InputError, match="'fr'"):
        translator("one", target_lang="fr")
    assert translator("", target_lang="de") == "" and translator([], target_lang="de") == []


def test_what_looks_wrong_is_said_of_each_line(world):
    arguments = "translate", world / "model", *OPTIONS, "--check"
    stdin = b"one two 2026\n\none two three four five six seven eight. nine ten. one two three.\n"
    stdin += "Моя собака сегодня очень устала\n".encode()
    outcome = deltalm(*arguments, "--source-lang", "en", stdin=stdin)
    assert "translate: line 1: " in outcome.stderr and "numbers missing: 2026" in outcome.stderr
    assert "line 2:" not in outcome.stderr and "of 4 outputs look wrong." in outcome.stderr
    assert "translate: line 4: source in the script Cyrl, not that of en; unknown " in outcome.stderr
    assert outcome.stdout == must(*arguments[:-1], stdin=stdin)
    first, empty, *_ = map(json.loads, must(*arguments, "--json", "--n-best", 2, stdin=stdin).splitlines())
    assert all("numbers missing: 2026" in found["checks"] for found in first["hypotheses"])
    assert len(first["hypotheses"]) == 2 and empty["hypotheses"][0]["checks"] == []
    outcome = deltalm("translate", world / "model", "--ids", "--check", stdin=b"4\n")
    assert outcome.messages == ["deltalm: --check means nothing with --ids: leave it out."]


def test_importing_the_package_is_light():
    code = (
        "import sys, json, deltalm_ds; before = sorted(sys.modules); deltalm_ds.Translator;"
        "print(json.dumps([before, 'torch' in sys.modules, hasattr(deltalm_ds, 'nothing')]))"
    )
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, loads_torch, has_nothing = json.loads(process.stdout)
    assert not {"torch", "numpy", "sentencepiece", "babel"} & set(before)
    assert [name for name in before if name.startswith("deltalm_ds.")] == []
    assert not loads_torch and not has_nothing
