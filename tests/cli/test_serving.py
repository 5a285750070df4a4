"""Serving as a user sees it: what a process loads, answers at once, says of cut outputs and writes in any locale."""

import json
import os
import re
import subprocess
import sys
import threading
import unicodedata
from collections import Counter
from pathlib import Path

import pytest
import sentencepiece
import torch
from command import WORDS, deltalm, make_world, must
from safetensors.torch import load_file, save_file

from deltalm_ds.checkpoints.directory import save_model
from deltalm_ds.generation.translate import encoder_for
from deltalm_ds.model.config import DeltaLMConfig
from deltalm_ds.model.deltalm import DeltaLM
from deltalm_ds.vocabulary import Vocabulary

NOT_NEEDED = (
    "torch",
    "deepspeed",
    "pyarrow",
    "transformers",
    "sacrebleu",
    "babel",
    "onnxruntime",
    "triton",
    "tokenizers",
)
TO_GERMAN = "--target-lang", "de", "--max-length", 6
LINES = ["one two three", "Größe ▁ 中文 one", "", "four five"]
STDIN = "".join(f"{line}\n" for line in LINES).encode()
NOTHING = [
    *("", " \t ", "\u00a0\u2003\u3000", "\u200b\u200b", "\ufeff", "\u2060", "\u00ad", "\u200e\u200f", "\u202a\u202c"),
    *("\x01\x07", "\u2028", "\x85", "▁", "▁ ▁", "\ufe0f", "\U000e0001", "\u3164", "\u2800", "\x1b", "\u180e"),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The small world, its model exported as `ct2`."""
    directory = tmp_path_factory.mktemp("world")
    make_world(directory)
    weights = load_file(directory / "model/model.safetensors")  # large ones, which no export gives back exactly
    halved = {name: tensor / 2 if tensor.ndim == 2 else tensor for name, tensor in weights.items()}
    save_file(halved, directory / "model/model.safetensors")
    must("export", directory / "model", "--out", directory / "ct2")
    return directory


@pytest.fixture(autouse=True)
def _inside(world, monkeypatch):
    monkeypatch.chdir(world)


def command(*arguments):
    """The command line of `deltalm` in a process of its own."""
    return [sys.executable, "-c", "from deltalm_ds.cli import main; main()", *map(str, arguments)]


def run(*arguments, shell_redirection="", **settings):
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("LC_", "LANG", "PYTHONIO"))
    }
    quoted = ["bash", "-c", f'exec "$@" {shell_redirection}', "bash", *command(*arguments)]
    return subprocess.run(quoted, input=STDIN, capture_output=True, env=environment | settings, check=False)


# --- what a process loads ---


@pytest.mark.parametrize("options", [(), ("--json",), ("--n-best", 2)], ids=str)
def test_serving_an_export_loads_the_engine_alone(options):
    program = """
import sys
from deltalm_ds.cli import main
try:
    main()
finally:
    print("loaded:", *sorted(sys.modules), file=sys.stderr)
"""
    arguments = [sys.executable, "-c", program, "translate", "ct2", *map(str, TO_GERMAN), *map(str, options)]
    done = subprocess.run(arguments, input=STDIN, capture_output=True, check=True)
    loaded = set(re.search(r"^loaded: (.*)$", done.stderr.decode(), re.MULTILINE)[1].split())
    assert "ctranslate2" in loaded
    assert loaded.isdisjoint(NOT_NEEDED), sorted(loaded.intersection(NOT_NEEDED))
    assert done.stdout.decode() == must("translate", "ct2", *TO_GERMAN, *options, stdin=STDIN)


# --- lines that are written while we read ---


def test_a_line_is_answered_before_the_next_is_written():
    expected = must("translate", "ct2", *TO_GERMAN, stdin=STDIN).splitlines(keepends=True)
    process = subprocess.Popen(
        command("translate", "ct2", *TO_GERMAN), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    watchdog = threading.Timer(60, process.kill)  # an answer that never comes is an end of file then
    watchdog.start()
    try:
        for line, answer in zip(LINES, expected, strict=True):
            process.stdin.write(f"{line}\n".encode())
            process.stdin.flush()
            assert process.stdout.readline().decode() == answer
        process.stdin.write(b"one\nunfinished")  # the rest of a line may be long in coming
        process.stdin.flush()
        process.stdout.readline()
        rest, errors = process.communicate(b" line")
    finally:
        watchdog.cancel()
    assert (process.returncode, rest.count(b"\n")) == (0, 1)
    assert b"of 6 outputs reached" in errors


def test_a_pipe_gives_what_a_file_gives(world):
    lines = [" ".join(["one", "two", "three"][: 1 + number % 3]) for number in range(1500)]
    (world / "many").write_text("".join(f"{line}\n" for line in lines))
    arguments = command("translate", "ct2", *TO_GERMAN, "--beam", 1, "--n-best", 1)
    with open(world / "many", "rb") as file:
        from_file = subprocess.run(arguments, stdin=file, capture_output=True, check=True)
    from_pipe = subprocess.run(arguments, input=(world / "many").read_bytes(), capture_output=True, check=True)
    assert from_pipe.stdout == from_file.stdout
    assert from_pipe.stdout.count(b"\n") == 1500


def test_a_bad_line_of_a_pipe_is_named():
    done = subprocess.run(
        command("translate", "ct2", *TO_GERMAN), input=b"one\n\xff\n", capture_output=True, check=False
    )
    assert done.returncode == 2
    assert re.search(rb"^deltalm: .*, line 2.*UTF-8", done.stderr, re.MULTILINE)


# --- nothing to translate ---


@pytest.mark.parametrize("model", ["model", "ct2"])
def test_nothing_to_translate_gives_nothing(model):
    stdin = "".join(f"{line}\n" for line in ["one", *NOTHING, "one"]).encode()
    first, *empty, last = must("translate", model, *TO_GERMAN, stdin=stdin).removesuffix("\n").split("\n")
    assert empty == [""] * len(NOTHING)
    assert first and last
    rows = must("translate", model, *TO_GERMAN, "--json", stdin=stdin).removesuffix("\n").split("\n")
    found = [json.loads(row) for row in rows]
    assert [bool(result["hypotheses"][0]["ids"]) for result in found] == [True, *[False] * len(NOTHING), True]


def test_nothing_to_translate_in_a_test_set(world):
    lines = ["one", *(line for line in NOTHING if line.splitlines() == [line]), "one"]
    for side in ("source", "reference"):
        (world / side).write_text("".join(f"{line}\n" for line in lines))
    must("evaluate", "model", "--source", "source", "--reference", "reference", *TO_GERMAN, "--out", "scores")
    (output,) = (world / "scores").glob("*.hyp")
    outputs = output.read_text().removesuffix("\n").split("\n")
    assert [bool(text) for text in outputs] == [True, *[False] * (len(lines) - 2), True]


def test_whatever_shows_is_text(world):
    """Every printable character of two planes is text; none of Unicode's separators and controls is."""
    vocabulary = Vocabulary.load(world / "vocabulary")
    ids = vocabulary.encode("one")
    vocabulary.encode = lambda text: ids  # only the rule decides
    encode = encoder_for(vocabulary, "de")
    for character in map(chr, range(0x20000)):
        category = unicodedata.category(character)
        if category[0] in "ZC" and category != "Cs":
            assert encode(f"{character} {character}") == []
        elif character.isprintable() and category in ("Lu", "Ll", "Lt", "Nd", "Nl", "No", "Po", "Sc", "Sm", "Mc"):
            assert encode(character)


# --- cut outputs ---


def test_cut_outputs_are_counted_and_marked():
    outcome = deltalm("translate", "model", *TO_GERMAN, "--json", stdin=STDIN)
    hypotheses = [json.loads(line)["hypotheses"][0] for line in outcome.stdout.splitlines()]
    num_cut = sum(len(hypothesis["ids"]) == 6 for hypothesis in hypotheses)
    assert 0 < num_cut < len(LINES)
    assert [hypothesis["is_cut"] for hypothesis in hypotheses] == [
        len(hypothesis["ids"]) == 6 for hypothesis in hypotheses
    ]
    sentence = f"translate: {num_cut} of 4 outputs reached the maximum of 6 tokens and were cut; the model allows 39."
    assert sentence in outcome.stderr.splitlines()
    outcome = deltalm("translate", "model", *TO_GERMAN[:2], "--max-length", 99, "--min-length", 99, stdin=STDIN)
    assert "translate: 3 of 4 outputs reached the maximum of 39 tokens and were cut." in outcome.stderr.splitlines()


def test_evaluate_says_how_many_were_cut(world):
    (world / "long").write_text("one two three\nfour five\n")
    outcome = deltalm("evaluate", "ct2", "--source", "long", "--reference", "long", *TO_GERMAN[:2], "--max-length", 1)
    assert "translate de: 2 of 2 outputs reached the maximum of 1 tokens and were cut" in outcome.stderr


# --- lines stay lines ---


@pytest.fixture(scope="module")
def byte_model(tmp_path_factory):
    """Makes a model that says what is asked for: a piece of a vocabulary with byte fallback."""
    directory = tmp_path_factory.mktemp("bytes")
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([" ".join(WORDS)] * 20),
        model_prefix=str(directory / "spm"),
        vocab_size=310,
        byte_fallback=True,
        hard_vocab_limit=False,
        minloglevel=2,
        unk_id=0,
        bos_id=1,
        eos_id=2,
    )
    vocabulary = Vocabulary.from_spm(directory / "spm.model", num_sentinels=0, languages=["de"])
    config = DeltaLMConfig.preset("tiny", vocabulary_size=vocabulary.num_tokens, max_positions=40)
    torch.manual_seed(0)
    weights = {
        name: 2 * tensor if tensor.ndim == 2 else tensor for name, tensor in DeltaLM(config).state_dict().items()
    }
    save_model(directory / "any", config, weights, vocabulary, {})
    rows = must("translate", directory / "any", *TO_GERMAN, "--json", stdin=STDIN).splitlines()
    ((favourite, _),) = Counter(token for row in rows for token in json.loads(row)["hypotheses"][0]["ids"]).most_common(
        1
    )

    def make(piece):
        wanted = next(token for token in range(vocabulary.size) if vocabulary.token(token) == piece)
        weights["token_embedding.weight"][[favourite, wanted]] = weights["token_embedding.weight"][[wanted, favourite]]
        save_model(directory / piece, config, weights, vocabulary, {})
        weights["token_embedding.weight"][[favourite, wanted]] = weights["token_embedding.weight"][[wanted, favourite]]
        return directory / piece, wanted

    return make


@pytest.mark.parametrize("piece", ["<0x09>", "<0x0A>", "<0x0D>", "<0x0B>", "<0x00>"])
def test_lines_stay_lines_whatever_bytes_a_model_says(piece, byte_model):
    model, wanted = byte_model(piece)
    options = (*TO_GERMAN, "--beam", 2)
    rows = must("translate", model, *options, "--json", stdin=STDIN).removesuffix("\n").split("\n")
    found = [json.loads(row)["hypotheses"][0] for row in rows]
    assert len(found) == len(LINES)
    assert any(wanted in hypothesis["ids"] for hypothesis in found)
    plain = must("translate", model, *options, stdin=STDIN)
    assert len(plain.splitlines()) == plain.count("\n") == len(LINES)
    table = must("translate", model, *options, "--n-best", 2, stdin=STDIN)
    assert len(table.splitlines()) == 2 * (len(LINES) - 1) + 1  # the empty line has one output
    assert {row.count("\t") for row in table.splitlines()} == {2}


# --- repeated n-grams ---


@pytest.mark.parametrize("model", ["model", "ct2"])
@pytest.mark.parametrize("size", [1, 2])
def test_no_ngram_is_repeated(model, size):
    arguments = ("translate", model, "--target-lang", "de", "--max-length", 20, "--min-length", 20, "--json")

    def repeats(*options):
        found = [json.loads(line) for line in must(*arguments, *options, stdin=STDIN).splitlines()]
        outputs = [result["hypotheses"][0]["ids"] for result in found]
        ngrams = [[tuple(ids[i : i + size]) for i in range(len(ids) - size + 1)] for ids in outputs]
        return sum(len(of_output) - len(set(of_output)) for of_output in ngrams)

    assert repeats("--no-repeat-ngram-size", size) == 0
    assert repeats() > 0


def test_evaluate_offers_the_ngram_size(world):
    (world / "long").write_text("one two three\nfour five\n")
    files = ("--source", "long", "--reference", "long", "--target-lang", "de", "--max-length", 30)
    outputs = []
    for size in (0, 1):
        must("evaluate", "model", *files, "--no-repeat-ngram-size", size, "--out", f"ngram{size}")
        outputs.append((world / f"ngram{size}/de.hyp").read_text())
    assert outputs[0] != outputs[1]


# --- locales and closed streams ---


@pytest.mark.parametrize(
    "settings",
    [
        {"LC_ALL": "C"},
        {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
        {"PYTHONIOENCODING": "latin-1"},
        {"PYTHONIOENCODING": "ascii:strict"},
        {"LC_ALL": "de_DE.ISO-8859-1", "PYTHONUTF8": "0"},
    ],
    ids=str,
)
def test_output_is_utf8_whatever_the_locale(settings):
    done = run("translate", "ct2", *TO_GERMAN, "--json", **settings)
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["source"] for line in done.stdout.decode().splitlines()] == LINES
    done = run("translate", "ct2", "--target-lang", "größe", **settings)
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.decode().splitlines()[-1].startswith("deltalm: ")  # bash may warn before


def test_closed_streams_end_in_a_sentence():
    done = run("translate", "ct2", *TO_GERMAN, shell_redirection="<&-")
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.startswith(b"deltalm: standard input is closed")
    done = run("translate", "ct2", *TO_GERMAN, shell_redirection=">&-")
    assert done.returncode == 2
    assert done.stderr == b"deltalm: Standard output is closed: send it to a file, or to /dev/null.\n"
    done = run("translate", "ct2", "--target-lang", "xx", shell_redirection="2>&-")
    assert (done.returncode, done.stdout) == (2, b"")


def test_damaged_exports_are_named(world):
    (world / "damaged").mkdir()
    for path in (world / "ct2").iterdir():
        (world / "damaged" / path.name).write_bytes(path.read_bytes()[: 1000 if path.name == "model.bin" else None])
    outcome = deltalm("translate", "damaged", *TO_GERMAN, stdin=STDIN)
    assert (outcome.code, outcome.stdout) == (3, "")
    assert outcome.messages[0].startswith("deltalm: damaged cannot be opened by CTranslate2")
    Path("damaged/model.bin").unlink()
    assert deltalm("translate", "damaged", *TO_GERMAN, stdin=STDIN).code == 3


def test_documents_are_the_same_with_every_engine():
    page = b"<h1>One two</h1>\n<p>three <b>four</b> five. Six &amp; seven.<br>\n  eight</p>\n"
    arguments = "--document", "--format", "html", "--target-lang", "de", "--max-length", 30
    ours, theirs = (must("translate", model, *arguments, stdin=page) for model in ("model", "ct2"))
    assert ours == theirs and ours.count("<b>") == 1
