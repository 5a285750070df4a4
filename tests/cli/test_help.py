"""The help: every verb has one with an example that holds, and the first help comes without heavy imports."""

import json
import re
import shlex
import subprocess
import sys

import pytest
from command import deltalm
from typer.main import get_command

from deltalm_ds.cli import app

# typer brings pydantic with it
HEAVY = (
    *("torch", "deepspeed", "numpy", "pyarrow", "sentencepiece", "ctranslate2", "onnxruntime", "transformers"),
    *("sacrebleu", "babel", "rich", "yaml"),
)


def verbs(command, names=()):
    """(names, command) of every verb, those of groups included."""
    for name, verb in command.commands.items():
        if hasattr(verb, "commands"):
            yield from verbs(verb, (*names, name))
        else:
            yield (*names, name), verb


VERBS = dict(verbs(get_command(app)))


def test_all_verbs_are_there():
    assert {" ".join(names) for names in VERBS} >= {
        *("env", "init", "inspect", "average", "plan", "train", "report", "demo"),
        *("translate", "score", "evaluate", "export"),
        *("vocab train", "vocab import", "vocab inspect"),
        *("data build", "data inspect", "data verify", "data stats", "data convert", "data cldr"),
    }


@pytest.mark.parametrize("names", VERBS, ids=" ".join)
def test_help_has_an_example_that_parses(names):
    outcome = deltalm(*names, "--help")
    assert (outcome.code, outcome.stderr) == (0, "")
    assert f"Usage: deltalm {' '.join(names)}" in outcome.stdout
    assert "Example:" in outcome.stdout
    example = re.search(r"Example: (.*)", VERBS[names].help)[1]
    words = shlex.split(example.split("|")[-1])
    assert words[: 1 + len(names)] == ["deltalm", *names]
    VERBS[names].make_context("deltalm", words[1 + len(names) :])  # raises for an option or argument that is wrong


@pytest.mark.parametrize("group", [(), ("vocab",), ("data",)], ids=str)
def test_help_of_groups(group):
    outcome = deltalm(*group, "--help")
    assert (outcome.code, outcome.stderr) == (0, "")
    for names in VERBS:
        if names[: len(group)] == group:
            assert names[len(group)] in outcome.stdout


def test_help_imports_nothing_heavy():
    code = """
import json, sys
from deltalm_ds.cli import main
sys.argv = ["deltalm", sys.argv[1], "--help"] if sys.argv[1:] else ["deltalm", "--help"]
try:
    main()
finally:
    print(json.dumps(sorted(sys.modules)))
"""
    for arguments in ([], ["translate"], ["train"]):
        done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
        loaded = set(json.loads(done.stdout.splitlines()[-1]))
        assert "typer" in loaded
        assert not loaded & set(HEAVY)
