"""Sentences that enter a search while it runs against each of them searched alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_recorded_search import VOCABULARY_SIZE, assert_same, make_model

from deltalm_ds.errors import DataError
from deltalm_ds.generation.engines.pytorch import PyTorchEngine
from deltalm_ds.generation.interface import SearchOptions

IDS = st.integers(3, VOCABULARY_SIZE - 1)


@st.composite
def groups(draw):
    """Sentences that enter together, and how they are searched."""
    beam, min_length = draw(st.integers(1, 4)), draw(st.integers(0, 6))
    options = SearchOptions(
        beam=beam,
        n_best=draw(st.integers(1, beam)),
        length_penalty=draw(st.sampled_from([0.0, 1.0, 2.0])),
        min_length=min_length,
        max_length=draw(st.integers(min_length, 20)),
        no_repeat_ngram_size=draw(st.sampled_from([0, 2])),
        min_length_ratio=draw(st.sampled_from([0.0, 0.9])),
        max_length_ratio=draw(st.sampled_from([0.0, 1.4])),
        prefix=tuple(draw(st.lists(IDS, max_size=min(2, min_length)))),
        banned=draw(st.lists(st.lists(IDS, min_size=1, max_size=2).map(tuple), max_size=2).map(tuple)),
    )
    return draw(st.lists(st.lists(IDS, min_size=1, max_size=9), min_size=1, max_size=3)), options


@settings(max_examples=12, deadline=None)
@given(data=st.data())
def test_whenever_a_sentence_enters_it_is_found_what_it_is_found_alone(data):
    """Up to six groups of unlike options enter before any step, and some sentences are given up."""
    seed, decoder = data.draw(st.integers(0, 20), "seed"), data.draw(st.sampled_from(["interleaved", "vanilla"]))
    engine = PyTorchEngine(make_model(seed, decoder))
    search = engine.start_search()
    waiting = data.draw(st.lists(st.tuples(st.integers(0, 9), groups()), min_size=1, max_size=6), "groups")
    expected, found = {}, {}
    while waiting or search.num_groups:
        while waiting and (not search.num_groups or waiting[0][0] == 0):
            _, (sources, options) = waiting.pop(0)
            numbers = search.admit(sources, options)
            expected |= zip(numbers, ((source, options) for source in sources), strict=True)
        waiting[:1] = [(steps - 1, group) for steps, group in waiting[:1]]
        running = sorted(expected.keys() - found.keys())
        if running and data.draw(st.integers(0, 20)) == 0:
            search.drop([given_up := data.draw(st.sampled_from(running))])
            del expected[given_up]
        found |= search.step()
    assert found.keys() == expected.keys()
    for number, (source, options) in expected.items():
        assert_same([found[number]], engine.generate([source], options))


def test_each_leaves_when_it_is_done_and_costs_nothing_any_more(monkeypatch):
    """Outputs as long as their sources; the rows of each step are those of the sentences that are not done."""
    engine = PyTorchEngine(make_model(0))
    num_rows, decode_step = [], engine.model.decode_step
    monkeypatch.setattr(
        engine.model, "decode_step", lambda last, cache: num_rows.append(len(last)) or decode_step(last, cache)
    )
    search = engine.start_search()
    assert search.step() == {} and not num_rows
    options = SearchOptions(beam=2, min_length_ratio=1.0, max_length_ratio=1.0)
    assert list(search.admit([[4] * 9, [5] * 3], options)) == [0, 1]
    done = [sorted(search.step()) for _ in range(3)]
    assert list(search.admit([[6]], options)) == [2]
    done += [sorted(search.step()) for _ in range(3)]
    search.drop([0])
    assert (done, search.num_groups) == ([[], [], [], [1], [2], []], 0)
    assert num_rows == [4, 4, 4, 6, 4, 2]


def test_what_is_not_searched_in_steps_is_refused():
    search = PyTorchEngine(make_model(0)).start_search()
    with pytest.raises(ValueError, match="in batches"):
        search.admit([[4]], SearchOptions(temperature=1.0))
    assert search.num_groups == 0


def test_damaged_weights_are_an_error():
    model = make_model(0)
    model.decoder.blocks[0].ffn_1.output.bias.data[:] = float("nan")
    search = PyTorchEngine(model).start_search()
    search.admit([[4]], SearchOptions(max_length=1))
    search.step()
    with pytest.raises(DataError, match="NaN"):
        search.step()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="where there is a GPU")
def test_on_a_gpu_sentences_are_searched_in_batches():
    assert PyTorchEngine(make_model(0).cuda()).start_search() is None
