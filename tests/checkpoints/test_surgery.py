"""Rows by token string against a dictionary of rows, and position tables."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from deltalm_ds.checkpoints.surgery import NOISE, fit_positions, map_rows, new_table
from deltalm_ds.errors import DataError, InputError
from deltalm_ds.token_ids import SPECIAL_TOKENS
from deltalm_ds.vocabulary import Vocabulary

WIDTH = 5


def vocabulary(pieces, languages=(), num_sentinels=0):
    blocks = {
        "special": SPECIAL_TOKENS,
        "pieces": tuple(pieces),
        "sentinels": tuple(f"<extra_id_{index}>" for index in range(num_sentinels)),
        "languages": tuple(f"__{language}__" for language in languages),
        "tasks": (),
    }
    num_tokens = sum(map(len, blocks.values()))
    return Vocabulary({**blocks, "padding": tuple(f"<padding_{index}>" for index in range(-num_tokens % 64))})


def random_table(num_rows, seed=0):
    return torch.randn(num_rows, WIDTH, generator=torch.Generator().manual_seed(seed))


WORDS = st.lists(st.sampled_from("abcdefghij"), unique=True, max_size=10)


@st.composite
def sources(draw):
    """Names of a source's rows: specials and pieces in any order, some rows without a name."""
    names = draw(st.permutations([*SPECIAL_TOKENS, *draw(WORDS)]))
    for place in draw(st.lists(st.integers(0, len(names)), max_size=3)):
        names = [*names[:place], None, *names[place:]]
    return names


@given(source=sources(), pieces=WORDS, languages=st.lists(st.sampled_from(["de", "en"]), unique=True), data=st.data())
def test_rows_follow_their_tokens(source, pieces, languages, data):
    target = vocabulary(pieces, languages)
    fresh = [token for token in (*pieces, *target.blocks["languages"]) if token not in source]
    named = [token for token in source if token is not None]
    copies = data.draw(st.dictionaries(st.sampled_from(fresh), st.sampled_from(named))) if fresh else {}
    table = random_table(len(source))
    plan = map_rows(source, target, copies)
    found = new_table(table, plan, seed=3)

    row_of = {token: table[row] for row, token in enumerate(source) if token is not None}
    assert found.shape == (target.size, WIDTH)
    new = []
    for row in range(target.num_tokens):
        token = target.token(row)
        if token in row_of:
            assert torch.equal(found[row], row_of[token])
        elif token in copies:
            assert torch.equal(found[row], row_of[copies[token]])
        else:
            new.append(token)
            assert not any(torch.equal(found[row], other) for other in table)
    assert list(plan.new.values()) == new
    assert not found[target.num_tokens :].any()
    assert set(plan.dropped) == set(named) - {target.token(row) for row in range(target.num_tokens)}
    assert plan.num_unnamed == source.count(None)
    assert len(plan.kept) + len(plan.copied) + len(plan.new) == target.num_tokens


def test_new_rows_are_near_the_mean_of_the_kept_ones():
    """Against numpy, over enough new rows that their own mean and spread are known."""
    source = [*SPECIAL_TOKENS, "a", "b", "dropped", None]
    table = random_table(len(source)) * torch.arange(1.0, WIDTH + 1)  # another spread in each dimension
    table[6:] = 1000.0
    target = vocabulary(["a", "b", *(f"new{index}" for index in range(20_000))])
    plan = map_rows(source, target)
    rows = new_table(table, plan, seed=1)[list(plan.new)].double().numpy()
    kept = table[:6].double().numpy()
    noise = (rows - kept.mean(0)) / kept.std(0)
    assert np.abs(noise.mean(0)).max() < 5 * NOISE / np.sqrt(len(rows))
    np.testing.assert_allclose(noise.std(0), NOISE, rtol=0.03)
    # as a normal distribution has it: within 1 and 2 standard deviations
    np.testing.assert_allclose((np.abs(noise) < NOISE).mean(), 0.6827, atol=0.01)
    np.testing.assert_allclose((np.abs(noise) < 2 * NOISE).mean(), 0.9545, atol=0.005)
    correlation = np.corrcoef(noise.T) - np.eye(WIDTH)
    assert np.abs(correlation).max() < 5 / np.sqrt(len(rows))


def test_noise_depends_on_seed_and_token_alone():
    source, table = [*SPECIAL_TOKENS, "a"], random_table(5)

    def row(token, pieces, seed=1, languages=()):
        target = vocabulary(pieces, languages)
        plan = map_rows(source, target)
        (number,) = (row for row, name in plan.new.items() if name == token)
        return new_table(table, plan, seed)[number]

    alone = row("x", ["a", "x"])
    assert torch.equal(alone, row("x", ["z", "y", "x", "a"], languages=["de"]))
    assert not torch.equal(alone, row("x", ["a", "x"], seed=2))
    assert not torch.equal(alone, row("y", ["a", "y"]))


def test_tags_and_sentinels_inherit_nothing_by_place():
    """The rows behind the dictionary of the released file mean something that nobody knows."""
    source = [*SPECIAL_TOKENS, "a", *([None] * 104)]
    target = vocabulary(["a"], ["de"], num_sentinels=100)
    plan = map_rows(source, target)
    assert (len(plan.kept), len(plan.new), plan.num_unnamed) == (5, 101, 104)
    named = vocabulary(["a"], ["de"], num_sentinels=100)
    assert map_rows([named.token(row) for row in range(named.num_tokens)], target).new == {}


REFUSED = [
    ([*SPECIAL_TOKENS, "a", "b", "a"], {}, DataError, "'a' names two rows of the source, 4 and 6"),
    ([*SPECIAL_TOKENS, "a"], {"x": "a"}, InputError, "no token 'x' in the new vocabulary"),
    ([*SPECIAL_TOKENS, "a"], {"__de__": "y"}, InputError, "no token 'y' in the source"),
    ([*SPECIAL_TOKENS, "a"], {"a": "<s>"}, InputError, "'a' keeps its own row: it cannot be a copy of '<s>'"),
    ([*SPECIAL_TOKENS, "a"], {"<padding_0>": "a"}, InputError, "no token '<padding_0>' in the new vocabulary"),
]


@pytest.mark.parametrize(("source", "copies", "error", "message"), REFUSED)
def test_what_is_refused(source, copies, error, message):
    with pytest.raises(error, match=message):
        map_rows(source, vocabulary(["a"], ["de"]), copies)


def test_a_table_of_another_vocabulary():
    plan = map_rows([*SPECIAL_TOKENS, "a"], vocabulary(["a"]))
    with pytest.raises(DataError, match="token table has 6 rows, its vocabulary 5"):
        new_table(random_table(6), plan, seed=1)
    with pytest.raises(InputError, match="No token of the source is in the new vocabulary"):
        new_table(random_table(1), map_rows(["x"], vocabulary(["a"])), seed=1)


@given(have=st.integers(1, 12), wanted=st.integers(1, 40), how=st.sampled_from([None, "truncate", "extend"]))
def test_positions(have, wanted, how):
    table = random_table(have)
    needed = {True: "truncate", False: "extend"}[wanted < have] if wanted != have else how
    if how != needed:
        with pytest.raises(InputError, match=rf"has {have} positions and {wanted} are wanted: .*{needed}"):
            fit_positions(table, wanted, how)
        return
    found = fit_positions(table, wanted, how)
    assert torch.equal(found, torch.stack([table[row % have] for row in range(wanted)]))
