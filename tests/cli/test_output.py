"""What commands write where: results alone on stdout, in the order and number promised; the rest on stderr."""

import contextlib
import io
import json
import math
import os
import pty
import re
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
from command import NUM_LINES, deltalm, make_world, must
from hypothesis import given
from hypothesis import strategies as st

from deltalm_ds.cli.output import print_json, print_table, print_values
from deltalm_ds.data_tools.cldr import DEMO_PHRASES
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


def test_lengths_are_drawn_into_a_page_that_is_called_so(world):
    outcome = deltalm("data", "stats", "shards", "--plot", "lengths.svg")
    assert (outcome.code, outcome.stdout) == (2, "")
    assert outcome.messages == ["deltalm: --plot lengths.svg: the chart is an HTML page; name it lengths.html."]
    must("data", "stats", "shards", "--plot", "lengths.html")
    assert (world / "lengths.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert not (world / "lengths.svg").exists()


def test_json_of_an_evaluated_model(world):
    for language in ("en", "de"):
        (world / f"dev.en-de.{language}").write_text("one two\nthree\n")
    outcome = deltalm("evaluate", "model", "--data", ".", "--split", "dev", "--beam", 1, "--max-length", 4, "--json")
    assert [score["direction"] for score in json.loads(outcome.stdout)["directions"]] == ["de-en", "en-de"]
    assert "translate en-de: 2/2" in outcome.stderr


def test_a_plan_says_the_same_to_people_and_to_scripts(world):
    arguments = "plan", "recipe.yaml", "--ranks", 2
    lines, result = must(*arguments).splitlines(), json.loads(must(*arguments, "--json"))
    assert lines[0] == "world: 2 rank(s), fp32_zero1 (fp32, ZeRO stage 1)"
    assert f"parameters: {result['num_parameters']:,} " in lines[2]
    rows = {line.split("  ")[0]: line.split() for line in lines if line}
    weights = result["memory_bytes_per_rank"]["weights"]
    assert rows["weights"][1:] == [f"{weights / 2**20:.1f}", "MiB"]
    assert result["memory_bytes_per_rank"]["gathered_weights"] == 0 and "gathered weights" not in rows
    (first, *_), (component, *_) = result["steps"], result["components"]
    assert rows["0"][1:3] == [f"{first['learning_rate']:.3g}", f"{first['sampling']['temperature']:.2f}"]
    assert rows["0"][3:6] == [f"{first[key]:,}" for key in ("sequences", "source_tokens", "target_tokens")]
    shares = [f"{share:.4f}" for share in component["probability"].values()]
    counts = [f"{component['sequences']:,.0f}", f"{component['passes']:,.2f}"]
    assert rows[component["component"]][1:-1] == [f"{component['rows']:,}", *shares, *counts]


def test_the_demo_shows_scores_and_translations(world):
    summary = {
        "bleu": {"en-fr": 94.84, "fr-en": 96.0, "en-de": 9.5, "de-en": 100.0},
        "average_bleu": 75.08,
        "translations": {"fr": [f"phrase {number}" for number in range(9)], "de": ["Satz"] * 9},
        "seconds": {"total": 266.4},
    }
    with mock.patch("deltalm_ds.demo.run_demo", return_value=summary) as run:
        lines = must("demo", "--out", "there", "--ranks", 3).splitlines()
    assert run.call_args.args == (Path("there"), 3)
    assert [line.split() for line in lines[1:4]] == [["en→xx", "xx→en"], ["fr", "94.8", "96.0"], ["de", "9.5", "100.0"]]
    assert lines[4] == "average of the 4 directions: 75.1"
    assert [line for line in lines if line.startswith("  fr  ")] == [
        f"  fr  phrase {number}" for number in range(len(DEMO_PHRASES))
    ]
    assert "Done in 266 s. In there:" in lines


CELLS = st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "Zs"]), max_size=300)


@given(st.lists(st.tuples(CELLS, st.integers() | st.none()), max_size=5))
def test_a_table_in_a_pipe_is_one_whole_line_a_row(rows):
    with contextlib.redirect_stdout(io.StringIO()) as stdout:
        print_table(("first", "second"), rows, align="lr", title="[bold]title")
    title, header, *lines = stdout.getvalue().removesuffix("\n").split("\n")
    assert (title, header.split()) == ("[bold]title", ["first", "second"])
    assert len(lines) == len(rows)
    for line, (text, number) in zip(lines, rows, strict=True):
        assert line.startswith(text.rstrip()) and line == line.rstrip()
        assert line.removeprefix(text.rstrip()).strip() == ("" if number is None else f"{number:,}")


def test_columns_of_a_table_stand_under_their_names(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "20")
    print_table(
        ("name", "count", "such as"), [("a long name", 12345, "x"), ("日本", 7, "[b]y[/b] :smile:")], align="lrl"
    )
    assert capsys.readouterr().out.splitlines() == [
        "name          count  such as",
        "a long name  12,345  x",
        "日本              7  [b]y[/b] :smile:",  # characters of two columns' width
    ]


def test_a_table_fits_into_a_terminal(world):
    code = "from deltalm_ds.cli.output import print_table; print_table(('a', 'b'), [('word ' * 30, 5)], align='lr')"
    terminal, stdout = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "60", "NO_COLOR": "1"}
    subprocess.run([sys.executable, "-c", code], stdout=stdout, env=environment, check=True)
    os.close(stdout)
    written = b""
    with contextlib.suppress(OSError):  # the end of a terminal is an error
        while part := os.read(terminal, 1 << 16):
            written += part
    lines = re.sub(r"\x1b\[[0-9;?]*m", "", written.decode()).splitlines()
    os.close(terminal)
    assert len(lines) > 3 and max(map(len, lines)) <= 60
    assert " ".join(lines).split().count("word") == 30


def test_json_has_no_numbers_of_its_own(capsys):
    """RFC 8259 has neither NaN nor infinities; nested ones are found too."""
    print_json({"a": math.nan, "b": [1, math.inf, {"c": (-math.inf, 2.5, True)}], "d": None, "e": "NaN"})

    def refuse(constant):
        raise AssertionError(constant)

    found = json.loads(capsys.readouterr().out, parse_constant=refuse)
    assert found == {"a": None, "b": [1, None, {"c": [None, 2.5, True]}], "d": None, "e": "NaN"}


@given(st.dictionaries(st.text(), st.text()))
def test_json_is_one_line_of_utf8_and_keeps_all_text(value):
    with contextlib.redirect_stdout(io.StringIO()) as stdout:
        print_json(value)
    line, end = stdout.getvalue().split("\n")
    assert json.loads(line.encode("utf-8")) == value and end == ""


def test_file_names_that_are_not_utf8_are_in_json(capsys):
    name = os.fsdecode(b"\xff.txt")
    print_json({"path": name, "language": "日本語"})
    line = capsys.readouterr().out
    assert json.loads(line.encode("utf-8")) == {"path": name, "language": "日本語"} and "日本語" in line


def test_nested_values_stand_below_their_names(capsys):
    print_values({"a": 1, "b": {"c": "x", "d": {"e": None}}, "f": [{"g": 1, "h": 2}], "i": ["y"], "j": []})
    assert capsys.readouterr().out.splitlines() == [
        *("a: 1", "b:", "  c: x", "  d:", "    e: None", "f:", "  - g 1, h 2", "i: ['y']", "j: []")
    ]


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
@pytest.mark.parametrize(
    "command",
    [
        ("vocab", "inspect", "vocabulary", "--json"),  # written when the command is done
        ("translate", "model", "--target-lang", "de", "--input", "text.en", "--json"),  # while it works
    ],
)
def test_output_to_a_full_disk_is_a_failure(world, command):
    with open("/dev/full", "w") as full:
        done = in_a_process(world, "deltalm", *command, stdout=full)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == "deltalm: standard output: No space left on device."
