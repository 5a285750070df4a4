"""The keyed permutation against brute force: a bijection of every size, well mixed, local."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from deltalm_ds.arrays.counter_rng import hash_counters, name_key, uniform
from deltalm_ds.data.permutation import feistel, permuted_rows


def chi_squared(counts: np.ndarray) -> float:
    """In standard deviations from its mean, under equal probabilities."""
    expected = counts.sum() / counts.size
    freedom = counts.size - 1
    return float((((counts - expected) ** 2 / expected).sum() - freedom) / np.sqrt(2 * freedom))


@given(
    num_rows=st.integers(1, 3000),
    key=st.integers(0, 2**64 - 1),
    chunk_rows=st.integers(1, 100),
    window_chunks=st.integers(1, 9),
    first_pass=st.integers(0, 10**6),
)
def test_every_row_once_per_pass(num_rows: int, key: int, chunk_rows: int, window_chunks: int, first_pass: int):
    positions = np.arange(first_pass * num_rows, (first_pass + 2) * num_rows)
    rows = permuted_rows(positions, num_rows, key, chunk_rows, window_chunks).reshape(2, num_rows)
    assert np.array_equal(np.sort(rows, axis=1), np.tile(np.arange(num_rows), (2, 1)))


def test_a_position_does_not_depend_on_its_company():
    whole = permuted_rows(np.arange(5000), 2345, key=7)
    scattered = np.random.default_rng(0).permutation(5000)
    assert np.array_equal(permuted_rows(scattered, 2345, key=7), whole[scattered])
    assert [int(permuted_rows(np.array([p]), 2345, key=7)[0]) for p in range(20)] == whole[:20].tolist()


def test_passes_and_keys_have_orders_of_their_own():
    rows = permuted_rows(np.arange(20_000), 10_000, key=1).reshape(2, -1)
    other = permuted_rows(np.arange(10_000), 10_000, key=2)
    for a, b in ((rows[0], rows[1]), (rows[0], other), (rows[0], np.arange(10_000))):
        assert abs(np.corrcoef(a, b)[0, 1]) < 0.05
        assert (a == b).sum() < 10  # of 10,000 a random permutation keeps one in place


def test_reads_stay_local():
    num_rows, chunk_rows, window_chunks = 1_000_000, 100, 8
    rows = permuted_rows(np.arange(800 * 200), num_rows, 3, chunk_rows, window_chunks).reshape(200, 800)
    assert max(len(np.unique(window // chunk_rows)) for window in rows) == window_chunks
    starts = rows.min(axis=1)
    assert starts.max() - starts.min() > num_rows / 2  # while windows come from everywhere


@pytest.mark.parametrize("size", [2, 3, 5, 7])
def test_small_permutations_are_uniform(size: int):
    keys = hash_counters(11, np.arange(40_000))
    sizes = np.full(len(keys), size)
    images = [feistel(np.full(len(keys), value), sizes, keys) for value in range(size)]
    assert abs(chi_squared(np.bincount(images[0], minlength=size))) < 5
    pairs = np.bincount(images[0] * size + images[1], minlength=size * size).reshape(size, size)
    assert pairs.trace() == 0
    assert abs(chi_squared(pairs[~np.eye(size, dtype=bool)])) < 5


def test_counters_are_mixed_well():
    values = hash_counters(5, np.arange(100_000))
    assert len(np.unique(values)) == 100_000
    bits = values[:, None] >> np.arange(64, dtype=np.uint64) & np.uint64(1)
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 0.01
    flipped = values[:-1] ^ values[1:]  # one step of the counter changes half of the bits
    assert abs(np.mean([int(value).bit_count() for value in flipped[:5000].tolist()]) - 32) < 0.5
    numbers = uniform(5, np.arange(100_000), 3)
    assert numbers.min() >= 0 and numbers.max() < 1
    assert abs(chi_squared(np.histogram(numbers, bins=100, range=(0, 1))[0])) < 5
    assert hash_counters(1, 2, 3) != hash_counters(1, 3, 2)


def test_random_values_never_change():
    """Another platform or a later version must feed the same data: resumed runs depend on it."""
    assert int(hash_counters(0)) == 0xE220A8397B1DCDAF  # the published first output of SplitMix64 with seed 0
    assert int(hash_counters(1, 2, 3)) == 0xD0734750FDE362B3
    assert name_key("seq2seq:en-de:en-de") == 0x559F8216EC71F59B
    assert permuted_rows(np.arange(8), 1000, 42).tolist() == [108, 537, 184, 222, 582, 607, 871, 566]
