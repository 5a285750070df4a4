"""What commands write where: results alone on stdout, in the order and number promised; the rest on stderr."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from command import NUM_LINES, deltalm, make_world, must

from deltalm_ds.vocabulary import Vocabulary

LINES = ["one two three", "", "four five six seven eight", "  ", "nine ten", "one"]
STDIN = "".join(f"{line}\n" for line in LINES).encode()
SHORT = "--target-lang", "de", "--max-length", 6


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    directory = tmp_path_factory.mktemp("world")
    make_world(directory)
    return directory


@pytest.fixture(autouse=True)
def _inside(world, monkeypatch):
    monkeypatch.chdir(world)


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        (("env",), "packages"),
        (("inspect", "model"), "parameters"),
        (("vocab", "inspect", "vocabulary"), "blocks"),
        (("evaluate", "--hypotheses", "text.en", "--reference", "text.de"), "average_bleu"),
        (("plan", "recipe.yaml"), "num_parameters"),
        (("data", "inspect", "shards"), "corpora"),
        (("data", "verify", "shards"), "faults"),
    ],
    ids=lambda value: " ".join(value[:2]) if isinstance(value, tuple) else "",
)
def test_json_is_all_there_is_on_stdout(arguments, key):
    assert key in json.loads(must(*arguments, "--json"))
    assert must(*arguments)  # and people get something too


def test_json_of_statistics():
    sides = json.loads(must("data", "stats", "shards", "--json"))
    assert [(side["side"], side["rows"]) for side in sides] == [("source", NUM_LINES), ("target", NUM_LINES)]


def test_json_of_an_evaluated_model(world):
    for language in ("en", "de"):
        (world / f"dev.en-de.{language}").write_text("one two\nthree\n")
    outcome = deltalm("evaluate", "model", "--data", ".", "--split", "dev", "--beam", 1, "--max-length", 4, "--json")
    assert [score["direction"] for score in json.loads(outcome.stdout)["directions"]] == ["de-en", "en-de"]
    assert "translate en-de: 2/2" in outcome.stderr


def test_a_refusal_with_json_leaves_stdout_empty():
    for arguments in (("inspect", "nowhere"), ("plan", "nowhere"), ("data", "inspect", "nowhere")):
        outcome = deltalm(*arguments, "--json")
        assert (outcome.code, outcome.stdout) == (2, "")


@pytest.mark.parametrize("ending", [b"\n", b""], ids=["", "no end of the last line"])
def test_translations_keep_number_and_order_of_lines(world, ending):
    stdin = STDIN.removesuffix(b"\n") + ending
    outcome = deltalm("translate", "model", *SHORT, stdin=stdin)
    *outputs, after = outcome.stdout.split("\n")
    assert (outcome.code, len(outputs), after) == (0, len(LINES), "")
    assert "translate: 6/6" in outcome.stderr
    for line, output in zip(LINES, outputs, strict=True):
        alone = must("translate", "model", *SHORT, stdin=f"{line}\n".encode())
        assert output == alone.removesuffix("\n")
    assert outputs[1] == outputs[3] == "" and len(set(outputs)) > 3  # the model tells the lines apart
    (world / "input").write_bytes(stdin)
    assert must("translate", "model", *SHORT, "--input", "input") == outcome.stdout


def test_no_input_gives_no_output():
    assert must("translate", "model", *SHORT, stdin=b"") == ""


def test_n_best_is_numbered_by_line():
    rows = [row.split("\t") for row in must("translate", "model", *SHORT, "--n-best", 3, stdin=STDIN).splitlines()]
    assert [int(row[0]) for row in rows] == [0, 0, 0, 1, 2, 2, 2, 3, 4, 4, 4, 5, 5, 5]
    best = [rows[place][2] for place in (0, 3, 4, 7, 8, 11)]
    assert best == must("translate", "model", *SHORT, stdin=STDIN).splitlines()


def test_json_lines_say_the_same_as_text():
    results = [json.loads(line) for line in must("translate", "model", *SHORT, "--json", stdin=STDIN).splitlines()]
    assert [result["source"] for result in results] == LINES
    texts = [result["hypotheses"][0]["text"] for result in results]
    assert texts == must("translate", "model", *SHORT, stdin=STDIN).splitlines()
    for result in results:
        (hypothesis,) = result["hypotheses"]
        scores = hypothesis["token_scores"]
        assert len(scores) == (len(hypothesis["ids"]) + 1 if result["source"].strip() else 0)
        assert hypothesis["score"] == pytest.approx(sum(scores) / max(len(scores), 1), abs=1e-6)


def test_ids_in_and_out_are_those_of_the_text(world):
    vocabulary = Vocabulary.load(world / "vocabulary")
    tag = vocabulary.language_id("de")
    as_ids = [[tag, *vocabulary.encode(line).tolist()] if line.strip() else [] for line in LINES]
    stdin = "".join(" ".join(map(str, ids)) + "\n" for ids in as_ids).encode()
    outputs = must("translate", "model", "--ids", "--max-length", 6, stdin=stdin).removesuffix("\n").split("\n")
    assert [bool(output) for output in outputs] == [bool(line.strip()) for line in LINES]
    texts = [vocabulary.decode([int(token) for token in output.split()]) for output in outputs]
    assert texts == must("translate", "model", *SHORT, stdin=STDIN).removesuffix("\n").split("\n")


def in_a_process(world, *command, **streams):
    """A command that writes through a buffer, as for any user, whatever this process's environment says."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    return subprocess.run(command, cwd=world, env=environment, stderr=subprocess.PIPE, text=True, **streams)


def test_a_pipe_closed_in_the_middle_ends_quietly(world):
    (world / "many").write_text("\n" * 10_000)  # far more output than a pipe holds
    translate = "deltalm translate model --target-lang de --json --input many"
    done = in_a_process(
        world, "bash", "-c", f"{translate} | head -1 | wc -l; echo ${{PIPESTATUS[0]}}", stdout=subprocess.PIPE
    )
    assert done.stdout.split() == ["1", "1"]
    assert "Traceback" not in done.stderr and "BrokenPipe" not in done.stderr


def test_a_pipe_that_nobody_reads_ends_quietly(world):
    """Little output stays in the buffer until the end: only the last flush notices."""
    read, write = os.pipe()
    os.close(read)
    done = in_a_process(world, "deltalm", "vocab", "inspect", "vocabulary", "--json", stdout=write)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="this machine has no /dev/full")
def test_output_to_a_full_disk_is_a_failure(world):
    with open("/dev/full", "w") as full:
        done = in_a_process(world, "deltalm", "vocab", "inspect", "vocabulary", "--json", stdout=full)
    assert (done.returncode, done.stderr) == (2, "deltalm: standard output: No space left on device.\n")
