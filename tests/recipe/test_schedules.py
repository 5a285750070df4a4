"""Learning rates against fairseq's rules, torch's schedulers and hand values."""

import pytest
import torch
from pydantic import ValidationError

from deltalm_ds.recipe.schedules import SCHEDULES
from deltalm_ds.recipe.schedules.constant import Constant
from deltalm_ds.recipe.schedules.cosine import Cosine
from deltalm_ds.recipe.schedules.inverse_sqrt import InverseSqrt
from deltalm_ds.recipe.schedules.linear import Linear
from deltalm_ds.recipe.schedules.wsd import WarmupStableDecay

OPTIONS = {"wsd": {"decay_steps": 10}}  # of kinds that have options without default


def fairseq_inverse_sqrt(num_updates, lr, warmup_init_lr, warmup_updates):
    """fairseq's scheduler after `num_updates` updates, as its documentation states it."""
    if num_updates < warmup_updates:
        return warmup_init_lr + num_updates * (lr - warmup_init_lr) / warmup_updates
    return lr * warmup_updates**0.5 * num_updates**-0.5


def test_inverse_square_root_is_fairseqs():
    schedule = InverseSqrt(peak_lr=3e-4, warmup_steps=40, initial_lr=1e-7)
    for updates in range(200):
        expected = fairseq_inverse_sqrt(updates, 3e-4, 1e-7, 40)
        assert schedule.learning_rate(updates, 200) == pytest.approx(expected, rel=1e-12)


def test_inverse_square_root_by_hand():
    schedule = InverseSqrt(peak_lr=1.0, warmup_steps=4)
    assert [schedule.learning_rate(n, 100) for n in (0, 1, 4, 16, 64)] == [0.0, 0.25, 1.0, 0.5, 0.25]


def test_linear_by_hand():
    schedule = Linear(peak_lr=1.0, warmup_steps=2, initial_lr=0.5)
    assert [schedule.learning_rate(n, 6) for n in range(8)] == [0.5, 0.75, 1.0, 0.75, 0.5, 0.25, 0.0, 0.0]


def test_cosine_is_torchs():
    """torch.optim's scheduler without restarts, which takes over at the end of the warm-up."""
    schedule = Cosine(peak_lr=3e-4, warmup_steps=10, final_lr=1e-5)
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=3e-4)
    theirs = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=90, eta_min=1e-5)
    for updates in range(10, 101):
        assert schedule.learning_rate(updates, 100) == pytest.approx(theirs.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        theirs.step()


def test_cosine_by_hand():
    schedule = Cosine(peak_lr=1.0, warmup_steps=2, final_lr=0.5)
    rates = [schedule.learning_rate(n, 6) for n in range(9)]
    assert rates == pytest.approx([0.0, 0.5, 1.0, 0.75 + 0.125 * 2**0.5, 0.75, 0.75 - 0.125 * 2**0.5, 0.5, 0.5, 0.5])


def test_a_cosine_has_to_fall():
    with pytest.raises(ValidationError, match=r"final_lr=0\.2 is above peak_lr=0\.1"):
        Cosine(peak_lr=0.1, warmup_steps=2, final_lr=0.2)


def test_constant_is_torchs_behind_the_warm_up():
    schedule = Constant(peak_lr=3e-4, warmup_steps=4, initial_lr=1e-4)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=3e-4)
    theirs = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1 / 3, total_iters=4)
    for updates in range(12):
        assert schedule.learning_rate(updates, 8) == pytest.approx(theirs.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        theirs.step()


@pytest.mark.parametrize(
    ("shape", "decay"),
    [("linear", [1.0, 0.75, 0.5, 0.25, 0.0, 0.0]), ("1-sqrt", [1.0, 0.5, 1 - 0.5**0.5, 1 - 0.75**0.5, 0.0, 0.0])],
)
def test_warm_up_stable_decay_by_hand(shape, decay):
    schedule = WarmupStableDecay(peak_lr=1.0, warmup_steps=2, decay_steps=4, decay_shape=shape)
    rates = [schedule.learning_rate(n, 10) for n in range(12)]
    assert rates == pytest.approx([0.0, 0.5, 1.0, 1.0, 1.0, 1.0, *decay])


def test_a_decay_can_be_decided_on_later():
    """Up to it the rates are those of a run without end, and those of a constant rate."""
    schedule, constant = (
        WarmupStableDecay(peak_lr=1.0, warmup_steps=2, decay_steps=4),
        Constant(peak_lr=1.0, warmup_steps=2),
    )
    for updates in range(97):
        assert schedule.learning_rate(updates, 100) == schedule.learning_rate(updates, 10**9)
        assert schedule.learning_rate(updates, 100) == constant.learning_rate(updates, 100)
    assert schedule.learning_rate(97, 100) < 1


def test_a_decay_as_long_as_the_run_begins_at_the_peak():
    rates = [
        WarmupStableDecay(peak_lr=1.0, warmup_steps=2, decay_steps=9, decay_shape="linear").learning_rate(n, 6)
        for n in range(7)
    ]
    assert rates == [0.0, 0.5, 1.0, 0.75, 0.5, 0.25, 0.0]


@pytest.mark.parametrize("kind", SCHEDULES)
def test_every_schedule_warms_up_on_a_line_and_stays_a_rate(kind):
    schedule = SCHEDULES[kind](peak_lr=0.5, warmup_steps=4, initial_lr=0.1, **OPTIONS.get(kind, {}))
    assert schedule.kind == kind
    assert [schedule.learning_rate(n, 50) for n in range(5)] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.5])
    assert all(0 <= schedule.learning_rate(n, 50) <= 0.5 for n in range(4, 60))


def test_a_warm_up_as_long_as_the_run_or_longer():
    for kind in SCHEDULES:
        schedule = SCHEDULES[kind](peak_lr=1.0, warmup_steps=4, **OPTIONS.get(kind, {}))
        assert [schedule.learning_rate(n, 4) for n in range(4)] == [0.0, 0.25, 0.5, 0.75]
        assert [schedule.learning_rate(n, 2) for n in range(3)] == [0.0, 0.25, 0.5]
        assert 0 <= schedule.learning_rate(4, 4) <= 1
    assert Linear(peak_lr=1.0, warmup_steps=4).learning_rate(4, 4) == 0.0
