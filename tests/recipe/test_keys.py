"""The keys that are shown are those that are read, each described, and docs/recipe.md has them all."""

import re
from copy import deepcopy
from pathlib import Path

import pytest

from deltalm_ds.errors import InputError
from deltalm_ds.recipe.keys import REQUIRED, find_key, keys_below, recipe_keys
from deltalm_ds.recipe.reference import markdown
from deltalm_ds.recipe.schedules import SCHEDULES
from deltalm_ds.recipe.schema import Recipe

DOCS = Path(__file__).parents[2] / "docs"
RECIPE = {
    "name": "test",
    "vocabulary": "vocab",
    "initial_model": "model",
    "data": {"train": [{"path": "shards"}]},
    "batch": {"tokens_per_step": 4000, "micro_batch_tokens": 1000},
    "schedule": {"peak_lr": 1e-3, "warmup_steps": 10},
    "validation": {"shards": "dev"},
    "training": {"max_steps": 100, "save_every": 50, "profile": {"start_step": 5}, "average": {"decay": 0.9}},
}


def test_the_page_is_what_the_schema_gives():
    expected = (DOCS / "recipe.md").read_text(encoding="utf-8")
    assert markdown() == expected, "run python -m deltalm_ds.recipe.reference > docs/recipe.md"


def test_every_key_of_a_resolved_recipe_is_there_with_its_default():
    """What pydantic makes of a recipe, against what the keys say: an independent way through the same schema."""
    defaults = {}

    def collect(value, path):
        for name, inner in value.items():
            if isinstance(inner, dict) and name != "about":
                collect(inner, f"{path}{name}.")
            elif isinstance(inner, list) and inner and isinstance(inner[0], dict):
                collect(inner[0], f"{path}{name}.N.")
            else:
                defaults[f"{path}{name}"] = inner

    collect(Recipe.model_validate(RECIPE).model_dump(mode="json"), "")
    shown = {key.path: key for key in reversed(recipe_keys()) if not key.is_section or key.path in ("model", "phases")}
    assert defaults.keys() <= shown.keys()
    required = {path for path, key in shown.items() if key.default == REQUIRED}
    assert len(required) >= 8
    for path, value in defaults.items():
        if path in required or path == "initial_model":
            continue
        assert shown[path].default == ("" if value in (None, [], {}) else re.sub("^(True|False)$", _lower, f"{value}"))


def _lower(match):
    return match[0].lower()


def test_what_is_required_cannot_be_left_out():
    for key in recipe_keys():
        if key.default != REQUIRED or "N" in key.path or key.kinds:
            continue
        content = deepcopy(RECIPE)
        *sections, last = key.path.split(".")
        section = content
        for name in sections:
            section = section[name]
        del section[last]
        with pytest.raises(ValueError, match=re.escape(key.path)):
            Recipe.model_validate(content)


@pytest.mark.parametrize("key", recipe_keys(), ids=lambda key: f"{key.path}:{'+'.join(key.kinds)}")
def test_every_key_is_described_in_sentences(key):
    assert re.fullmatch(r"(?s)[A-Za-z`].{8,}\.", key.description)
    assert key.type and "typing" not in key.type
    assert all(len(about) > 20 for _, about in key.choices)


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("seed", "seed"),
        ("data.train.0.weight", "data.train.N.weight"),
        ("data.train.N.weight", "data.train.N.weight"),
        ("data.train.weight", "data.train.N.weight"),
        ("data.train.3.objective.sides", "data.train.N.objective.sides"),
        ("schedule.kind", "schedule.kind"),
    ],
)
def test_keys_are_found_by_what_users_call_them(name, path):
    assert find_key(name).path == path


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("warmup_steps", "schedule.warmup_steps"), ("training.max_step", "training.max_steps"), ("sed", "seed")],
)
def test_a_wrong_key_names_the_nearest(name, nearest):
    with pytest.raises(InputError, match=f"no key '{name}'; the nearest is '{nearest}'"):
        find_key(name)


def test_a_section_shows_its_kinds_and_the_keys_of_each():
    schedule = find_key("schedule")
    assert [kind for kind, _ in schedule.choices] == list(SCHEDULES)
    keys = {key.path.removeprefix("schedule."): key for key in keys_below(schedule)}
    assert {"kind", "peak_lr", "warmup_steps", "initial_lr", "final_lr"} <= keys.keys()
    assert keys["peak_lr"].kinds == () and "cosine" in keys["final_lr"].kinds
    assert keys["peak_lr"].type == "number > 0"
    assert [key.path for key in keys_below(find_key("data.train"))][:2] == [
        "data.train.N.path",
        "data.train.N.objective",
    ]
    assert find_key("optimizer.betas").type == "list of 2: number ≥ 0, < 1"
    assert keys_below(find_key("seed")) == []
