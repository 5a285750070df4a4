"""Recipes: every fault in one sentence, all at once; overrides; DeepSpeed's files."""

import json
import re

import pytest
import yaml

from deltalm_ds.data.objectives.seq2seq import Seq2Seq
from deltalm_ds.data.objectives.span_corruption import SpanCorruption
from deltalm_ds.errors import InputError
from deltalm_ds.model.config import DeltaLMConfig
from deltalm_ds.recipe.loading import RECIPES, load_recipe, save_recipe
from deltalm_ds.recipe.schedules import SCHEDULES
from deltalm_ds.recipe.schema import ModelSection

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
    assert recipe.data.train[0].objective == Seq2Seq()
    assert recipe.data.train[1].objective == SpanCorruption()
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
    content["schedule"]["kind"] = "cosinus"
    content["optimizer"] = {"betas": [0.9, 1.5]}
    content["model"] = {"preset": "tiny", "num_heads": 3, "decoder": "vanilla"}
    del content["name"]
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(content))
    with pytest.raises(InputError) as caught:
        load_recipe(tmp_path / "recipe.yaml")
    message = str(caught.value)
    assert "has 8 fault(s)" in message
    for sentence in (
        "trainig: there is no such key; the nearest is 'training'",
        "training.max_stepz: there is no such key; the nearest is 'max_steps'",
        "data.train.1.wieght: there is no such key; the nearest is 'weight'",
        "batch.tokens_per_step: Input should be greater than 0 (got 0)",
        f"schedule: there is no kind 'cosinus'; the kinds are {', '.join(SCHEDULES)}; the nearest is 'cosine'",
        "optimizer.betas.1: Input should be less than 1 (got 1.5)",
        "model: num_heads=3 does not divide hidden_size=128",
        "name: is missing",
    ):
        assert sentence in message


def test_sections_that_contradict_each_other(path):
    with pytest.raises(InputError) as caught:
        load_recipe(path, ["batch.micro_batch_tokens=511", "model=", "seed=-1"])
    assert "batch: micro_batch_tokens=511 cannot hold one pair" in str(caught.value)
    assert "model: either initial_model or model must be given" in str(caught.value)
    assert "seed: " in str(caught.value)
    assert load_recipe(path, ["batch.micro_batch_tokens=512"]).batch.micro_batch_tokens == 512


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model.preset=bsae"], "model.preset: Input should be 'tiny', 'base'"),
        (["model.num_head=4"], "model.num_head: there is no such key; the nearest is 'num_heads'"),
        (["model.vocabulary_size=100"], "model.vocabulary_size: there is no such key"),
        (["model.decoder=interleavd"], "model.decoder: Input should be 'interleaved' or 'vanilla'"),
        (["model.dropout=1.5"], "model.dropout: Input should be less than 1"),
        (["model.dropout=.nan"], "model.dropout: Input should be a finite number"),
        (["model.hidden_size=100", "model.num_heads=7"], "model: num_heads=7 does not divide hidden_size=100"),
        (["model.max_positions=255"], "data: data.max_source_tokens and data.max_target_tokens may be at most the mod"),
        (["initial_model=run"], "model: preset=tiny beside initial_model"),
    ],
)
def test_a_model_that_cannot_be_made(overrides, message, path):
    with pytest.raises(InputError) as caught:
        load_recipe(path, overrides)
    assert message in str(caught.value)


def test_the_model_section_is_the_models_configuration(path):
    """Every field but the vocabulary's size, which the vocabulary gives, with the same limits."""
    assert ModelSection.model_fields.keys() - {"preset"} == DeltaLMConfig.model_fields.keys() - {"vocabulary_size"}
    changes = ["model.hidden_size=64", "model.ffn_size=96", "model.decoder=vanilla", "model.embedding_norm=false"]
    config = load_recipe(path, changes).model.config(1000)
    expected = {"hidden_size": 64, "ffn_size": 96, "decoder": "vanilla", "embedding_norm": False}
    assert config == DeltaLMConfig.preset("tiny", vocabulary_size=1000, **expected)
    assert load_recipe(path, ["model={}"]).model.config(1000) == DeltaLMConfig.preset("base", vocabulary_size=1000)


def test_an_initial_model_and_what_differs_from_it(path, tmp_path):
    assert load_recipe(path, ["initial_model=run", "model.preset="]).model.changes() == {}
    recipe = load_recipe(path, ["initial_model=run", "model={dropout: 0.3}"])
    assert recipe.model.changes() == {"dropout": 0.3}
    with open(tmp_path / "saved.yaml", "w") as file:
        save_recipe(recipe, file)
    assert load_recipe(tmp_path / "saved.yaml") == recipe


def test_numbers_in_every_notation(path):
    recipe = load_recipe(path, ["training.max_steps=1e2", "training.save_every=5E+1", "schedule.peak_lr=.5e-3"])
    assert (recipe.training.max_steps, recipe.training.save_every, recipe.schedule.peak_lr) == (100, 50, 5e-4)


@pytest.mark.parametrize("name", ["1e5", "12e3", "2024-01-13", "2024-13-45", "on", "7", "~", "1:30", "é: x", "a #b"])
def test_a_name_that_looks_like_something_else_is_saved_as_text(name, path, tmp_path):
    recipe = load_recipe(path).model_copy(update={"name": name})
    with open(tmp_path / "saved.yaml", "w") as file:
        save_recipe(recipe, file)
    assert load_recipe(tmp_path / "saved.yaml") == recipe


def test_overrides(path):
    recipe = load_recipe(
        path,
        [
            "training.max_steps=7",
            "data.train.0.weight=0.5",
            "sampling.change_steps=3",  # a section the recipe does not have
            "optimizer.betas=[0.8, 0.9]",
            "about.hardware=2 cores, 1 = one",
        ],
    )
    assert recipe.training.max_steps == 7
    assert recipe.data.train[0].weight == 0.5
    assert recipe.sampling.change_steps == 3
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
        ("training={max_steps: 1, save_every: 1, max_steps: 2}", "the key 'max_steps' stands twice"),
        ("training.max_steps=1.5", "training.max_steps: Input should be a valid integer"),
        ("training.max_steps=1e400", "training.max_steps: Input should be a finite number"),
        ("training.clip_norm=-1", "training.clip_norm: Input should be greater than or equal to 0"),
        ("max_steps=5", "max_steps: there is no such key here; there is training.max_steps"),
    ],
)
def test_bad_overrides(override, message, path):
    with pytest.raises(InputError) as caught:
        load_recipe(path, [override])
    assert message in str(caught.value)


def test_an_override_given_twice(path):
    with pytest.raises(InputError, match=r"The override training\.max_steps is given twice"):
        load_recipe(path, ["training.max_steps=7", "seed=2", "training.max_steps=8"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"# only a comment\n", "is empty"),
        (b"---\n", "is empty"),
        (b"- a", "must be a mapping of sections, not list"),
        (b"a", "must be a mapping of sections, not str"),
        (b"name: x\nabout: [\n", r"not valid YAML: .* \(line 3\)\.$"),
        (b"name: x\n---\nname: y\n", r"not valid YAML: .* another document \(line 2\)\.$"),
        (b"name: x\n<<: y\n", r"not valid YAML: .* \(line 2\)\.$"),
        (b"name: !!python/name:os.system\n", r"not valid YAML: .* \(line 1\)\.$"),
        (b"a: \xff", "not a text file in UTF-8"),
        (b"\x00\x01\x02", "has the character #x0000"),
        (b"[" * 5000, "nested too deeply"),
        (
            b"name: a\ntraining:\n  max_steps: 1\n  save_every: 2\n  max_steps: 3\n",
            "'max_steps' stands twice, in lines 3 ",
        ),
        (b"name: a\n'name': b\n", "the key 'name' stands twice, in lines 1 and 2"),
    ],
)
def test_files_that_are_no_recipe(content, message, tmp_path):
    (tmp_path / "recipe.yaml").write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        load_recipe(tmp_path / "recipe.yaml")
    assert "\n" not in str(caught.value)


def test_a_byte_order_mark_is_no_part_of_a_key(path):
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load_recipe(path).name == "test"


def test_a_missing_file(tmp_path):
    with pytest.raises(InputError, match="cannot be read: No such file"):
        load_recipe(tmp_path / "none.yaml")


@pytest.mark.parametrize("value", [".nan", ".inf"])
@pytest.mark.parametrize("key", ["schedule.peak_lr", "training.clip_norm", "data.train.0.weight"])
def test_numbers_must_be_finite(key, value, path):
    with pytest.raises(InputError, match=re.escape(key)):
        load_recipe(path, [f"{key}={value}"])


@pytest.mark.parametrize("path", sorted(RECIPES.rglob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_that_come_with_the_package_are_right(path):
    assert load_recipe(path).name == path.stem
