"""Order, batching and input of translation, with an engine that reverses its source."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltalm_ds.errors import InputError
from deltalm_ds.generation.interface import BATCH_TOKENS, Hypothesis, SearchOptions
from deltalm_ds.generation.score import score
from deltalm_ds.generation.translate import (
    SENTENCE_COST_TOKENS,
    batches_by_cost,
    encoder_for,
    generate,
    parse_ids,
    translate,
)
from deltalm_ds.vocabulary import Vocabulary


class ReversingEngine:
    """Two hypotheses: the source reversed, and the source; the search's scores prefer the wrong one."""

    vocabulary_size, max_positions, batch_tokens = 100, 11, BATCH_TOKENS["cpu"]

    def __init__(self):
        self.batches = []

    def generate(self, sources, options):
        self.batches.append(sources)
        return [[Hypothesis(tuple(s), -0.5), Hypothesis(tuple(reversed(s)), -0.6)] for s in sources]

    def score(self, sources, targets):
        pairs = zip(sources, targets, strict=True)
        return [[-1.0 if list(t) == list(s) else -0.25] * (len(t) + 1) for s, t in pairs]


@given(st.lists(st.lists(st.integers(4, 99), max_size=30), max_size=60))
def test_generate_keeps_order_and_batches_similar_lengths(sources):
    engine, advanced = ReversingEngine(), []
    found = generate(engine, sources, SearchOptions(beam=4), advance=advanced.append)
    assert [hypotheses[0].ids for hypotheses in found] == [tuple(source) for source in sources]
    assert sum(advanced) == len(sources)
    lengths = [len(source) for batch in engine.batches for source in batch]
    assert lengths == sorted(lengths, reverse=True) and 0 not in lengths
    for batch in engine.batches:
        assert len(batch) == 1 or (len(batch[0]) + SENTENCE_COST_TOKENS) * 4 * len(batch) <= engine.batch_tokens


@given(st.lists(st.integers(1, 50), max_size=40), st.integers(1, 120))
def test_batches_hold_every_item_once_within_the_budget(costs, budget):
    batches = list(batches_by_cost(costs, budget))
    assert sorted(index for batch in batches for index in batch) == list(range(len(costs)))
    for batch in batches:
        assert len(batch) == 1 or max(costs[i] for i in batch) * len(batch) <= budget


def test_token_scores_rank_anew():
    (found,) = generate(ReversingEngine(), [[4, 5, 6]], SearchOptions(beam=2, n_best=2), token_scores=True)
    assert [hypothesis.ids for hypothesis in found] == [(6, 5, 4), (4, 5, 6)]
    assert found[0] == Hypothesis((6, 5, 4), -0.25, (-0.25,) * 4)


def test_translate_cuts_long_sources_once_and_keeps_empty_lines(capsys):
    lines = ["4 5", "", " ".join(["7"] * 12), "   ", " ".join(["8"] * 10)]
    found = list(translate(ReversingEngine(), lines, lambda line: parse_ids(line, 100), SearchOptions()))
    assert [hypotheses[0].ids for hypotheses in found] == [(4, 5), (), (7,) * 10, (), (8,) * 10]
    error = capsys.readouterr().err
    assert error.count("were longer than 10 tokens") == 1
    assert "1 of 5 sources" in error


def test_score_refuses_what_does_not_fit():
    with pytest.raises(InputError, match="Line 2: the target has 11 tokens"):
        score(ReversingEngine(), [[4], [4]], [[4], [4] * 11])
    assert score(ReversingEngine(), [[4], [5, 6]], [[5], [5, 6]]) == [[-0.25] * 2, [-1.0] * 3]


def test_the_tag_of_the_target_language_comes_first(tmp_path):
    (tmp_path / "dict.txt").write_text("▁a 1\n")
    tagged = Vocabulary.from_dict(tmp_path / "dict.txt", num_sentinels=0, languages=["de", "fr"])
    tagged.encode = lambda text: np.array([4])  # it has ids only
    assert encoder_for(tagged, "fr")("a") == [tagged.language_id("fr"), 4]
    with pytest.raises(InputError, match=r"--target-lang.*de, fr"):
        encoder_for(tagged, None)
    with pytest.raises(InputError, match="'xx'"):
        encoder_for(tagged, "xx")
    encoder_for(Vocabulary.from_dict(tmp_path / "dict.txt"), None)


@pytest.mark.parametrize("line", ["4 x", "4 100", "4 -1", "4.0"])
def test_what_are_not_ids_is_refused(line):
    with pytest.raises(InputError, match="numbers from 0 to 99"):
        parse_ids(line, 100)
