"""What is refused before any training starts, and that nothing is written then."""

import os

import pytest

from deltalm_ds.checkpoints.directory import save_model
from deltalm_ds.errors import DataError, InputError
from deltalm_ds.model.config import DeltaLMConfig
from deltalm_ds.model.deltalm import DeltaLM
from deltalm_ds.recipe.loading import load_recipe
from deltalm_ds.recipe.schema import ModelSection
from deltalm_ds.training.inputs import fresh_or_initial_model, open_inputs
from deltalm_ds.training.prepare import prepare_run
from deltalm_ds.vocabulary import Vocabulary


def test_the_run_directory_has_the_resolved_recipe(make_recipe, tmp_path):
    recipe = make_recipe()
    prepare_run(recipe, tmp_path / "run")
    assert load_recipe(tmp_path / "run" / "recipe.yaml") == recipe


def test_a_run_is_continued_with_its_own_recipe_alone(make_recipe, tmp_path):
    prepare_run(make_recipe(), tmp_path / "run")
    prepare_run(make_recipe(deepspeed="bf16_zero3"), tmp_path / "run")  # the DeepSpeed configuration may change
    assert load_recipe(tmp_path / "run" / "recipe.yaml").deepspeed == "bf16_zero3"
    with pytest.raises(InputError, match=r"another recipe \(sections batch, seed differ\)"):
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
    found = fresh_or_initial_model(recipe, config)
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
