"""Drawn outputs: their distribution, against the model's own probabilities, and what a draw depends on."""

import math
from collections import Counter
from itertools import product

import pytest
import torch
from test_beam_search import log_probs, random_model

from deltalm_ds.errors import InputError
from deltalm_ds.generation.engines.pytorch import PyTorchEngine
from deltalm_ds.generation.interface import SearchOptions
from deltalm_ds.generation.sampling import draw, sample
from deltalm_ds.model.packing import pack_with_eos
from deltalm_ds.token_ids import EOS_ID, PAD_ID

SOURCE = [4, 6, 5]


def shares(model, prefix, options, step):
    """The distribution of the next token in plain Python."""
    scores = dict(enumerate(log_probs(model, [*SOURCE, EOS_ID], prefix)))
    del scores[PAD_ID]
    if step < options.min_length:
        del scores[EOS_ID]
    if step == options.max_length:
        scores = {EOS_ID: 0.0}
    ranked = sorted(scores, key=lambda token: -scores[token])[: options.top_k or None]
    weights = {token: math.exp(scores[token] / options.temperature) for token in ranked}
    total, before, kept = sum(weights.values()), 0.0, {}
    for token in ranked:
        if before < options.top_p:
            kept[token] = weights[token]
        before += weights[token] / total
    return {token: weight / sum(kept.values()) for token, weight in kept.items()}


@pytest.mark.parametrize(
    "given",
    [{}, {"temperature": 0.5}, {"temperature": 2.0, "top_k": 3}, {"top_p": 0.6}, {"top_k": 4, "top_p": 0.7, "seed": 3}],
)
def test_outputs_come_as_often_as_they_are_probable(given):
    model, num = random_model(), 6000
    options = SearchOptions(**{"temperature": 1.0, "n_best": num, "min_length": 1, "max_length": 2} | given)
    (found,) = sample(model, pack_with_eos([SOURCE]), options)
    counts = Counter(hypothesis.ids for hypothesis in found)
    expected = {}
    for ids in [*product(range(7), repeat=1), *product(range(7), repeat=2)]:
        probability = 1.0
        for step, token in enumerate((*ids, EOS_ID)):
            probability *= shares(model, ids[:step], options, step).get(token, 0.0) if EOS_ID not in ids else 0.0
        if probability:
            expected[ids] = probability
    assert sum(expected.values()) == pytest.approx(1)
    assert set(counts) <= set(expected)
    for ids, probability in expected.items():  # five standard deviations
        assert abs(counts[ids] - num * probability) <= 5 * math.sqrt(num * probability) + 1
    for hypothesis in found[:20]:
        steps = [
            log_probs(model, [*SOURCE, EOS_ID], hypothesis.ids[:i])[t] for i, t in enumerate((*hypothesis.ids, EOS_ID))
        ]
        assert hypothesis.token_scores == pytest.approx(steps, abs=1e-4)
        assert hypothesis.score == pytest.approx(sum(steps) / len(steps), abs=1e-4)
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)


def test_a_draw_depends_on_seed_and_sentence_alone():
    engine = PyTorchEngine(random_model(vocabulary_size=13))
    options = SearchOptions(temperature=1.0, n_best=3, max_length=8, no_repeat_ngram_size=2)
    sources = [[4, 5, 6, 7], [8], [], [9, 10], [4, 5]]
    together = engine.generate(sources, options)
    alone = [engine.generate([source], options)[0] for source in sources]
    assert [[one.ids for one in found] for found in together] == [[one.ids for one in found] for found in alone]
    backwards = engine.generate(sources[::-1], options)[::-1]
    assert [[one.ids for one in found] for found in backwards] == [[one.ids for one in found] for found in alone]
    others = engine.generate(sources, SearchOptions(temperature=1.0, n_best=3, max_length=8, seed=1))
    assert [[one.ids for one in found] for found in others] != [[one.ids for one in found] for found in together]


def test_bounds_prefixes_and_repeats_hold_of_what_is_drawn():
    engine = PyTorchEngine(random_model(vocabulary_size=13))
    options = SearchOptions(
        temperature=3.0, n_best=40, max_length=9, min_length_ratio=1.0, max_length_ratio=2.0, prefix=(7, 3),
        no_repeat_ngram_size=2,
    )  # fmt: skip
    for source, found in zip([[4, 5, 6], [8, 9]], engine.generate([[4, 5, 6], [8, 9]], options), strict=True):
        for hypothesis in found:
            assert hypothesis.ids[:2] == (7, 3)
            assert len(source) <= len(hypothesis.ids) <= 2 * len(source)
            pairs = list(zip(hypothesis.ids, hypothesis.ids[1:], strict=False))
            assert len(set(pairs)) == len(pairs) and PAD_ID not in hypothesis.ids


def test_the_place_of_a_draw_is_by_hand():
    log_p = torch.tensor([[0.5, 0.3, 0.2]]).log().repeat(4, 1)
    places = torch.tensor([0.0, 0.49, 0.51, 0.99], dtype=torch.float64)
    assert draw(log_p, places, SearchOptions(temperature=1.0)).tolist() == [0, 0, 1, 2]
    assert draw(log_p, places, SearchOptions(temperature=1.0, top_k=1)).tolist() == [0] * 4
    assert draw(log_p, places, SearchOptions(temperature=1.0, top_p=0.6)).tolist() == [0, 0, 0, 1]
    assert draw(log_p, places, SearchOptions(temperature=1e-3)).tolist() == [0] * 4


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"temperature": 1.0, "top_p": 0.0}, "top_p is 0.0"),
        ({"temperature": 1.0, "top_k": -1}, "top_k is -1"),
        ({"top_k": 3}, "without a temperature"),
    ],
)
def test_options_that_make_no_sense(values, message):
    with pytest.raises(InputError, match=message):
        SearchOptions(**values)
