"""`deltalm recipe`: what a recipe can say, for people and for scripts."""

import json

from command import deltalm, must

from deltalm_ds.recipe.keys import recipe_keys


def test_all_keys_are_listed():
    lines = must("recipe", "keys").splitlines()
    assert [line.split()[0] for line in lines[1:]] == [key.path for key in recipe_keys()]
    listed = json.loads(must("recipe", "keys", "--json"))
    assert [key["path"] for key in listed] == [key.path for key in recipe_keys()]
    assert all(key["description"] for key in listed)


def test_one_key_is_shown():
    shown = must("recipe", "show", "training.clip_norm")
    assert shown.startswith("training.clip_norm: number ≥ 0; default: 1.0\n") and "no clipping" in shown
    assert json.loads(must("recipe", "show", "data.train.0.weight", "--json"))["path"] == "data.train.N.weight"


def test_a_section_is_shown_with_its_kinds():
    shown = must("recipe", "show", "data.train.0.objective")
    for name in ("seq2seq", "translation_span_corruption", "data.train.N.objective.language_tag"):
        assert name in shown
    section = json.loads(must("recipe", "show", "sampling", "--json"))
    assert "temperature" in dict(section["choices"])
    assert "sampling.change_steps" in [key["path"] for key in section["keys"]]


def test_a_wrong_key_names_the_nearest():
    outcome = deltalm("recipe", "show", "training.max_step")
    assert (outcome.code, outcome.stdout) == (2, "")
    assert outcome.messages == [
        "deltalm: A recipe has no key 'training.max_step'; the nearest is 'training.max_steps'."
    ]


def test_help_has_an_example():
    for verb in ((), ("keys",), ("show",)):
        assert "Example: deltalm recipe" in " ".join(must("recipe", *verb, "--help").split())
