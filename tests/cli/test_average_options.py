"""`deltalm average`: which checkpoints the options choose."""

import json
import shutil

import pytest
from command import deltalm, make_world, must

from deltalm_ds.files import write_json


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A run whose three checkpoints differ in their validation alone."""
    directory = tmp_path_factory.mktemp("world")
    make_world(directory)
    for step, (loss, bleu) in enumerate([(3.0, 9.0), (1.0, 7.0), (2.0, 8.0)], start=1):
        checkpoint = directory / "run" / "checkpoints" / f"step_{step:08d}"
        shutil.copytree(directory / "model", checkpoint)
        state = {"step": step, "updates": step, "validation": {"loss": loss, "bleu": bleu, "ter": 100 - bleu}}
        write_json(checkpoint / "state.json", state)
    return directory


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        (("--last", 2), [2, 3]),
        (("--best", 2), [2, 3]),
        (("--best", 2, "--metric", "bleu"), [1, 3]),
        (("--best", 2, "--metric", "ter"), [1, 3]),
    ],
)
def test_choice(options, steps, world, tmp_path):
    printed = json.loads(must("average", world / "run", *options, "--out", tmp_path / "out", "--json"))
    checkpoints = world / "run" / "checkpoints"
    assert printed["out"] == str(tmp_path / "out")
    assert printed["averaged"] == [str(checkpoints / f"step_{step:08d}") for step in steps]
    provenance = json.loads(must("inspect", tmp_path / "out", "--json"))["provenance"]
    assert [entry["step"] for entry in provenance["averaged"]] == steps


def test_named_models(world, tmp_path):
    models = world / "model", world / "run" / "checkpoints" / "step_00000001"
    assert must("average", *models, "--out", tmp_path / "out") == f"{tmp_path / 'out'}\n"
    assert "averaged:\n" in must("inspect", tmp_path / "out")


@pytest.mark.parametrize(
    ("models", "options", "message"),
    [
        (("run",), (), "has 3 checkpoints, not 5: give --last 3"),
        (("run",), ("--best", 1, "--metric", "chrf"), "0 checkpoints with a validation chrf"),
        (("run",), ("--best", 1, "--metric", "blue"), "no metric 'blue', the nearest is 'bleu'"),
        (("run",), ("--last", 1, "--best", 1), "either --last or --best"),
        (("run", "model"), ("--last", 1), "several models are all averaged: leave out --last and --best"),
        (("model", "run"), (), "config.json does not exist"),
    ],
)
def test_what_is_refused(models, options, message, world, tmp_path):
    outcome = deltalm("average", *(world / model for model in models), *options, "--out", tmp_path / "out")
    assert outcome.code == 2
    assert message in outcome.stderr
    assert not (tmp_path / "out").exists()
