"""`deltalm average`: which checkpoints the options choose."""

import json
import shutil

import pytest
import torch
from command import deltalm, make_world, must
from safetensors.torch import load_file, save_file

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


def test_the_running_average_is_of_the_newest_checkpoint_and_of_what_is_trained(world, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(world / "run", run)
    newest = run / "checkpoints" / "step_00000003"
    weights = load_file(newest / "model.safetensors")
    name = min(weights)
    save_file({name: weights[name] + 1}, newest / "average-00001-of-00001.safetensors")
    must("average", run, "--ema", "--out", tmp_path / "out")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert found.keys() == weights.keys()
    assert all(torch.equal(found[key], weights[key] + (key == name)) for key in weights)


def test_named_models(world, tmp_path):
    models = world / "model", world / "run" / "checkpoints" / "step_00000001"
    assert must("average", *models, "--out", tmp_path / "out") == f"{tmp_path / 'out'}\n"
    assert "averaged:\n" in must("inspect", tmp_path / "out")


@pytest.mark.parametrize(
    ("models", "options", "message"),
    [
        (("run",), ("--ema",), "step_00000003 has no running average: its run keeps none"),
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
