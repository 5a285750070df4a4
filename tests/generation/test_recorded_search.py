"""Searches whose steps are recorded and replayed against searches that run every step; graphs by a stand-in."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tape import TapeRecorder

from deltalm_ds.generation import steps
from deltalm_ds.generation.beam_search import beam_search
from deltalm_ds.generation.interface import SearchOptions
from deltalm_ds.model import cache
from deltalm_ds.model.config import DeltaLMConfig
from deltalm_ds.model.cuda_graph import GraphRecorder
from deltalm_ds.model.deltalm import DeltaLM
from deltalm_ds.model.packing import PackedSequences
from deltalm_ds.token_ids import EOS_ID

VOCABULARY_SIZE, MAX_POSITIONS = 13, 40


def make_model(seed, decoder="interleaved"):
    torch.manual_seed(seed)
    config = DeltaLMConfig(
        vocabulary_size=VOCABULARY_SIZE,
        hidden_size=16,
        ffn_size=32,
        num_heads=2,
        num_encoder_layers=1,
        num_decoder_blocks=2,
        decoder=decoder,
        max_positions=MAX_POSITIONS,
    )
    model = DeltaLM(config).eval()
    model.token_embedding.weight.data *= 3  # sharper than fresh weights: candidates do not nearly tie
    return model


@pytest.fixture
def short_lengths(monkeypatch):
    """Little room and frequent looks, so that short outputs see all that can happen."""
    monkeypatch.setattr(steps, "FIRST_LENGTH", 4)
    monkeypatch.setattr(steps, "LOOK_EVERY", 3)
    monkeypatch.setattr(cache, "FIRST_ROOM", 4)


def assert_same(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        assert [hypothesis.ids for hypothesis in ours] == [hypothesis.ids for hypothesis in theirs]
        for a, b in zip(ours, theirs, strict=True):
            assert a.score == pytest.approx(b.score, abs=1e-5)
            assert a.token_scores == pytest.approx(b.token_scores, abs=1e-5)


@st.composite
def searches(draw):
    beam = draw(st.integers(1, 4), "beam")
    min_length = draw(st.integers(0, 12), "min_length")
    banned = st.lists(st.integers(3, VOCABULARY_SIZE - 1), min_size=1, max_size=3).map(tuple)
    options = SearchOptions(
        beam=beam,
        n_best=draw(st.integers(1, beam), "n_best"),
        length_penalty=draw(st.sampled_from([0.0, 1.0, 2.0]), "length_penalty"),
        min_length=min_length,
        max_length=draw(st.integers(min_length, 30), "max_length"),
        no_repeat_ngram_size=draw(st.sampled_from([0, 2, 3]), "no_repeat_ngram_size"),
        banned=draw(st.lists(banned, max_size=3).map(tuple), "banned"),
    )
    tokens = st.lists(st.integers(3, VOCABULARY_SIZE - 1), max_size=7)
    return options, [[*ids, EOS_ID] for ids in draw(st.lists(tokens, min_size=1, max_size=6), "sources")]


@pytest.mark.usefixtures("short_lengths")
@settings(max_examples=25)
@given(search=searches(), seed=st.integers(0, 20), decoder=st.sampled_from(["interleaved", "vanilla"]))
def test_equals_the_search_that_runs_every_step(search, seed, decoder):
    options, sources = search
    model, source = make_model(seed, decoder), PackedSequences.from_sequences(sources)
    assert_same(beam_search(model, source, options, TapeRecorder()), beam_search(model, source, options))


@pytest.mark.usefixtures("short_lengths")
def test_steps_are_recorded_once_for_a_length():
    """Outputs of 30 tokens: lengths 4, 8, 16, 31; the first step of each runs, the second is recorded."""
    recorder, options = TapeRecorder(), SearchOptions(beam=2, min_length=30, max_length=30)
    source = PackedSequences.from_sequences([[4, 5, EOS_ID], [6, EOS_ID]])
    beam_search(make_model(0), source, options, recorder)
    assert (recorder.num_warmed_up, recorder.num_recorded, recorder.num_replayed) == (4, 4, 26)


def test_nothing_is_recorded_for_few_steps():
    recorder, source = TapeRecorder(), PackedSequences.from_sequences([[4, EOS_ID]])
    beam_search(make_model(0), source, SearchOptions(beam=2, max_length=1), recorder)
    assert (recorder.num_recorded, recorder.num_replayed) == (0, 0)


class Finishing:
    """A model that ends sentence n after n tokens, and counts the sentences of every step."""

    max_positions = 100

    def __init__(self):
        self.num_sentences = []

    def start_decoding(self, source):
        self.left, self.position = torch.arange(source.num_sequences), 0
        return self

    def reserve(self, length):
        self.length = length

    def select_rows(self, rows):
        pass

    def select_sentences(self, sentences):
        self.left = self.left[sentences]

    def decode_step(self, tokens, _cache):
        logits = torch.zeros(len(tokens), 8)
        logits[:, 5] = 10.0
        logits[self.left == self.position, EOS_ID] = 20.0
        self.position += 1
        self.num_sentences.append(len(tokens))
        return logits


class Running:
    """A recorder that runs everything: for models that hold what they know in Python."""

    def warm_up(self, run):
        run()

    def record(self, run):
        return run


def test_sentences_that_are_done_are_left_out():
    """At once where every step is looked at; else when half of them are done, and nothing changes."""
    source = PackedSequences.from_sequences([[4, EOS_ID]] * 24)
    options = SearchOptions(beam=1, min_length=0, max_length=60)
    at_once, later = Finishing(), Finishing()
    expected = beam_search(at_once, source, options)
    assert [hypothesis.ids for (hypothesis,) in expected] == [(5,) * number for number in range(24)]
    assert at_once.num_sentences == list(range(24, 0, -1))
    assert beam_search(later, source, options, Running()) == expected
    assert later.num_sentences == [24] * 16 + [8] * 8


@pytest.mark.skipif(not torch.cuda.is_available(), reason="graphs are for GPUs")
@pytest.mark.parametrize("beam", [1, 5])
def test_graphs_on_a_gpu(beam):
    model = make_model(3)
    sources = [[*range(4, 4 + number), EOS_ID] for number in range(1, 9)]
    source = PackedSequences.from_sequences(sources)
    options = SearchOptions(beam=beam, n_best=beam, max_length=38, no_repeat_ngram_size=3)
    expected = beam_search(model, source, options)
    device = torch.device("cuda")
    found = beam_search(model.to(device), source.to(device), options, GraphRecorder(device))
    for ours, theirs in zip(found, expected, strict=True):
        assert [hypothesis.ids for hypothesis in ours] == [hypothesis.ids for hypothesis in theirs]
        assert [hypothesis.score for hypothesis in ours] == pytest.approx([h.score for h in theirs], abs=1e-3)
