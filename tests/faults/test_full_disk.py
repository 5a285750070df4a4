"""A disk that is full for a while: training goes on, nothing is lost, and saving recovers."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from deltalm_ds.runs.checkpoints import checkpoint_directories, read_state
from deltalm_ds.runs.events import read_events
from tests.faults.small_disk import SmallDisk
from tests.faults.tiny import Training, differences, write_experiment

STEPS = 90


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with contextlib.ExitStack() as stack:
        try:
            disk = stack.enter_context(SmallDisk(tmp_path / "disk", 16))
        except RuntimeError as error:
            pytest.skip(str(error))
        yield disk


def test_on_a_full_disk_training_goes_on_and_recovers(small_disk: SmallDisk, tmp_path: Path) -> None:
    recipe = write_experiment(tmp_path / "experiment", training={"max_steps": STEPS, "save_every": 15})
    undisturbed, run = tmp_path / "undisturbed", small_disk.path / "run"
    assert Training(recipe, undisturbed, 2).await_end() == 0
    training = Training(recipe, run, 2, log=tmp_path / "log")
    assert training.await_that(lambda: bool(checkpoint_directories(run)))
    small_disk.fill()
    assert training.await_that(lambda: "could not be written" in training.messages)
    small_disk.free()
    assert training.await_end() == 0
    assert differences(run, undisturbed, STEPS) == []
    assert "save failed" in [event["kind"] for event in read_events(run)]
    assert read_state(checkpoint_directories(run)[-1]).validation
