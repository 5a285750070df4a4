"""What is refused before any training starts, and that nothing is written then."""

import fcntl
import hashlib
import os
import re
import shutil

import pytest
import torch
import yaml
from typer.testing import CliRunner

from deltalm_ds.checkpoints.directory import save_model
from deltalm_ds.cli import app
from deltalm_ds.errors import DataError, InputError
from deltalm_ds.files import read_json, write_json
from deltalm_ds.model.config import DeltaLMConfig
from deltalm_ds.model.deltalm import DeltaLM
from deltalm_ds.recipe.loading import load_recipe, save_recipe
from deltalm_ds.recipe.schema import ModelSection
from deltalm_ds.runs.checkpoints import checkpoint_name
from deltalm_ds.runs.events import read_events
from deltalm_ds.training.initial_model import starting_model
from deltalm_ds.training.inputs import open_inputs
from deltalm_ds.training.plan import make_plan
from deltalm_ds.training.prepare import check_prepared, prepare_run
from deltalm_ds.training.train import main
from deltalm_ds.vocabulary import Vocabulary


def test_the_run_directory_has_the_resolved_recipe(make_recipe, tmp_path):
    recipe = make_recipe()
    prepare_run(recipe, tmp_path / "run")
    assert load_recipe(tmp_path / "run" / "recipe.yaml") == recipe


def test_metrics_of_the_validation_are_opened_before_training(make_recipe, tmp_path):
    for language in ("de", "en"):
        (tmp_path / f"dev.en-de.{language}").touch()
    recipe = make_recipe(validation={"text": str(tmp_path)})
    with pytest.raises(InputError, match="de-en: there are no sentences to score"):
        make_plan(recipe, 1)
    with pytest.raises(InputError, match="de-en: there are no sentences to score"):
        prepare_run(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_login_host_prepares_what_it_could_not_train(make_recipe, tmp_path):
    recipe = make_recipe(deepspeed="fp16_zero1")
    with pytest.raises(InputError, match="fp16 needs a GPU"):
        prepare_run(recipe, tmp_path / "run")
    prepare_run(recipe, tmp_path / "run", trains_here=False)
    prepare_run(recipe, tmp_path / "run", trains_here=False)  # also where it goes on
    with pytest.raises(InputError, match="fp16 needs a GPU"):
        prepare_run(recipe, tmp_path / "run")


def test_a_run_is_continued_with_its_own_recipe_alone(make_recipe, tmp_path):
    prepare_run(make_recipe(), tmp_path / "run")
    prepare_run(make_recipe(deepspeed="bf16_zero3"), tmp_path / "run")  # the DeepSpeed configuration may change
    assert load_recipe(tmp_path / "run" / "recipe.yaml").deepspeed == "bf16_zero3"
    with pytest.raises(InputError, match=r"another recipe \(batch.tokens_per_step was 300, is 301; seed was 1, is 2\)"):
        prepare_run(make_recipe(seed=2, batch={"tokens_per_step": 301}), tmp_path / "run")
    assert load_recipe(tmp_path / "run" / "recipe.yaml").seed == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"deepspeed": "fp32_zero0"}, "no DeepSpeed configuration 'fp32_zero0'"),
        ({"vocabulary": "nowhere"}, r"nowhere/vocabulary\.json does not exist"),
        ({"data": {"train": [{"path": "nowhere"}]}}, "nowhere is not a shard data set"),
        ({"validation": {"shards": "nowhere"}}, "nowhere is not a shard data set"),
        ({"initial_model": "nowhere", "model": None}, "nowhere"),
    ],
)
def test_what_the_recipe_names_must_fit(changes, message, make_recipe, tmp_path):
    with pytest.raises(InputError, match=message):
        prepare_run(make_recipe(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_shards_of_another_vocabulary(training_data, make_recipe, tmp_path):
    other = Vocabulary.from_dict(training_data / "dict.txt", num_sentinels=11, languages=("de", "en"))
    other.save(tmp_path / "vocab")
    with pytest.raises(DataError, match="was built with the vocabulary"):
        prepare_run(make_recipe(vocabulary=str(tmp_path / "vocab")), tmp_path / "run")


def test_a_shard_cut_short(training_data, make_recipe, tmp_path):
    shards = tmp_path / "shards"
    shards.mkdir()
    for file in (training_data / "train").iterdir():
        (shards / file.name).write_bytes(file.read_bytes())
    shard = next(shards.glob("*.arrow"))
    os.truncate(shard, shard.stat().st_size - 8)
    with pytest.raises(DataError, match=shard.name):
        prepare_run(make_recipe(data={"train": [{"path": str(shards)}]}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.fixture
def initial_model(training_data, tmp_path):
    vocabulary = Vocabulary.load(training_data / "vocab")
    config = DeltaLMConfig.preset("tiny", vocabulary_size=vocabulary.num_tokens, max_positions=32)
    model = DeltaLM(config)
    save_model(tmp_path / "initial", config, model.state_dict(), vocabulary, {})
    return tmp_path / "initial", model


def test_an_initial_model_with_changed_dropout(initial_model, make_recipe):
    directory, model = initial_model
    recipe = make_recipe(initial_model=str(directory), model=None)
    assert open_inputs(recipe).model_config == model.config
    recipe = recipe.model_copy(update={"model": ModelSection(dropout=0.3)})
    config = open_inputs(recipe).model_config
    assert config == model.config.model_copy(update={"dropout": 0.3})
    found = starting_model(directory, config)
    assert found.config == config
    assert all((a == b).all() for a, b in zip(found.parameters(), model.parameters(), strict=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"max_source_tokens": 33}}, "at most the model's 32 positions"),
        ({"model": ModelSection(num_heads=5)}, "num_heads=5 does not divide hidden_size=128"),
    ],
)
def test_an_initial_model_that_does_not_fit(changes, message, initial_model, make_recipe):
    directory, _ = initial_model
    with pytest.raises(InputError, match=message):
        open_inputs(
            make_recipe(initial_model=str(directory), batch={"micro_batch_tokens": 500}, **({"model": None} | changes))
        )


def test_an_initial_model_of_another_vocabulary(initial_model, training_data, make_recipe):
    directory, _ = initial_model
    Vocabulary.from_dict(training_data / "dict.txt", num_sentinels=11, languages=("de", "en")).save(directory)
    with pytest.raises(DataError, match="has another vocabulary than"):
        open_inputs(make_recipe(initial_model=str(directory), model=None))


def test_validation_knows_objectives_apart_by_their_options(training_data, make_recipe):
    train, dev = str(training_data / "train"), str(training_data / "dev")
    kind = {"kind": "span_corruption"}
    groups = [{"path": train, "objective": {**kind, "noise_density": density}} for density in (0.15, 0.3, 0.3)]
    inputs = open_inputs(make_recipe(data={"train": groups}, validation={"shards": dev}))
    names = [
        f"span_corruption{options}:en-de:{side}" for options in ("", "(noise_density=0.3)") for side in ("en", "de")
    ]
    assert inputs.validation is not None and [component.name for component in inputs.validation.components] == names


# --- starts of a run that exists ---


def checkpoint_of(run, inputs, step=10):
    """As much of a checkpoint as a later start looks at: a model, and the identity of what it was trained on."""
    directory = run / "checkpoints" / checkpoint_name(step)
    torch.manual_seed(0)
    save_model(directory, inputs.model_config, DeltaLM(inputs.model_config).state_dict(), inputs.vocabulary, {})
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
        for path in directory.iterdir()
    }
    write_json(directory / "state.json", {"step": step, "updates": step, "inputs": inputs.identity, "files": files})
    return directory


def test_what_may_change_between_starts_is_taken_and_recorded(make_recipe, training_data, tmp_path, monkeypatch):
    run = tmp_path / "run"
    prepare_run(make_recipe(), run)
    monkeypatch.chdir(training_data)
    train = {"train": [{"path": "train"}]}  # the same data by another path
    recipe = make_recipe(data=train, batch={"micro_batch_tokens": 300}, training={"max_steps": 30, "log_every": 5})
    prepare_run(recipe, run)
    (event,) = read_events(run)
    assert event["changes"] == {
        "batch.micro_batch_tokens": [400, 300],
        "training.log_every": [1, 5],
        "training.max_steps": [20, 30],
    }
    assert load_recipe(run / "recipe.yaml").data.train[0].path == training_data / "train"


def test_the_optimization_may_change_between_starts(make_recipe, tmp_path, capsys):
    """What the moments mean stays; another schedule, without what its kind does not have, is one of its values."""
    run = tmp_path / "run"
    prepare_run(make_recipe(), run)
    optimizer = {"weight_decay": 0.02, "betas": (0.9, 0.99), "eps": 1e-6, "layer_decay": 0.9, "no_decay": ["*.bias"]}
    schedule = {"kind": "cosine", "peak_lr": 1e-3}
    prepare_run(make_recipe(schedule=schedule, optimizer=optimizer, training={"clip_norm": 1.0}), run)
    (event,) = read_events(run)
    assert event["changes"]["schedule.kind"] == ["inverse_sqrt", "cosine"]
    assert event["changes"]["schedule.peak_lr"] == [3e-3, 1e-3]
    keys = ("betas.1", "eps", "weight_decay", "layer_decay", "no_decay.0")
    assert {"training.clip_norm", *(f"optimizer.{key}" for key in keys)} < set(event["changes"])
    told = capsys.readouterr().err
    assert f"{run}: schedule.peak_lr was 0.003, is 0.001\n" in told
    assert told.count("\n") == len(event["changes"])
    assert load_recipe(run / "recipe.yaml").schedule.peak_lr == 1e-3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"num_heads": 2}}, "model.num_heads was None, is 2"),
        ({"training": {"label_smoothing": 0.2}}, "training.label_smoothing was 0.1, is 0.2"),
        ({"data": {"max_target_tokens": 16}}, "data.max_target_tokens was 32, is 16"),
        ({"sampling": {"temperature_end": 2.0}}, "sampling.temperature_end was 5.0, is 2.0"),
        ({"optimizer": {"freeze": ["encoder.*"]}}, "optimizer.freeze.0 was None, is encoder.*"),
    ],
)
def test_what_would_be_another_experiment_is_refused_with_both_values(changes, message, make_recipe, tmp_path):
    prepare_run(make_recipe(), tmp_path / "run")
    with pytest.raises(InputError, match=re.escape(message)):
        prepare_run(make_recipe(**changes), tmp_path / "run")


def test_a_recipe_of_an_older_version_is_the_same_recipe(make_recipe, tmp_path):
    """One that lacks a key which has a default since."""
    prepare_run(make_recipe(), tmp_path / "run")
    path = tmp_path / "run" / "recipe.yaml"
    content = yaml.safe_load(path.read_text())
    del content["training"]["max_skipped_updates"], content["optimizer"]["implementation"]
    path.write_text(yaml.safe_dump(content))
    prepare_run(make_recipe(), tmp_path / "run")
    assert read_events(tmp_path / "run") == []


def test_other_data_under_the_same_path_is_refused_and_can_be_accepted(make_recipe, training_data, tmp_path):
    shutil.copytree(training_data / "train", tmp_path / "shards")
    recipe = make_recipe(data={"train": [{"path": str(tmp_path / "shards")}]})
    run = tmp_path / "run"
    checkpoint_of(run, prepare_run(recipe, run))
    shutil.rmtree(tmp_path / "shards")
    shutil.copytree(training_data / "dev", tmp_path / "shards")
    before = (run / "recipe.yaml").read_bytes(), (run / "inputs.json").read_bytes()
    with pytest.raises(DataError, match=r"other data.*\n  data\.train\.0\.path: 400 rows, .* now 30 rows, "):
        prepare_run(recipe, run)
    assert ((run / "recipe.yaml").read_bytes(), (run / "inputs.json").read_bytes()) == before
    inputs = prepare_run(recipe, run, accept_changed_data=True)
    assert read_json(run / "inputs.json") == inputs.identity
    assert [event["kind"] for event in read_events(run)] == ["changed"]


def test_a_rank_finds_what_the_run_was_prepared_with(make_recipe, training_data, tmp_path):
    inputs = prepare_run(make_recipe(), tmp_path / "run")
    check_prepared(inputs, tmp_path / "run")
    others = open_inputs(make_recipe(data={"train": [{"path": str(training_data / "dev")}]}))
    with pytest.raises(DataError, match=r"data\.train\.0\.path changed since"):
        check_prepared(others, tmp_path / "run")


def test_another_vocabulary_under_the_same_path_is_refused(make_recipe, training_data, tmp_path):
    shutil.copytree(training_data, tmp_path / "data")
    paths = {"train": [{"path": str(tmp_path / "data" / "train")}]}
    settings = {"vocabulary": str(tmp_path / "data" / "vocab"), "data": paths, "validation": None}
    run = tmp_path / "run"
    checkpoint_of(run, prepare_run(make_recipe(**settings), run))
    other = Vocabulary.from_dict(training_data / "dict.txt", num_sentinels=10, languages=("en", "de"))
    other.save(tmp_path / "data" / "vocab")
    with pytest.raises(DataError, match="vocabulary"):
        prepare_run(make_recipe(**settings), run)


def test_the_initial_model_is_not_needed_any_more(initial_model, make_recipe, tmp_path):
    directory, _ = initial_model
    recipe, run = make_recipe(initial_model=str(directory), model=None), tmp_path / "run"
    checkpoint = checkpoint_of(run, prepare_run(recipe, run))
    shutil.rmtree(directory)
    assert prepare_run(recipe, run).start == checkpoint


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("model.safetensors", b"{"),
        ("state.json", b"{"),
        ("state.json", b"[]"),
        ("config.json", b""),
        ("config.json", None),
    ],
)
def test_a_start_goes_on_from_the_newest_whole_checkpoint(file, content, make_recipe, tmp_path):
    recipe, run = make_recipe(), tmp_path / "run"
    inputs = prepare_run(recipe, run)
    older, newer = checkpoint_of(run, inputs, 10), checkpoint_of(run, inputs, 20)
    assert prepare_run(recipe, run).start == newer
    (newer / file).unlink()
    if content is not None:
        (newer / file).write_bytes(content)
    assert prepare_run(recipe, run).start == older
    (older / "model.safetensors").unlink()
    with pytest.raises(DataError, match="step_00000020 is damaged"):
        prepare_run(recipe, run)


@pytest.mark.parametrize("name", ["step_00000070", "step_0000000070", "step_00000020_good", "step_00000020.bak"])
def test_a_copy_of_a_checkpoint_under_another_name_is_none(name, make_recipe, tmp_path):
    recipe, run = make_recipe(), tmp_path / "run"
    inputs = prepare_run(recipe, run)
    newest = checkpoint_of(run, inputs, 20)
    shutil.copytree(newest, newest.with_name(name))
    assert prepare_run(recipe, run).start == newest


def test_an_initial_model_with_nan_is_refused(initial_model, make_recipe, tmp_path):
    directory, model = initial_model
    weights = model.state_dict()
    weights["decoder.blocks.0.ffn_1.output.bias"][3] = float("nan")
    shutil.rmtree(directory)
    save_model(directory, model.config, weights, Vocabulary.load(make_recipe().vocabulary), {})
    with pytest.raises(DataError, match=r"NaN or infinite numbers in decoder\.blocks\.0\.ffn_1\.output\.bias"):
        prepare_run(make_recipe(initial_model=str(directory), model=None), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_second_start_changes_nothing(make_recipe, tmp_path):
    run = tmp_path / "run"
    prepare_run(make_recipe(), run)
    before = (run / "recipe.yaml").read_bytes()
    with open(run / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(InputError, match=f"Another process trains in {run}"):
            prepare_run(make_recipe(training={"log_every": 7}), run)
        assert (run / "recipe.yaml").read_bytes() == before and read_events(run) == []


@pytest.mark.parametrize("arguments", [[], ["run", "training.max_steps=3"], ["--deepspeed", "run"]])
def test_a_rank_takes_nothing_but_its_run(arguments, capsys):
    assert main(arguments) == 2
    assert "a rank takes a run directory and nothing else" in capsys.readouterr().err


def test_prepare_alone_starts_nothing(make_recipe, tmp_path):
    """Ranks are then started by srun or mpirun."""
    path, run = tmp_path / "recipe.yaml", tmp_path / "run"
    with open(path, "w", encoding="utf-8") as file:
        save_recipe(make_recipe(), file)
    result = CliRunner().invoke(app, ["train", str(path), "--out", str(run), "--prepare"])
    assert result.exit_code == 0, result.output
    assert {"recipe.yaml", "inputs.json"} <= {one.name for one in run.iterdir()} and read_events(run) == []
