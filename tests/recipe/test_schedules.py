"""Learning rates against fairseq's rules and hand values."""

import pytest

from deltalm_ds.recipe.schedules import Schedule


def fairseq_inverse_sqrt(num_updates, lr, warmup_init_lr, warmup_updates):
    """fairseq's scheduler after `num_updates` updates, as its documentation states it."""
    if num_updates < warmup_updates:
        return warmup_init_lr + num_updates * (lr - warmup_init_lr) / warmup_updates
    return lr * warmup_updates**0.5 * num_updates**-0.5


def test_inverse_square_root_is_fairseqs():
    schedule = Schedule(kind="inverse_sqrt", peak_lr=3e-4, warmup_steps=40, initial_lr=1e-7)
    for updates in range(200):
        expected = fairseq_inverse_sqrt(updates, 3e-4, 1e-7, 40)
        assert schedule.learning_rate(updates, 200) == pytest.approx(expected, rel=1e-12)


def test_inverse_square_root_by_hand():
    schedule = Schedule(peak_lr=1.0, warmup_steps=4)
    assert [schedule.learning_rate(n, 100) for n in (0, 1, 4, 16, 64)] == [0.0, 0.25, 1.0, 0.5, 0.25]


def test_linear_by_hand():
    schedule = Schedule(kind="linear", peak_lr=1.0, warmup_steps=2, initial_lr=0.5)
    assert [schedule.learning_rate(n, 6) for n in range(8)] == [0.5, 0.75, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0]


def test_a_warm_up_as_long_as_the_run_or_longer():
    schedule = Schedule(kind="linear", peak_lr=1.0, warmup_steps=4)
    assert [schedule.learning_rate(n, 4) for n in range(5)] == [0.0, 0.25, 0.5, 0.75, 0.0]
    assert [schedule.learning_rate(n, 2) for n in range(3)] == [0.0, 0.25, 0.5]
