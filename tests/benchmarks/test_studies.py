"""Long studies: parts are done once and go on, the encoder's masking, and how outcomes are compared."""

import argparse
import json
import subprocess
import sys
import threading
import time
from dataclasses import replace
from statistics import fmean, stdev
from xml.etree import ElementTree

import numpy as np
import pytest
import torch

from benchmarks import recording
from benchmarks.quality import captions, encoder, figures, l10n10, ladder, outcome, sampler, study, tasks
from deltalm_ds.evaluation.metrics.interface import Statistics
from deltalm_ds.evaluation.scores import DirectionScore
from deltalm_ds.evaluation.significance import RESAMPLES, SEED
from deltalm_ds.evaluation.systems import find_systems
from deltalm_ds.evaluation.tasks.wmt10 import YEARS
from deltalm_ds.model.empty import empty_model
from deltalm_ds.recipe.loading import load_recipe, recipe_path

BUSY = "import time\nwhile time.process_time() < 0.3: pass"  # seconds of a processor
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def new_study(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "STUDIES", tmp_path)
    return lambda: study.Study("x")


def test_a_part_is_done_once_and_what_failed_goes_on(new_study):
    calls = []

    def make(out):
        calls.append(out.exists())
        out.mkdir(exist_ok=True)
        subprocess.run([sys.executable, "-c", BUSY], check=True)
        time.sleep(1)
        if len(calls) == 1:
            raise ValueError("stopped")

    with pytest.raises(ValueError, match="stopped"):
        new_study().make("part/of", make)
    after_one = new_study().seconds("part/of")
    for _ in range(3):
        assert new_study().make("part/of", make).is_dir()
    assert calls == [False, True]  # it found what the first start had left
    assert 0.3 <= after_one < 0.9  # of the processor
    assert after_one + 0.3 <= new_study().seconds("part/of")  # of both starts
    assert new_study().seconds("another") == 0


def test_two_commands_at_once_do_a_part_once(new_study):
    calls = []

    def make(out):
        calls.append(out)
        time.sleep(0.2)

    workers = [threading.Thread(target=lambda: new_study().make("part", make)) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(calls) == 1


def test_what_a_command_prints_is_kept_beside_what_it_leaves(new_study):
    (new_study().directory / "text").write_text("ein Haus\nzwei Häuser\n" * 20, encoding="utf-8")
    vocabulary = ("vocab", "train", "--input", "text", "--size", 19, "--languages", "de")
    assert "pieces " in new_study().printed("vocabulary", *vocabulary)
    assert (new_study().path("vocabulary") / "spm.model").is_file()
    with pytest.raises(SystemExit) as exit:
        new_study().printed("vocabulary", *vocabulary)  # it is there
    assert exit.value.code == 2


def test_masking_asks_for_15_percent_and_hides_most_of_them():
    mask, special = 500, 4
    windows = [
        torch.cat([torch.tensor([0]), torch.randint(special, mask, (62,)), torch.tensor([2])]) for _ in range(2000)
    ]
    batch = encoder._Masking(mask)(windows)
    ids, inputs, labels = torch.stack(windows), batch["input_ids"], batch["labels"]
    asked = labels != -100
    assert torch.equal(labels[asked], ids[asked]) and torch.equal(inputs[~asked], ids[~asked])
    assert not asked[:, 0].any() and not asked[:, -1].any()
    assert asked[:, 1:-1].float().mean() == pytest.approx(0.15, abs=0.004)
    masked, left = (inputs == mask)[asked].float().mean(), (inputs == ids)[asked].float().mean()
    assert masked == pytest.approx(0.8, abs=0.01)
    assert left == pytest.approx(0.1 + 0.1 / (mask - special), abs=0.01)


def test_rungs_and_samplers_are_recipes_of_the_same_size():
    size_of = {}
    for name, rung in ladder.RUNGS.items():
        shape = load_recipe(ladder.RECIPE, list(rung.overrides)).model
        size_of[name] = sum(weight.numel() for weight in empty_model(shape.config(6144)).parameters())
    assert size_of["a"] == pytest.approx(size_of["b"], rel=0.002)  # biases and norms differ
    assert {pair[i] for pair in ladder.COMPARED for i in (0, 1)} == set(ladder.RUNGS)
    samplings = [load_recipe(sampler.RECIPE, list(overrides)).sampling for _, overrides in sampler.SAMPLERS.values()]
    assert len({str(sampling) for sampling in samplings}) == len(sampler.SAMPLERS)


@pytest.mark.parametrize("task", tasks.SAMPLES)
def test_a_tasks_decoders_are_of_like_size(task):
    recipe, (_, pieces, _) = recipe_path(f"tasks/{task}_sample"), tasks.SAMPLES[task]
    shapes = [load_recipe(recipe, list(overrides)).model.config(pieces) for overrides in tasks.DECODERS.values()]
    sizes = [sum(weight.numel() for weight in empty_model(shape).parameters()) for shape in shapes]
    assert [shape.decoder for shape in shapes] == list(tasks.DECODERS)
    assert max(sizes) < 1.1 * min(sizes)  # the vanilla one has an attention of both kinds more


def test_ten_languages_stand_beside_the_memory():
    def result(system, direction, bleu, above=0.0, p=1.0):
        difference = {"value": -above, "interval": [-above - 1, -above + 1], "p": p}
        return {
            "system": system,
            "direction": direction,
            "scores": {"bleu": bleu},
            "differences": {} if system == l10n10.MODEL else {"bleu": difference},
        }

    results = []
    for number, language in enumerate(YEARS):
        for direction, base in ((f"{language}-en", 20.0), (f"en-{language}", 10.0)):
            results.append(result(l10n10.MODEL, direction, base + number))
            above = {"fr-en": (-3.0, 0.001), "en-gu": (7.0, 0.001), "gu-en": (6.0, 0.2)}.get(direction, (5.0, 0.001))
            results.append(result(l10n10.MEMORY, direction, base + number - above[0], *above))
    assert find_systems(l10n10.SYSTEMS.split(",")[1:2])[0].name == l10n10.MEMORY  # it is looked up by that name
    into, _, out_of, _ = l10n10.rows(results)
    assert (into["fr"], into["gu"], into["mean"]) == (20.0, 29.0, 24.5) and out_of["mean"] == 14.5
    assert l10n10.above_memory(results) == (
        "Model less memory: -3.00 (fr-en) to +7.00 (en-gu); above it with p < 0.05 in 18 of 20 directions."
    )


def _outcome(rng, what, num_seeds, gain):
    """Made-up sentence counts of a metric that is a mean: sums, then numbers of sentences."""

    def score():
        rows = np.stack([rng.normal(20 + gain, 5, 40), np.ones(40)], axis=1)
        statistics = Statistics(rows, lambda sums: float(sums[0] / sums[1]))
        return DirectionScore("", {"bleu": rows[:, 0].mean()}, {}, 40, statistics={"bleu": statistics})

    directions = [x for other in (*captions.RICH, *captions.POOR) for x in (f"en-{other}", f"{other}-en")]
    seeds = [{direction: score() for direction in directions} for _ in range(num_seeds)]
    return outcome.Outcome(what, [], seeds, 0.0, 0.0)


def test_outcomes_are_compared_over_the_same_sentences_of_all_directions_and_seeds():
    rng = np.random.default_rng(0)
    first, second = _outcome(rng, "first", 3, 0), _outcome(rng, "second", 3, 2)
    compared = outcome._comparison(first, second)
    all_rows = [
        [score.statistics["bleu"].rows[:, 0] for run in each.scores for score in run.values()]
        for each in (first, second)
    ]
    sentences = [np.mean(rows, axis=0) for rows in all_rows]  # a mean of a metric that is a mean: one value a sentence
    assert compared["BLEU"] == f"{np.mean(sentences[1] - sentences[0]):+.2f}"
    drawn = np.random.default_rng(SEED).integers(40, size=(RESAMPLES, 40))
    differences = np.sort((sentences[1] - sentences[0])[drawn].mean(axis=1))
    cut = RESAMPLES // 40
    assert compared["95 %"] == f"{differences[cut]:+.2f} to {differences[-cut - 1]:+.2f}"
    by_seed = [float(x) for x in compared["by seed"].split(", ")]
    assert fmean(by_seed) == pytest.approx(float(compared["BLEU"]), abs=0.01)
    same = outcome._comparison(first, first)
    assert (same["BLEU"], same["p"]) == ("+0.00", "1.000")


def test_a_study_is_told_in_tables_and_figures(tmp_path, monkeypatch, capsys):
    """As `main` of a study does at its end, for two systems of which one starts from something."""
    for module in (outcome, figures):
        monkeypatch.setattr(module, "FIGURES", tmp_path / "figures")
    monkeypatch.setattr(recording, "RESULTS", tmp_path / "RESULTS.md")
    monkeypatch.setattr(outcome, "METRICS", {"bleu": "BLEU"})
    records = [{"step": step, "kind": "validation", "bleu": step / 200} for step in (1_000, 2_000)]
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    rng = np.random.default_rng(1)
    scratch, started = (
        replace(_outcome(rng, what, 2, gain), runs=[run, run], seconds=60.0, seconds_before=before)
        for what, gain, before in (("from scratch", 0, 0.0), ("from an encoder", 3, 120.0))
    )
    arguments = argparse.Namespace(record=True, json=False)
    outcome.show(arguments, "A study", [scratch, started], [(0, 1)])
    told = (tmp_path / "RESULTS.md").read_text()
    assert told == capsys.readouterr().out.removesuffix("\n")
    assert "| BLEU on dev at step | 1,000 | 2,000 |" in told and "| from an encoder | 5 | 10 |" in told
    assert outcome.mean_and_deviation(started.by_seed("bleu", captions.POOR)) in told
    lines = ElementTree.parse(tmp_path / "figures" / "a_study_by_time.svg").getroot().findall(f"{SVG}polyline")
    ends = [[point.split(",") for point in line.get("points").split()][-1] for line in lines]
    assert ends[0][1] == ends[1][1]  # the same BLEU, three minutes in all instead of one
    assert (float(ends[1][0]) - figures.LEFT) / (float(ends[0][0]) - figures.LEFT) == pytest.approx(3, abs=0.01)


def test_means_over_seeds():
    assert outcome.mean_and_deviation([1.0, 2.0, 4.0]) == f"2.33 ± {stdev([1, 2, 4]):.2f}"
    assert outcome.mean_and_deviation([1.5]) == "1.50"
