"""Phases of a recipe, from the file to the records of a run: the published example, what is refused, and a training."""

import contextlib
import io
import json
import re
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import yaml
from jobs import Job

from deltalm_ds.cli import main
from deltalm_ds.data.manifest import CorpusManifest, Manifest, token_type
from deltalm_ds.data.sampling.temperature import TemperatureSampling
from deltalm_ds.data.sampling.unimax import UniMaxSampling
from deltalm_ds.data.shards import ragged_batch, write_corpus
from deltalm_ds.errors import InputError
from deltalm_ds.recipe.loading import load_recipe, recipe_path
from deltalm_ds.recipe.schema import Recipe
from deltalm_ds.runs.metrics import read_metrics
from deltalm_ds.training.inputs import open_inputs
from deltalm_ds.training.plan import make_plan
from deltalm_ds.training.prepare import prepare_run
from deltalm_ds.vocabulary import Vocabulary

TRAINING_GUIDE = Path(__file__).parents[2] / "docs" / "training.md"
ROWS = {
    "fr": 4000,
    "de": 2000,
    "cs": 3800,
    "fi": 1900,
    "lv": 1000,
    "et": 900,
    "ro": 450,
    "hi": 260,
    "tr": 220,
    "gu": 50,
}
STEPS = {"phases.0.from_step": 60, "phases.1.from_step": 90, "training.max_steps": 100}  # a tenth of the example's


@pytest.fixture(scope="module")
def corpora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with `vocabulary`, `shards/train` and `shards/dev`: English with the demo's ten languages."""
    directory = tmp_path_factory.mktemp("corpora")
    (directory / "dict.txt").write_text("".join(f"piece{i} 1\n" for i in range(900)))
    languages = ("en", *ROWS)
    vocabulary = Vocabulary.from_dict(directory / "dict.txt", num_sentinels=30, languages=languages)
    vocabulary.save(directory / "vocabulary")
    manifest = Manifest(vocabulary.hash, vocabulary.num_tokens)
    for split, share in (("train", 1), ("dev", 12)):
        (directory / "shards" / split).mkdir(parents=True)
        written = []
        for language, num_rows in ROWS.items():
            rows = num_rows // share
            side = np.full(rows * 10, 7), np.full(rows, 10)
            batch = ragged_batch({"source": side, "target": side}, token_type(vocabulary.num_tokens))
            corpus = CorpusManifest(f"en-{language}", "parallel", ("en", language))
            written.append(write_corpus(directory / "shards" / split, manifest, corpus, [batch]))
        Manifest(vocabulary.hash, vocabulary.num_tokens, tuple(written)).write(directory / "shards" / split)
    return directory


@pytest.fixture
def example(corpora: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """The recipe that comes with the package, with a tenth of its steps."""
    monkeypatch.chdir(corpora)
    return load_recipe(recipe_path("phases"), [f"{key}={value}" for key, value in STEPS.items()])


def test_the_guide_shows_the_example():
    blocks = re.findall(r"```yaml\n(.*?)```", TRAINING_GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    (shown,) = [yaml.safe_load(block) for block in blocks if "phases:" in block]
    recipe = yaml.safe_load(recipe_path("phases").read_text(encoding="utf-8"))
    assert (shown["phases"], shown["sampling"]) == (recipe["phases"], recipe["sampling"])
    assert shown["data"]["train"] == recipe["data"]["train"]


def test_the_example_draws_what_it_says(example: Recipe):
    """Step by step: the languages of the phase alone, with p ∝ n^0.7, n^0.5, n^0.3; no row twice before all once."""
    stream = open_inputs(example).stream
    pairs = [component.corpus.name.removeprefix("en-") for component in stream.components]
    early, middle = {"fr", "de"}, {"fr", "de", "cs", "fi", "tr"}
    expected, drawn = np.zeros(len(pairs)), np.zeros(len(pairs))
    rows: list[list[int]] = [[] for _ in pairs]
    for step in range(100):
        known, exponent = (early, 0.7) if step < 60 else (middle, 0.5) if step < 90 else (set(ROWS), 0.3)
        weights = np.array([ROWS[pair] ** exponent if pair in known else 0.0 for pair in pairs])
        shares = weights / weights.sum()
        assert stream.probabilities(step) == pytest.approx(shares, rel=0.01)  # 1.43 is not quite 1 / 0.7
        batch = stream.global_batch(step)
        assert {pairs[number] for number in batch.component_index} <= known
        drawn += np.bincount(batch.component_index, minlength=len(pairs))
        expected += stream.probabilities(step) * len(batch.rows)
        for number, row in zip(batch.component_index.tolist(), batch.rows.tolist(), strict=True):
            rows[number].append(row)
    assert len(pairs) == 20 and np.abs(drawn - expected).max() < 5
    for pair, of_component in zip(pairs, rows, strict=True):
        for start in range(0, len(of_component), ROWS[pair]):
            one_pass = of_component[start : start + ROWS[pair]]
            assert len(set(one_pass)) == len(one_pass)
    assert max(len(of_component) / ROWS[pair] for pair, of_component in zip(pairs, rows, strict=True)) > 1


def test_the_plan_shows_phases(example: Recipe):
    plan = make_plan(example, 1)
    assert {step["step"]: step["sampling"]["phase"] for step in plan["steps"]}.items() >= {0: 1, 60: 2, 90: 3}.items()
    late = next(one for one in plan["components"] if one["component"] == "span_corruption:en-gu:gu")
    assert late["probability"].keys() == {"phase 1", "phase 2", "phase 3", "last"}
    assert late["probability"]["phase 2"] == 0 < late["probability"]["phase 3"]
    lines = plan_on_stdout(*(f"{key}={value}" for key, value in STEPS.items())).splitlines()
    (steps,) = [line for line in lines if line.startswith("step ")]
    assert steps.split()[2:4] == ["phase", "temperature"]
    assert [line.split()[2:4] for line in lines if line.startswith("90 ")] == [["3", "3.33"]]


def plan_on_stdout(*overrides: str) -> str:
    """What `deltalm plan` prints about the example, changed."""
    stdout = io.StringIO()
    arguments = ["deltalm", "plan", str(recipe_path("phases")), *overrides]
    with mock.patch.object(sys, "argv", arguments), contextlib.redirect_stdout(stdout):
        try:
            main()
        except SystemExit as ended:
            if ended.code:
                raise
    return stdout.getvalue()


@pytest.mark.usefixtures("example")
def test_the_plan_shows_what_a_cap_holds_back(capsys: pytest.CaptureFixture):
    changes = ["phases=[]", "sampling={kind: unimax, max_passes: 3}", "data.train.0.languages=[]"]
    recipe = load_recipe(recipe_path("phases"), [*changes, "training.max_steps=100"])
    plan = make_plan(recipe, 1)
    for one in plan["components"]:
        is_capped = one["capped_at_step"] == 100
        assert one["passes"] <= 3.001 and is_capped == (one["passes"] > 2.999)
    assert 0 < sum(one["capped_at_step"] is not None for one in plan["components"]) < 20
    assert "all passes by step" in plan_on_stdout(*changes, "training.max_steps=100")
    with pytest.raises(SystemExit) as ended:
        plan_on_stdout(*changes, "training.max_steps=2000")
    assert ended.value.code == 2
    assert re.search(r"max_passes=3 is enough for \d+ of the 2,000 steps", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ("phases.1.from_step=60", "phases: phases.1 begins at step 60, not after phases.0, which begins at step 60"),
        ("phases.0.from_step=0", "phases.0.from_step: Input should be greater than 0"),
        ("training.max_steps=90", "training: max_steps=90 ends the run before phases.1, which would begin at step 90"),
        ("phases=[{from_step: 5}]", "phases.0: this phase changes nothing"),
        ("phases.0.sampling.temperature_ende=5", "there is no such key; the nearest is 'temperature_end'"),
        ("phases.0.until_step=7", "there is no such key; the nearest is 'from_step'"),
        ("sampling={temperature_end: 5, change_steps: 9, max_passes: 2}", "max_passes=2 needs shares that stay"),
        ("sampling=unimax", "sampling.max_passes: is missing"),
    ],
)
def test_phases_that_cannot_be(changes: str, message: str):
    with pytest.raises(InputError, match=re.escape(message)):
        given = [f"{key}={value}" for key, value in STEPS.items() if not changes.startswith((key, "phases="))]
        load_recipe(recipe_path("phases"), [*given, changes])


@pytest.mark.parametrize(
    ("languages", "message"),
    [
        ("[en, fr, gue]", "data.train.0.languages: no corpus of .* has the language 'gue'; the nearest is 'gu'"),
        ("[fr, de]", "has only languages of fr, de: name both languages of a pair"),
    ],
)
@pytest.mark.usefixtures("example")
def test_languages_that_are_not_there(languages: str, message: str):
    with pytest.raises(InputError, match=message):
        open_inputs(load_recipe(recipe_path("phases"), [f"data.train.0.languages={languages}"]))


def test_the_old_name_of_a_key_is_read_but_not_beside_the_new_one():
    old = load_recipe(recipe_path("phases"), ["sampling={temperature_start: 5, temperature_end: 1, rise_steps: 40}"])
    new = load_recipe(recipe_path("phases"), ["sampling={temperature_start: 5, temperature_end: 1, change_steps: 40}"])
    assert old == new
    with pytest.raises(InputError, match="rise_steps"):
        load_recipe(recipe_path("phases"), ["sampling={change_steps: 40, rise_steps: 40}"])


# --- a training ---


def phases_of(training_data: Path) -> list[dict[str, Any]]:
    pairs = {"path": str(training_data / "train"), "directions": "forward", "weight": 3}
    task = {"path": str(training_data / "dev"), "objective": "span_corruption"}
    return [
        {"from_step": 7, "train": [task, pairs]},
        {"from_step": 13, "sampling": {"kind": "unimax", "max_passes": 9}},
    ]


def test_a_run_goes_through_its_phases_and_is_the_same_when_resumed(make_run, run_on_ranks, training_data, tmp_path):
    changes = {
        "phases": phases_of(training_data),
        "sampling": TemperatureSampling(temperature_start=3.0, change_steps=20),
    }
    whole, resumed = (make_run(tmp_path / name, **changes) for name in ("whole", "resumed"))
    assert run_on_ranks(tmp_path, [Job(whole), Job(resumed, whole)], 2) == [0, 0]
    records, again = ([one for one in read_metrics(run) if one["kind"] == "train"] for run in (whole, resumed))
    assert [record["phase"] for record in records] == [1] * 7 + [2] * 6 + [3] * 7
    assert [record["temperature"] for record in records[:13]] == pytest.approx(
        [3 + 2 * step / 20 for step in range(13)]
    )
    assert all("temperature" not in record for record in records[13:])
    assert [record["loss"] for record in again] == [record["loss"] for record in records]
    validation = [one for one in read_metrics(whole) if one["kind"] == "validation"]
    assert {name.split(":")[0] for name in validation[-1]["nll_of"]} == {"seq2seq", "span_corruption"}


def test_more_steps_are_another_run_where_passes_are_capped(make_recipe, tmp_path):
    capped = UniMaxSampling(max_passes=50)
    prepare_run(make_recipe(sampling=capped), tmp_path / "run")
    prepare_run(make_recipe(sampling=capped), tmp_path / "run")
    with pytest.raises(InputError, match=r"another recipe \(training.max_steps was 20, is 30\)"):
        prepare_run(make_recipe(sampling=capped, training={"max_steps": 30}), tmp_path / "run")


def test_paths_of_phases_become_absolute(make_recipe, training_data, tmp_path, monkeypatch):
    monkeypatch.chdir(training_data)
    inputs = prepare_run(make_recipe(phases=[{"from_step": 5, "train": [{"path": "dev"}]}]), tmp_path / "run")
    (phase,) = load_recipe(tmp_path / "run" / "recipe.yaml").phases
    assert phase.train[0].path == training_data / "dev" and phase.sampling is None
    identity = json.loads((tmp_path / "run" / "inputs.json").read_text())
    assert identity == inputs.identity and identity["data"].keys() >= {"data.train.0.path", "phases.0.train.0.path"}
