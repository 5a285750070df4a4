"""Beam search against fairseq's own outputs, exhaustive enumeration, and a plain uncached search."""

import gzip
import itertools
import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from deltalm_ds.checkpoints.initialise import unchanged_initialisation
from deltalm_ds.checkpoints.sources import recognise
from deltalm_ds.errors import DataError, InputError
from deltalm_ds.generation.beam_search import beam_search
from deltalm_ds.generation.interface import SearchOptions
from deltalm_ds.model.config import DeltaLMConfig
from deltalm_ds.model.deltalm import DeltaLM
from deltalm_ds.model.packing import PackedSequences
from deltalm_ds.token_ids import EOS_ID, PAD_ID

FIXTURES = Path(__file__).parents[1] / "fixtures"
REFERENCE = json.loads(gzip.decompress((FIXTURES / "beam.json.gz").read_bytes()))
# fairseq was also run with prefixes that the outputs begin with, which this search does not offer
SETTINGS = {name: setting for name, setting in REFERENCE["settings"].items() if setting["prefixes"] is None}


@pytest.fixture(scope="module")
def official_model():
    model = unchanged_initialisation(recognise(FIXTURES / "official_base_trained.pt"), num_heads=4).model()
    return model


def random_model(vocabulary_size=7, seed=0, decoder="interleaved"):
    torch.manual_seed(seed)
    config = DeltaLMConfig(
        vocabulary_size=vocabulary_size,
        hidden_size=16,
        ffn_size=32,
        num_heads=2,
        num_encoder_layers=2,
        num_decoder_blocks=1,
        decoder=decoder,
        max_positions=16,
    )
    model = DeltaLM(config).eval()
    model.token_embedding.weight.data *= 3  # sharper than fresh weights: candidates do not nearly tie
    return model


def log_probs(model, source, prefix):
    """log p of the next token [V] after `</s>` and `prefix`, without a cache."""
    packed = PackedSequences.from_sequences([source])
    target = PackedSequences.from_sequences([[EOS_ID, *prefix]])
    with torch.inference_mode():
        hidden = model.decode(target, model.encode(packed), packed)
        return model.logits(hidden[-1]).log_softmax(-1).tolist()


def search_uncached(model, source, options):
    """The documented rules in plain Python, one sentence, without a cache."""
    beam, finished = [((), 0.0)], []
    longest = max(1, len(options.prefix), math.ceil(options.max_length_ratio * (len(source) - 1)))
    max_length = min(options.max_length, longest) if options.max_length_ratio else options.max_length
    least = max(options.min_length, math.ceil(options.min_length_ratio * (len(source) - 1)))
    min_length = min(least, max_length)
    for step in range(options.max_length + 1):
        candidates = []
        for ids, score in beam:
            for token, log_p in enumerate(log_probs(model, source, ids)):
                size = options.no_repeat_ngram_size
                ngrams = list(zip(*((*ids, token)[i:] for i in range(size)), strict=False)) if size else []
                banned = (
                    token == PAD_ID
                    or (token == EOS_ID and step < min_length)
                    or (token != EOS_ID and step == max_length)
                    or (ngrams and ngrams[-1] in ngrams[:-1])
                )
                if step < len(options.prefix):
                    banned = token != options.prefix[step]
                if not banned:
                    candidates.append(((*ids, token), score + log_p))
        candidates = sorted(candidates, key=lambda c: -c[1])[: 2 * options.beam]
        ended = [c for c in candidates[: options.beam] if c[0][-1] == EOS_ID]
        finished += [(ids[:-1], score / len(ids) ** options.length_penalty) for ids, score in ended]
        beam = [c for c in candidates if c[0][-1] != EOS_ID][: options.beam]
        if len(finished) >= options.beam:
            break
    return sorted(finished[: options.beam], key=lambda f: -f[1])[: options.n_best]


@pytest.mark.parametrize("name", SETTINGS)
def test_every_hypothesis_of_fairseq(name, official_model):
    setting = SETTINGS[name]
    source = PackedSequences.from_sequences(REFERENCE["sources"])
    found = beam_search(official_model, source, SearchOptions(**setting["options"]))
    for ours, theirs in zip(found, setting["hypotheses"], strict=True):
        assert [[*hypothesis.ids, EOS_ID] for hypothesis in ours] == [tokens for tokens, _ in theirs]
        for hypothesis, (tokens, score) in zip(ours, theirs, strict=True):
            assert hypothesis.score == pytest.approx(score, abs=2e-5)
            total = hypothesis.score * len(tokens) ** setting["options"]["length_penalty"]
            assert sum(hypothesis.token_scores) == pytest.approx(total, abs=2e-5)


@pytest.mark.parametrize("decoder", ["interleaved", "vanilla"])
def test_a_beam_wide_enough_finds_everything(decoder):
    """Five tokens, up to three long: all 155 outputs, with the probabilities of full decoding."""
    model, source = random_model(decoder=decoder), [4, 6, 5, EOS_ID]
    options = SearchOptions(beam=200, n_best=200, length_penalty=0.0, max_length=3)
    (found,) = beam_search(model, PackedSequences.from_sequences([source]), options)
    expected = {}
    for length in (1, 2, 3):
        for ids in itertools.product([0, 3, 4, 5, 6], repeat=length):
            steps = [log_probs(model, source, ids[:i])[token] for i, token in enumerate((*ids, EOS_ID))]
            expected[ids] = sum(steps)
    assert {hypothesis.ids for hypothesis in found} == set(expected)
    assert [hypothesis.score for hypothesis in found] == sorted((h.score for h in found), reverse=True)
    for hypothesis in found:
        assert hypothesis.score == pytest.approx(expected[hypothesis.ids], abs=1e-5)


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_equals_plain_search_whatever_the_batch(data):
    beam = data.draw(st.integers(1, 4), "beam")
    min_length = data.draw(st.integers(0, 3), "min_length")
    options = SearchOptions(
        beam=beam,
        n_best=beam,
        length_penalty=data.draw(st.sampled_from([0.0, 0.6, 1.0, 2.0]), "length_penalty"),
        min_length=min_length,
        max_length=data.draw(st.integers(min_length, 6), "max_length"),
        no_repeat_ngram_size=data.draw(st.integers(0, 3), "no_repeat_ngram_size"),
        min_length_ratio=data.draw(st.sampled_from([0.0, 0.3, 0.9]), "min_length_ratio"),
        max_length_ratio=data.draw(st.sampled_from([0.0, 0.9, 1.4]), "max_length_ratio"),
        prefix=tuple(data.draw(st.lists(st.integers(3, 12), max_size=2), "prefix")) if min_length > 1 else (),
    )
    tokens = st.lists(st.integers(3, 12), min_size=0, max_size=6)
    sources = [[*ids, EOS_ID] for ids in data.draw(st.lists(tokens, min_size=1, max_size=5), "sources")]
    model = random_model(vocabulary_size=13, seed=data.draw(st.integers(0, 20), "seed"))
    found = beam_search(model, PackedSequences.from_sequences(sources), options)
    for source, hypotheses in zip(sources, found, strict=True):
        expected = search_uncached(model, source, options)
        assert [hypothesis.ids for hypothesis in hypotheses] == [ids for ids, _ in expected]
        assert [hypothesis.score for hypothesis in hypotheses] == pytest.approx([s for _, s in expected], abs=1e-4)


def test_length_is_bounded_by_the_positions():
    model = random_model()
    options = SearchOptions(beam=2, min_length=99, max_length=99)
    (found,) = beam_search(model, PackedSequences.from_sequences([[4, EOS_ID]]), options)
    assert len(found[0].ids) == model.config.max_positions - 1


def test_damaged_weights_are_an_error():
    model = random_model()
    model.decoder.blocks[0].ffn_1.output.bias.data[:] = float("nan")
    with pytest.raises(DataError, match="NaN"):
        beam_search(model, PackedSequences.from_sequences([[4, EOS_ID]]), SearchOptions(max_length=3))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"beam": 0}, "beam is 0"),
        ({"beam": 2, "n_best": 3}, "beam of 2 gives 1 to 2"),
        ({"min_length": 9, "max_length": 8}, "from 9 to 8"),
        ({"no_repeat_ngram_size": -1}, "n-gram size is -1"),
        ({"min_length_ratio": 2.0, "max_length_ratio": 1.5}, r"from 2.0 to 1.5 times the source's"),
        ({"min_length_ratio": -1.0}, "contain no valid length"),
        ({"prefix": (4, 5), "max_length": 1, "min_length": 0}, "prefix has 2 tokens; outputs have at most 1"),
    ],
)
def test_options_that_make_no_sense(values, message):
    with pytest.raises(InputError, match=message):
        SearchOptions(**values)
