"""Recipes: every fault in one sentence, all at once; overrides; DeepSpeed's files."""

import json
import re
from pathlib import Path

import pytest
import yaml

from deltalm_ds.errors import InputError
from deltalm_ds.recipe.loading import load_recipe, save_recipe
from deltalm_ds.recipe.schema import Recipe
from deltalm_ds.training.deepspeed_config import CONFIG_DIRECTORY, deepspeed_config

RECIPE = {
    "name": "test",
    "vocabulary": "vocab",
    "model": {"preset": "tiny"},
    "data": {"train": [{"path": "shards"}, {"path": "mono", "objective": "span_corruption", "weight": 2.0}]},
    "batch": {"tokens_per_step": 4000, "micro_batch_tokens": 1000},
    "schedule": {"peak_lr": 1e-3, "warmup_steps": 10},
    "training": {"max_steps": 100, "save_every": 50},
}


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(RECIPE))
    return file


def test_a_recipe_and_its_defaults(path):
    recipe = load_recipe(path)
    assert recipe.data.train[0].objective == "seq2seq"
    assert recipe.data.train[1].weight == 2.0
    assert recipe.optimizer.betas == (0.9, 0.98)
    assert recipe.deepspeed == "fp32_zero1"


def test_what_is_saved_is_read(path, tmp_path):
    recipe = load_recipe(path, ["validation.shards=dev", "training.label_smoothing=0.2"])
    with open(tmp_path / "saved.yaml", "w") as file:
        save_recipe(recipe, file)
    assert load_recipe(tmp_path / "saved.yaml") == recipe


def test_all_faults_at_once_each_with_the_nearest_key(tmp_path):
    content = json.loads(json.dumps(RECIPE))
    content["trainig"] = {}
    content["training"]["max_stepz"] = 3
    content["data"]["train"][1]["wieght"] = 2
    content["batch"]["tokens_per_step"] = 0
    content["schedule"]["kind"] = "cosine"
    content["optimizer"] = {"betas": [0.9, 1.5]}
    del content["name"]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(InputError) as caught:
        load_recipe(tmp_path / "recipe.yaml")
    message = str(caught.value)
    assert "has 7 fault(s)" in message
    for sentence in (
        "trainig: there is no such key; the nearest is 'training'",
        "training.max_stepz: there is no such key; the nearest is 'max_steps'",
        "data.train.1.wieght: there is no such key; the nearest is 'weight'",
        "batch.tokens_per_step: Input should be greater than 0 (got 0)",
        "schedule.kind: Input should be 'inverse_sqrt' or 'linear' (got 'cosine')",
        "optimizer.betas.1: Input should be less than 1 (got 1.5)",
        "name: is missing",
    ):
        assert sentence in message


def test_sections_that_contradict_each_other(path):
    with pytest.raises(InputError) as caught:
        load_recipe(path, ["batch.micro_batch_tokens=511", "model="])
    assert "batch.micro_batch_tokens=511 cannot hold one pair" in str(caught.value)
    assert "either initial_model or model must be given" in str(caught.value)
    assert load_recipe(path, ["batch.micro_batch_tokens=512"]).batch.micro_batch_tokens == 512


def test_overrides(path):
    recipe = load_recipe(
        path,
        [
            "training.max_steps=7",
            "data.train.0.weight=0.5",
            "sampling.rise_steps=3",  # a section the recipe does not have
            "optimizer.betas=[0.8, 0.9]",
            "about.hardware=2 cores, 1 = one",
        ],
    )
    assert recipe.training.max_steps == 7
    assert recipe.data.train[0].weight == 0.5
    assert recipe.sampling.rise_steps == 3
    assert recipe.optimizer.betas == (0.8, 0.9)
    assert recipe.about == {"hardware": "2 cores, 1 = one"}


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.max_stepz=3", "training.max_stepz: there is no such key; the nearest is 'max_steps'"),
        ("training.max_steps", "must have the form section.key=value"),
        ("=3", "must have the form section.key=value"),
        ("data.train.9.weight=2", "the list has items 0 to 1, and no '9'"),
        ("data.train.2=x", "the list has items 0 to 1, and no '2'"),
        ("data.train.-1.weight=2", "the list has items 0 to 1, and no '-1'"),
        ("data.train.first.weight=2", "the list has items 0 to 1, and no 'first'"),
        ("name.length=2", "'length' would be inside the value 'test'"),
        ("training.max_steps.x.y=2", "'x' would be inside the value 100"),
        ("training.max_steps=[", "is not valid YAML"),
        ("training..max_steps=3", "training.: there is no such key"),
        ("seed=-1", "seed: Input should be greater than or equal to 0"),
    ],
)
def test_bad_overrides(override, message, path):
    with pytest.raises(InputError) as caught:
        load_recipe(path, [override])
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "mapping"), (b"- a", "mapping"), (b"a: [", "not valid YAML"), (b"a: \xff", "not valid YAML")],
)
def test_files_that_are_no_recipe(content, message, tmp_path):
    (tmp_path / "recipe.yaml").write_bytes(content)
    with pytest.raises(InputError, match=message):
        load_recipe(tmp_path / "recipe.yaml")


def test_a_missing_file(tmp_path):
    with pytest.raises(InputError, match="cannot be read: No such file"):
        load_recipe(tmp_path / "none.yaml")


# --- DeepSpeed's configuration ---


def recipe_with(deepspeed, **training):
    content = {**RECIPE, "deepspeed": str(deepspeed), "training": {**RECIPE["training"], **training}}
    return Recipe.model_validate(content)


def written(tmp_path, change):
    config = json.loads((CONFIG_DIRECTORY / "bf16_zero2.json").read_text())
    change(config)
    path = tmp_path / "deepspeed.json"
    path.write_text(json.dumps(config))
    return path


@pytest.mark.parametrize("file", sorted(CONFIG_DIRECTORY.glob("*.json")), ids=lambda file: file.stem)
def test_every_deepspeed_file_is_what_its_name_says(file):
    config = deepspeed_config(recipe_with(file.stem, clip_norm=0.7))
    precision, stage = file.stem.split("_zero")
    assert config["zero_optimization"]["stage"] == int(stage)
    assert [p for p in ("bf16", "fp16") if config.get(p, {}).get("enabled")] == [precision] * (precision != "fp32")
    assert config["gradient_clipping"] == 0.7
    assert "auto" not in json.dumps(config)


def test_there_is_a_file_for_each_precision_and_stage():
    names = {file.stem for file in CONFIG_DIRECTORY.glob("*.json")}
    assert {f"{precision}_zero{stage}" for precision in ("fp32", "bf16", "fp16") for stage in (1, 2, 3)} <= names


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(gradient_clipping=2.0), "gradient_clipping: is 2.0, the recipe says 1.0"),
        (lambda c: c.update(gradient_accumulation_steps=4), "gradient_accumulation_steps: must be 1"),
        (lambda c: c.update(managed_gradient_accumulation=True), "managed_gradient_accumulation: must be false"),
        (lambda c: c["zero_optimization"].update(stage=0), "stage: must be 1, 2 or 3"),
        (lambda c: c.pop("zero_optimization"), "stage: must be 1, 2 or 3"),
        (lambda c: c["zero_optimization"].update(round_robin_gradients=True), "round_robin_gradients: must be false"),
        (lambda c: c.update(fp16={"enabled": True}), "only one of them can be enabled"),
        (lambda c: c.pop("data_types"), 'grad_accum_dtype: must be "fp32" with bf16'),
        (lambda c: c.update(optimizer={}), "optimizer: belongs to the recipe's section optimizer"),
        (lambda c: c.update(train_batch_size=8), "train_batch_size: belongs to the recipe's batch.tokens_per_step"),
        (lambda c: c.update(zero_optimisation={}), "zero_optimisation: is not known here; the nearest is 'zero_opt"),
        (lambda c: c.update(bf16=True), "bf16: must be an object"),
    ],
)
def test_contradictions(change, message, tmp_path):
    with pytest.raises(InputError) as caught:
        deepspeed_config(recipe_with(written(tmp_path, change)))
    assert message in str(caught.value)
    assert "deepspeed.json" in str(caught.value)


def test_contradictions_come_all_at_once(tmp_path):
    def change(config):
        config.update(gradient_clipping=2.0, scheduler={}, amp={})
        config["zero_optimization"]["stage"] = 4

    with pytest.raises(InputError) as caught:
        deepspeed_config(recipe_with(written(tmp_path, change)))
    assert str(caught.value).count("\n") == 4


def test_the_same_value_as_the_recipes_is_no_contradiction(tmp_path):
    path = written(tmp_path, lambda config: config.update(gradient_clipping=1.0))
    assert deepspeed_config(recipe_with(path))["gradient_clipping"] == 1.0


def test_deepspeed_files_that_are_none(tmp_path):
    with pytest.raises(InputError, match=r"no DeepSpeed configuration 'bf16_zero4'.*nearest is 'bf16_zero"):
        deepspeed_config(recipe_with("bf16_zero4"))
    with pytest.raises(InputError, match="does not exist"):
        deepspeed_config(recipe_with(tmp_path / "none.json"))
    (tmp_path / "list.json").write_text("[]")
    with pytest.raises(InputError, match="must be a JSON object"):
        deepspeed_config(recipe_with(Path(tmp_path / "list.json")))


@pytest.mark.parametrize("value", [".nan", ".inf"])
@pytest.mark.parametrize("key", ["schedule.peak_lr", "training.clip_norm", "data.train.0.weight"])
def test_numbers_must_be_finite(key, value, path):
    with pytest.raises(InputError, match=re.escape(key)):
        load_recipe(path, [f"{key}={value}"])


def test_options_of_an_objective(path):
    options = ["noise_density=0.3", "mean_span_length=2.5", "sentinels_in_target=false"]
    recipe = load_recipe(path, [f"data.train.1.{option}" for option in options])
    expected = {"noise_density": 0.3, "mean_span_length": 2.5, "sentinels_in_target": False}
    assert recipe.data.train[1].objective_options == expected
    assert load_recipe(path).data.train[1].objective_options == {}
    pairs = load_recipe(path, ["data.train.0.objective=translation_span_corruption", "data.train.0.sides=one"])
    assert pairs.data.train[0].objective_options == {"sides": "one"}


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        (
            "0.noise_density=0.3",
            "noise_density belongs to span_corruption and translation_span_corruption, not to seq2",
        ),
        ("1.sides=one", "sides belongs to translation_span_corruption, not to span_corruption"),
        ("1.noise_density=1", "data.train.1.noise_density: Input should be less than 1"),
        ("1.mean_span_length=0.5", "data.train.1.mean_span_length: Input should be greater than or equal to 1"),
        ("1.mean_span=3", "there is no such key; the nearest is 'mean_span_length'"),
        ("1.noise_desity=0.3", "there is no such key; the nearest is 'noise_density'"),
    ],
)
def test_options_that_an_objective_does_not_have(path, override, sentence):
    with pytest.raises(InputError, match=re.escape(sentence)):
        load_recipe(path, [f"data.train.{override}"])
