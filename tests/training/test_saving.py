"""When a checkpoint is written, and when training ends for having learned nothing."""

from types import SimpleNamespace

import pytest

from deltalm_ds.errors import CheckError
from deltalm_ds.training.sections import Sections
from deltalm_ds.training.trainer import Trainer


@pytest.mark.parametrize(
    ("updates", "skipped_in_a_row", "saves"),
    [
        (99, 1, True),  # gone on from a checkpoint of step 99: one skipped update is no reason to end
        (99, 0, True),  # the one step since was without sequences
        (100, 0, True),
        (99, 9, True),
        (99, 10, False),
        (0, 3, False),
        (0, 0, True),
    ],
)
def test_a_run_ends_where_a_whole_interval_or_everything_so_far_was_skipped(updates, skipped_in_a_row, saves):
    trainer, done = Trainer.__new__(Trainer), []
    trainer.recipe = SimpleNamespace(training=SimpleNamespace(save_every=10))
    trainer.state = SimpleNamespace(step=100, updates=updates)
    trainer.rank, trainer.skipped_in_a_row, trainer.sections = 1, skipped_in_a_row, Sections()
    trainer.saves = SimpleNamespace(save=lambda state: done.append("saved"))
    trainer._validate, trainer._is_due = lambda: done.append("validated"), lambda: True
    if saves:
        trainer._save_and_validate()
        assert done == ["saved", "validated"]
    else:
        with pytest.raises(CheckError, match="At step 100 no update was applied"):
            trainer._save_and_validate()
        assert not done
