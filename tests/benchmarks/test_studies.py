"""Long studies: parts are done once and go on, the encoder's masking, and how outcomes are compared."""

import threading
import time
from statistics import fmean, stdev

import numpy as np
import pytest
import torch

from benchmarks.quality import captions, encoder, ladder, outcome, sampler, study
from deltalm_ds.evaluation.metrics.interface import Statistics
from deltalm_ds.evaluation.scores import DirectionScore
from deltalm_ds.evaluation.significance import RESAMPLES, SEED
from deltalm_ds.model.empty import empty_model
from deltalm_ds.recipe.loading import load_recipe


@pytest.fixture
def new_study(tmp_path, monkeypatch):
    monkeypatch.setattr(study, "STUDIES", tmp_path)
    return lambda: study.Study("x")


def test_a_part_is_done_once_and_what_failed_goes_on(new_study):
    calls = []

    def make(out):
        calls.append(out.exists())
        out.mkdir(exist_ok=True)
        time.sleep(0.1)
        if len(calls) == 1:
            raise ValueError("stopped")

    with pytest.raises(ValueError, match="stopped"):
        new_study().make("part/of", make)
    after_one = new_study().seconds("part/of")
    for _ in range(3):
        assert new_study().make("part/of", make).is_dir()
    assert calls == [False, True]  # it found what the first start had left
    assert 0.1 <= after_one < 0.19 < new_study().seconds("part/of")  # of both starts
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


def test_means_over_seeds():
    assert outcome.mean_and_deviation([1.0, 2.0, 4.0]) == f"2.33 ± {stdev([1, 2, 4]):.2f}"
    assert outcome.mean_and_deviation([1.5]) == "1.50"
