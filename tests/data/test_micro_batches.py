"""Properties of the plan, for any lengths; balance on realistic ones."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltalm_ds.data.corruption import SpanNoise
from deltalm_ds.data.micro_batches import QUADRATIC_TOKENS, _deal, deal_micro_batches
from deltalm_ds.errors import InputError


@given(
    lengths=st.lists(st.tuples(st.integers(1, 60), st.integers(1, 40)), max_size=300),
    world_size=st.sampled_from([1, 2, 3, 4, 8, 32]),
    micro_batch_tokens=st.integers(100, 1000),
    min_micro_batches=st.integers(1, 4),
)
def test_a_plan_is_a_partition_within_the_budget(lengths, world_size, micro_batch_tokens, min_micro_batches):
    source, target = np.array(lengths, dtype=np.int64).reshape(-1, 2).T
    ranks = deal_micro_batches(source, target, world_size, micro_batch_tokens, min_micro_batches)
    assert len(ranks) == world_size
    assert {len(micros) for micros in ranks} == {len(ranks[0])}
    assert len(ranks[0]) >= min_micro_batches
    planned = [int(index) for micros in ranks for micro in micros for index in micro]
    assert sorted(planned) == list(range(len(lengths)))
    assert all((source + target)[micro].sum() <= micro_batch_tokens for micros in ranks for micro in micros)
    again = deal_micro_batches(source, target, world_size, micro_batch_tokens, min_micro_batches)
    assert all(np.array_equal(a, b) for x, y in zip(ranks, again, strict=True) for a, b in zip(x, y, strict=True))


@pytest.mark.parametrize("world_size", [1, 2, 3, 8])
def test_balance_on_realistic_lengths(world_size: int):
    generator = np.random.default_rng(1)
    for mean in (12, 25, 40):
        source = np.clip(generator.gamma(2.0, mean / 2, 1600 * world_size), 2, 256).astype(int)
        target = np.clip(source * generator.uniform(0.7, 1.4, len(source)), 2, 256).astype(int)
        tokens = source + target
        cap = int(tokens.mean() * 200)
        ranks = deal_micro_batches(source, target, world_size, cap)
        cost = tokens * (QUADRATIC_TOKENS + tokens)
        totals = np.array([sum(cost[micro].sum() for micro in micros) for micros in ranks])
        assert totals.max() / totals.min() < 1.03
        fewest = tokens.sum() / (cap * world_size)
        assert len(ranks[0]) <= 1.25 * fewest + 1
        longest_so_far = 0
        for concurrent in zip(*ranks, strict=True):  # ranks that work at the same time have alike work
            costs = [cost[micro].sum() for micro in concurrent]
            assert max(costs) < 1.15 * min(costs)
            assert min(tokens[micro].min() for micro in concurrent) >= longest_so_far
            longest_so_far = max(tokens[micro].max() for micro in concurrent)


def test_one_long_sequence_among_short_ones():
    lengths = np.array([5] * 1000 + [256])
    ranks = deal_micro_batches(lengths, lengths, 2, 512)
    assert all((2 * lengths[micro]).sum() <= 512 for micros in ranks for micro in micros)
    assert len(ranks[0]) <= 25  # 10,512 tokens; no plan has fewer than 11


def test_a_swap_keeps_within_the_budget():
    """Many short sequences cost less than a long one of as many tokens: the cheaper rank may be the fuller one."""
    short = [1, 5, 6, 11, 14, 39, 46, 47, 57, 263]
    lengths = np.array([*short, 416, 436, 707, 1363, 1594, 1872, 2152, 2212, 3126, 3247])
    ranks = deal_micro_batches(lengths, np.zeros(20, np.int64), 2, 3500, 2)
    assert max(lengths[micro].sum() for micros in ranks for micro in micros) <= 3500


def test_the_dearest_run_of_a_turn_goes_to_the_rank_that_has_least():
    runs = [np.array([number]) for number in range(4)]
    ranks = _deal(runs, np.array([3, 1, 2, 9]), 2)
    assert [[int(run[0]) for run in micros] for micros in ranks] == [[1, 3], [0, 2]]


def test_fewer_sequences_than_ranks_are_padded_with_empty_micro_batches():
    ranks = deal_micro_batches(np.array([3, 4]), np.array([3, 4]), 4, 100)
    assert sorted(len(micros[0]) for micros in ranks) == [0, 0, 1, 1]
    assert [len(micro) for micros in deal_micro_batches(np.array([]), np.array([]), 3, 100, 2) for micro in micros] == [
        0
    ] * 6


def test_ranks_with_and_without_sequences_in_a_turn():
    """Two ranks have the same load, the dearest, and nothing in their first turn."""
    lengths = np.array([2, 2, 3, 3])
    ranks = deal_micro_batches(lengths, np.zeros(4, np.int64), 4, 100, 2)
    assert sorted(np.concatenate([micro for micros in ranks for micro in micros])) == [0, 1, 2, 3]


def test_a_sequence_over_the_budget_is_refused():
    with pytest.raises(InputError, match="has 101 tokens but a micro-batch holds 100"):
        deal_micro_batches(np.array([1, 51]), np.array([1, 50]), 1, 100)


def real_lengths(fixtures, objective: str) -> tuple[np.ndarray, np.ndarray]:
    """Source and target lengths of real text in SentencePiece tokens (16,000 pieces): 6,000 pairs of English with the
    ten languages of WMT-10 (software and Tatoeba), 6,000 lines of 132 languages; the counts alone."""
    lengths = np.load(fixtures / "token_lengths.npz")
    pairs = np.minimum(lengths["pairs"].astype(np.int64) + 1, 256)
    noisy = SpanNoise().corrupted_lengths(np.clip(lengths["mono"].astype(np.int64), 2, 568))
    seq2seq, corrupted = pairs.T, np.stack(noisy) + 1
    both = {"seq2seq": [seq2seq], "span_corruption": [corrupted], "both": [seq2seq, corrupted]}[objective]
    source, target = np.concatenate(both, axis=1)
    return source, target


@pytest.mark.parametrize("objective", ["seq2seq", "span_corruption", "both"])
@pytest.mark.parametrize("world_size", [2, 8, 32])
@pytest.mark.parametrize("fullness", [0.93, 1.9])
def test_balance_of_one_and_two_micro_batches(fixtures, objective: str, world_size: int, fullness: float):
    """With so few, and those nearly full, there is little room to make good what a cut between sequences leaves."""
    source, target = real_lengths(fixtures, objective)
    chosen = np.random.default_rng(0).permutation(len(source))
    tokens = source[chosen] + target[chosen]
    chosen = chosen[tokens.cumsum() <= fullness * 4096 * world_size]
    tokens = tokens[: len(chosen)]
    ranks = deal_micro_batches(source[chosen], target[chosen], world_size, 4096)
    assert len(ranks[0]) in ({1, 2} if fullness < 1 else {2, 3})
    cost = tokens * (QUADRATIC_TOKENS + tokens)
    totals = [sum(cost[micro].sum() for micro in micros) for micros in ranks]
    assert max(totals) <= 1.02 * min(totals)
    assert all(tokens[micro].sum() <= 4096 for micros in ranks for micro in micros)
    planned = np.concatenate([micro for micros in ranks for micro in micros])
    assert np.array_equal(np.sort(planned), np.arange(len(chosen)))


@pytest.mark.parametrize("objective", ["seq2seq", "span_corruption", "both"])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 8, 32])
def test_balance_on_real_lengths(fixtures, objective: str, world_size: int):
    """4,096 tokens a GPU, accumulated as if there were 128 GPUs [facts: fine-tuning]: ranks differ by at most 3 %."""
    source, target = real_lengths(fixtures, objective)
    for seed in range(3):
        tokens_per_step = 4096 * max(128, 4 * world_size) // (1 if world_size == 32 else 4)
        count = int(tokens_per_step / (source + target).mean())
        chosen = np.random.default_rng(seed).integers(0, len(source), count)
        tokens = source[chosen] + target[chosen]
        ranks = deal_micro_batches(source[chosen], target[chosen], world_size, 4096)
        cost = tokens * (QUADRATIC_TOKENS + tokens)
        totals = np.array([sum(cost[micro].sum() for micro in micros) for micros in ranks])
        assert totals.max() <= 1.03 * totals.min()
        assert all(tokens[micro].sum() <= 4096 for micros in ranks for micro in micros)
        # ranks work in step: what each waits for the slowest of every turn
        turns = sum(max(cost[micro].sum() for micro in concurrent) for concurrent in zip(*ranks, strict=True))
        assert turns <= 1.03 * totals.mean()
        assert len(ranks[0]) <= 1.3 * tokens.sum() / (4096 * world_size) + 1
