"""A disk that is full for a while: training goes on, nothing is lost, and saving recovers."""

from collections.abc import Callable
from pathlib import Path

from deltalm_ds.runs.checkpoints import checkpoint_directories, read_state
from deltalm_ds.runs.events import read_events
from tests.faults.small_disk import SmallDisk
from tests.faults.tiny import Training, differences, write_experiment

STEPS = 90
Mount = Callable[[SmallDisk], SmallDisk]


def test_on_a_full_disk_training_goes_on_and_recovers(mount: Mount, tmp_path: Path) -> None:
    small_disk = mount(SmallDisk(tmp_path / "disk", 16))
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
