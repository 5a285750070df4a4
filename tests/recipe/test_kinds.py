"""Sections that have kinds: named alone or with options, changed from the command line, refused with what is right."""

import re

import pytest
import yaml

from deltalm_ds.data.objectives import OBJECTIVES
from deltalm_ds.data.objectives.seq2seq import Seq2Seq
from deltalm_ds.data.objectives.span_corruption import SpanCorruption
from deltalm_ds.data.objectives.translation_span_corruption import TranslationSpanCorruption
from deltalm_ds.data.sampling import SAMPLINGS
from deltalm_ds.data.sampling.temperature import TemperatureSampling
from deltalm_ds.errors import InputError
from deltalm_ds.recipe.loading import load_recipe, save_recipe
from deltalm_ds.recipe.schedules import SCHEDULES
from deltalm_ds.recipe.schedules.cosine import Cosine
from deltalm_ds.recipe.schedules.inverse_sqrt import InverseSqrt
from deltalm_ds.recipe.schedules.linear import Linear

RATES = {"peak_lr": 1e-3, "warmup_steps": 10}
RECIPE = {
    "name": "test",
    "vocabulary": "vocab",
    "model": {"preset": "tiny"},
    "data": {
        "train": [
            {"path": "plain"},
            {"path": "short", "objective": "span_corruption"},
            {"path": "long", "objective": {"kind": "translation_span_corruption", "sides": "one"}},
        ]
    },
    "batch": {"tokens_per_step": 4000, "micro_batch_tokens": 1000},
    "schedule": RATES,
    "training": {"max_steps": 100, "save_every": 50},
}


@pytest.fixture
def load(tmp_path):
    """Read the recipe with changes, and see that what is saved of it is read again as the same."""
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))

    def load(*overrides):
        recipe = load_recipe(tmp_path / "recipe.yaml", overrides)
        with open(tmp_path / "saved.yaml", "w") as file:
            save_recipe(recipe, file)
        assert load_recipe(tmp_path / "saved.yaml") == recipe
        return recipe

    return load


def having(table, option):
    """The kinds that have an option, whatever kinds there are."""
    return " and ".join(kind for kind, kind_class in table.items() if option in kind_class.model_fields)


def objectives(recipe):
    return [group.objective for group in recipe.data.train]


def test_no_kind_is_the_default_and_a_name_alone_is_a_kind(load):
    recipe = load()
    assert objectives(recipe) == [Seq2Seq(), SpanCorruption(), TranslationSpanCorruption(sides="one")]
    assert recipe.schedule == InverseSqrt(**RATES)
    assert recipe.sampling == TemperatureSampling()


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("0.objective=span_corruption", SpanCorruption()),
        ("0.objective={kind: seq2seq, language_tag: false}", Seq2Seq(language_tag=False)),
        ("0.objective.language_tag=false", Seq2Seq(language_tag=False)),
        ("1.objective.noise_density=0.3", SpanCorruption(noise_density=0.3)),
        ("1.objective.kind=translation_span_corruption", TranslationSpanCorruption()),
        ("2.objective.noise_density=0.3", TranslationSpanCorruption(noise_density=0.3, sides="one")),
        ("2.objective=span_corruption", SpanCorruption()),
        ("2.objective={sides: both, kind: translation_span_corruption}", TranslationSpanCorruption()),
    ],
)
def test_objectives_from_the_command_line(override, expected, load):
    place = int(override[0])
    recipe = load(f"data.train.{override}")
    assert objectives(recipe)[place] == expected
    unchanged = objectives(load())
    assert [*objectives(recipe)[:place], *objectives(recipe)[place + 1 :]] == [
        *unchanged[:place],
        *unchanged[place + 1 :],
    ]


def test_several_options_of_one_objective(load):
    recipe = load(
        *(f"data.train.1.objective.{option}" for option in ("mean_span_length=2.5", "sentinels_in_target=no"))
    )
    assert objectives(recipe)[1] == SpanCorruption(mean_span_length=2.5, sentinels_in_target=False)


def test_schedules_and_sampling_from_the_command_line(load):
    assert load("schedule.kind=linear").schedule == Linear(**RATES)
    assert load("schedule.kind=cosine", "schedule.final_lr=1e-5").schedule == Cosine(**RATES, final_lr=1e-5)
    assert load("schedule={kind: linear, peak_lr: 1, warmup_steps: 2}").schedule == Linear(peak_lr=1, warmup_steps=2)
    assert load("sampling=temperature").sampling == TemperatureSampling()
    assert load("sampling=temperature", "sampling.change_steps=3").sampling == TemperatureSampling(change_steps=3)


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("data.train.0.objective.noise_density=0.3", f"it belongs to {having(OBJECTIVES, 'noise_density')}"),
        ("data.train.1.objective.sides=one", f"it belongs to {having(OBJECTIVES, 'sides')}"),
        ("data.train.1.objective.kind=seq2", "data.train.1.objective: there is no kind 'seq2'; the kinds are"),
        ("data.train.0.objective=span_corrupt", "the nearest is 'span_corruption'"),
        (
            "data.train.0.objective=[seq2seq]",
            "must be a mapping with kind and options, or the name of a kind: ",
        ),
        ("data.train.0.objective.kind=[1]", "data.train.0.objective: there is no kind [1]"),
        ("data.train.0.noise_density=0.3", "no such key here; there is data.train.N.objective.noise_density"),
        ("data.train.1.objective.noise_density=1", "data.train.1.objective.noise_density: Input should be less than 1"),
        ("data.train.1.objective.mean_span_length=.5", "mean_span_length: Input should be greater than or equal to 1"),
        ("data.train.1.objective.mean_span_length=.inf", "mean_span_length: Input should be a finite number"),
        ("data.train.1.objective.mean_span=3", "there is no such key; the nearest is 'mean_span_length'"),
        ("schedule.final_lr=1e-5", f"there is no such key of this kind; it belongs to {having(SCHEDULES, 'final_lr')}"),
        ("schedule.peak_lr=.nan", "schedule.peak_lr: Input should be a finite number"),
        ("schedule=linear", "schedule.peak_lr: is missing"),
        ("sampling.temperature_end=0.5", "sampling.temperature_end: Input should be greater than or equal to 1"),
        ("sampling.temperature=0.5", "sampling.temperature: there is no such key; the nearest is 'temperature_"),
        ("sampling=", "sampling: must be a mapping with kind and options"),
    ],
)
def test_what_a_kind_does_not_have(override, sentence, load):
    with pytest.raises(InputError, match=re.escape(sentence)):
        load(override)


@pytest.mark.parametrize("table", [OBJECTIVES, SAMPLINGS, SCHEDULES], ids=["objectives", "samplings", "schedules"])
def test_rows_of_a_table_are_named_as_their_kind(table):
    assert {kind: kind_class.model_fields["kind"].default for kind, kind_class in table.items()} == {
        k: k for k in table
    }
