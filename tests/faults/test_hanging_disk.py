"""A disk that hangs for real: it is told, waited for within the limits, and a run that ends for it goes on exactly."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from deltalm_ds.runs.checkpoints import checkpoint_directories
from tests.faults.small_disk import HangingDisk
from tests.faults.tiny import Training, differences, write_experiment

STEPS = 400
Mount = Callable[[HangingDisk], HangingDisk]
LIMITS = {"limits": {"start_s": 120.0, "step_s": 50.0, "checkpoint_s": 50.0, "validation_s": 50.0}}


@pytest.mark.slow
def test_on_a_disk_that_hangs_training_waits_or_ends_and_says_so(mount: Mount, tmp_path: Path) -> None:
    disk = mount(HangingDisk(tmp_path / "image", tmp_path / "disk", 64))
    recipe = write_experiment(tmp_path / "experiment", training={"max_steps": STEPS, "save_every": 40, **LIMITS})
    undisturbed, run = tmp_path / "undisturbed", disk.path / "run"
    assert Training(recipe, undisturbed, 2).await_end() == 0

    training = Training(recipe, run, 2, log=tmp_path / "log")
    assert training.await_that(lambda: bool(checkpoint_directories(run)))
    disk.hang(True)
    assert training.await_that(lambda: training.messages.count("has not answered for") == 2)
    disk.hang(False)
    assert training.await_that(lambda: training.messages.count("answers again.") == 2)
    seen = len(checkpoint_directories(run))
    assert training.await_that(lambda: len(checkpoint_directories(run)) > seen)
    disk.hang(True)
    assert training.await_that(lambda: training.messages.count("does not answer. The run ends.") == 2)
    time.sleep(1.0)
    disk.hang(False)
    assert training.await_end() == 1

    assert Training(recipe, run, 2, log=tmp_path / "log").await_end() == 0
    assert differences(run, undisturbed, STEPS) == []
